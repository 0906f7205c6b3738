"""Train a small LeNet on handwritten digits with PyTorch, on the GPU where there is one."""

from __future__ import absolute_import, division, print_function

import torch

import mnist_data
from command_line import Flags, positive, run, say
from lenet import LeNet, Optimizer, number

REPORT_EVERY = 100


def main():
    flags = Flags(description=__doc__)
    flags.add_argument("--data", default=mnist_data.FOLDER, help="folder of MNIST's files (default: %(default)s)")
    flags.add_argument("--steps", type=positive, default=1000, help="batches to train (default: %(default)s)")
    flags.add_argument("--batch", type=positive, default=100, help="images in a batch (default: %(default)s)")
    chosen = flags.parse_args()
    digits = mnist_data.load(chosen.data)
    source = mnist_data.batches(digits.train_images, digits.train_labels, chosen.batch)

    torch.manual_seed(1)
    net = LeNet()
    if torch.cuda.is_available():
        net.cuda()
    where = "GPU" if net.is_on_gpu() else "CPU"
    say("PyTorch %s on the %s, %s" % (torch.__version__, where, mnist_data.describe(digits)))

    optimizer = Optimizer(net, chosen.steps)
    for step in range(1, chosen.steps + 1):
        optimizer.zero_grad()
        loss = net.loss(*next(source))
        loss.backward()
        optimizer.step()
        if step % REPORT_EVERY == 0 or step == chosen.steps:
            say("step %d of %d, loss %.4f" % (step, chosen.steps, number(loss)))
    correct = net.count_correct(digits.test_images, digits.test_labels)
    say(mnist_data.accuracy_line(correct, len(digits.test_labels)))


if __name__ == "__main__":
    run(main)
