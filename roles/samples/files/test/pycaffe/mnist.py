"""Train LeNet on handwritten digits with Caffe's Python interface: on the GPU where Caffe can use one, else on the CPU."""

from __future__ import absolute_import, division, print_function

import os
import shutil
import subprocess
import sys
import tempfile

# Caffe writes every layer of every net to standard error: warnings only. Read when it is imported.
os.environ.setdefault("GLOG_minloglevel", "2")

import caffe
from caffe import layers, params

import mnist_data
from command_line import Flags, positive, run, say

REPORT_EVERY = 100
TEST_BATCH = 100

SOLVER = """
net: "%s"
type: "SGD"
base_lr: 0.01
momentum: 0.9
weight_decay: 0.0005
lr_policy: "inv"
gamma: 0.0001
power: 0.75
random_seed: 1
"""


def main():
    flags = Flags(description=__doc__)
    flags.add_argument("--data", default=mnist_data.FOLDER, help="folder of MNIST's files (default: %(default)s)")
    flags.add_argument("--steps", type=positive, default=600, help="batches to train (default: %(default)s)")
    flags.add_argument("--batch", type=positive, default=64, help="images in a batch (default: %(default)s)")
    chosen = flags.parse_args()
    digits = mnist_data.load(chosen.data)
    source = mnist_data.batches(digits.train_images, digits.train_labels, chosen.batch)

    use_gpu = can_use_gpu()
    if use_gpu:
        caffe.set_device(0)
        caffe.set_mode_gpu()
    else:
        caffe.set_mode_cpu()
    say("Caffe %s on the %s, %s" % (caffe.__version__, "GPU" if use_gpu else "CPU", mnist_data.describe(digits)))

    solver, test_net = make_nets(chosen.batch)
    train(solver, source, chosen.steps)
    test_net.share_with(solver.net)
    say(mnist_data.accuracy_line(count_correct(test_net, digits), len(digits.test_labels)))


def can_use_gpu():
    """Return whether this Caffe can use a GPU of this node. Tried in a process of its own, since Caffe aborts when not."""
    if not os.path.exists("/dev/nvidia0"):
        return False
    attempt = "import caffe; caffe.set_device(0); caffe.set_mode_gpu()"
    with open(os.devnull, "w") as nowhere:
        return subprocess.call([sys.executable, "-c", attempt], stdout=nowhere, stderr=nowhere) == 0


def make_net(batch):
    """Return the description of a small LeNet whose inputs are set from Python."""
    weights = {"weight_filler": {"type": "xavier"}, "bias_filler": {"type": "constant"}}
    net = caffe.NetSpec()
    net.data = layers.Input(shape={"dim": [batch, 1, mnist_data.SIDE, mnist_data.SIDE]})
    net.label = layers.Input(shape={"dim": [batch]})
    net.conv1 = layers.Convolution(net.data, kernel_size=5, num_output=16, **weights)
    net.pool1 = layers.Pooling(net.conv1, kernel_size=2, stride=2, pool=params.Pooling.MAX)
    net.conv2 = layers.Convolution(net.pool1, kernel_size=5, num_output=32, **weights)
    net.pool2 = layers.Pooling(net.conv2, kernel_size=2, stride=2, pool=params.Pooling.MAX)
    net.hidden = layers.InnerProduct(net.pool2, num_output=128, **weights)
    net.relu = layers.ReLU(net.hidden, in_place=True)
    net.score = layers.InnerProduct(net.relu, num_output=mnist_data.CLASSES, **weights)
    net.loss = layers.SoftmaxWithLoss(net.score, net.label)
    return net.to_proto()


def make_nets(batch):
    """Return a solver of LeNet and the net to test; Caffe reads both descriptions from files."""
    folder = tempfile.mkdtemp(prefix="lenet-")
    try:
        net, solver = os.path.join(folder, "net.prototxt"), os.path.join(folder, "solver.prototxt")
        for path, text in ((net, str(make_net(batch))), (solver, SOLVER % net)):
            with open(path, "w") as sink:
                sink.write(text)
        return caffe.SGDSolver(solver), caffe.Net(net, caffe.TEST)
    finally:
        shutil.rmtree(folder)


def train(solver, source, steps):
    """Make that many steps, each on a batch."""
    for step in range(1, steps + 1):
        images, labels = next(source)
        solver.net.blobs["data"].data[:, 0] = images
        solver.net.blobs["label"].data[...] = labels
        solver.step(1)
        if step % REPORT_EVERY == 0 or step == steps:
            say("step %d of %d, loss %.4f" % (step, steps, solver.net.blobs["loss"].data))


def count_correct(net, digits):
    """Return how many test images the net names right."""
    correct = 0
    for start in range(0, len(digits.test_images), TEST_BATCH):
        images = digits.test_images[start : start + TEST_BATCH]
        labels = digits.test_labels[start : start + TEST_BATCH]
        net.blobs["data"].reshape(len(images), 1, mnist_data.SIDE, mnist_data.SIDE)
        net.blobs["label"].reshape(len(images))
        net.blobs["data"].data[:, 0] = images
        net.blobs["label"].data[...] = labels
        net.forward()
        correct += int((net.blobs["score"].data.argmax(axis=1) == labels).sum())
    return correct


if __name__ == "__main__":
    run(main)
