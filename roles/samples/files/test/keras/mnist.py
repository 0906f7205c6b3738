"""Train a small LeNet on handwritten digits with Keras on TensorFlow, on the GPU where there is one."""

from __future__ import absolute_import, division, print_function

import os

# TensorFlow's own notes on the processor and the like: errors only. Read when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from keras.layers import Conv2D, Dense, Dropout, Flatten

import mnist_data
from command_line import Flags, positive, run, say

SEED = 1
LEARNING_RATE = 0.003
DECAY = 0.01
"""Share by which the learning rate's divisor grows with each batch."""
DROPPED = 0.4


def main():
    flags = Flags(description=__doc__)
    flags.add_argument("--data", default=mnist_data.FOLDER, help="folder of MNIST's files (default: %(default)s)")
    flags.add_argument("--epochs", type=positive, default=1, help="times all images are seen (default: %(default)s)")
    flags.add_argument("--batch", type=positive, default=50, help="images in a batch (default: %(default)s)")
    chosen = flags.parse_args()
    digits = mnist_data.load(chosen.data)
    where = "GPU" if tf.test.is_gpu_available() else "CPU"
    say("Keras %s on the %s, %s" % (keras.__version__, where, mnist_data.describe(digits)))

    tf.set_random_seed(SEED)
    net = make_net()
    # Two lines an epoch, not a bar: it can be read in a file too.
    net.fit(
        digits.train_images[..., None], digits.train_labels, batch_size=chosen.batch, epochs=chosen.epochs, verbose=2
    )
    _, accuracy = net.evaluate(digits.test_images[..., None], digits.test_labels, batch_size=1000, verbose=0)
    say(mnist_data.accuracy_line(accuracy, 1))


def make_net():
    """Return LeNet, ready to be trained; strides where LeNet pools, which is four times as fast."""
    shape = (mnist_data.SIDE, mnist_data.SIDE, 1)
    net = keras.models.Sequential(
        [
            Conv2D(16, 5, strides=2, padding="same", activation="relu", input_shape=shape),
            Conv2D(32, 5, strides=2, padding="same", activation="relu"),
            Flatten(),
            Dropout(DROPPED),
            Dense(128, activation="relu"),
            Dropout(DROPPED),
            Dense(mnist_data.CLASSES, activation="softmax"),
        ]
    )
    net.compile(
        keras.optimizers.Adam(lr=LEARNING_RATE, decay=DECAY), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return net


if __name__ == "__main__":
    run(main)
