"""Train a small LeNet on handwritten digits with TensorFlow, on the GPU where there is one; TensorBoard reads ./tflog/."""

from __future__ import absolute_import, division, print_function

import os

# TensorFlow's own notes on the processor and the like: errors only. Read when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

import mnist_data
from command_line import Flags, positive, run, say
from lenet import LeNet
from tensorboard_log import open_log

REPORT_EVERY = 100
LOG_EVERY = 10


def main():
    flags = Flags(description=__doc__)
    flags.add_argument("--data", default=mnist_data.FOLDER, help="folder of MNIST's files (default: %(default)s)")
    flags.add_argument("--steps", type=positive, default=1000, help="batches to train (default: %(default)s)")
    flags.add_argument("--batch", type=positive, default=100, help="images in a batch (default: %(default)s)")
    chosen = flags.parse_args()
    digits = mnist_data.load(chosen.data)
    source = mnist_data.batches(digits.train_images, digits.train_labels, chosen.batch)
    where = "GPU" if tf.test.is_gpu_available() else "CPU"
    say("TensorFlow %s on the %s, %s" % (tf.__version__, where, mnist_data.describe(digits)))

    tf.set_random_seed(1)
    net = LeNet(chosen.steps)
    summary = tf.summary.scalar("loss", net.loss)
    log = open_log(tf.get_default_graph())
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for step in range(1, chosen.steps + 1):
            loss, logged, _ = session.run([net.loss, summary, net.train], net.feed(*next(source), training=True))
            if step % LOG_EVERY == 0:
                log.add_summary(logged, step)
            if step % REPORT_EVERY == 0 or step == chosen.steps:
                say("step %d of %d, loss %.4f" % (step, chosen.steps, loss))
        correct = net.count_correct(session, digits)
    total = len(digits.test_labels)
    accuracy = tf.Summary(value=[tf.Summary.Value(tag="test accuracy", simple_value=correct / total)])
    log.add_summary(accuracy, chosen.steps)
    log.close()
    say(mnist_data.accuracy_line(correct, total))


if __name__ == "__main__":
    run(main)
