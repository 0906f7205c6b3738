"""The node's handwritten digits: files in MNIST's format, read without a network.

A node holds MNIST itself, or a stand-in of the same format and size where MNIST could not be had.
"""

from __future__ import absolute_import, division, print_function

import collections
import gzip
import os
import struct
import zlib

import numpy

from command_line import SampleError

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "mnist")
"""A link beside the samples' folders that leads to the data."""

CLASSES = 10
SIDE = 28
"""Pixels."""

MNIST_TEST_LABELS = [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
"""The first labels of MNIST's own test set."""

# Images: float32, number x 28 x 28, from 0 to 1. Labels: int64. The name says whose digits they are.
Digits = collections.namedtuple("Digits", "name train_images train_labels test_images test_labels")


def load(folder=FOLDER):
    """Return the Digits in a folder; raise SampleError where the four files are not there or not in MNIST's format."""
    if not os.path.isdir(folder):
        raise SampleError("%s: there is no such folder; give the one that holds MNIST's files with --data" % folder)
    arrays = []
    for part in ("train", "t10k"):
        images = _read(folder, part + "-images-idx3-ubyte", 3)
        labels = _read(folder, part + "-labels-idx1-ubyte", 1)
        if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels) or labels.max() >= CLASSES:
            raise SampleError("%s: its %s images and labels do not belong together" % (folder, part))
        arrays += [images.astype(numpy.float32) / 255, labels.astype(numpy.int64)]
    is_mnist = arrays[3][: len(MNIST_TEST_LABELS)].tolist() == MNIST_TEST_LABELS
    return Digits("MNIST" if is_mnist else "digits", *arrays)


def check_batch(size, images):
    """Raise SampleError unless so many images fill a batch."""
    if size > images:
        raise SampleError("a batch of %d from %d images: give a smaller --batch" % (size, images))


def batches(images, labels, size, seed=0):
    """Return batches for ever, in a new order each time all images had their turn; SampleError when none is filled."""
    check_batch(size, len(images))
    return _batches(images, labels, size, seed)


def _batches(images, labels, size, seed):
    random = numpy.random.RandomState(seed)
    while True:
        order = random.permutation(len(images))
        for start in range(0, len(images) - size + 1, size):
            chosen = order[start : start + size]
            yield images[chosen], labels[chosen]


def describe(digits):
    """Return a line about the data."""
    return "%s: %d images for training, %d for test" % (digits.name, len(digits.train_images), len(digits.test_images))


def accuracy_line(correct, total):
    """Return the line that every sample ends with."""
    return "test accuracy: %.4f" % (correct / float(total))


def _read(folder, name, dimensions):
    """Return the array in an idx file, plain or compressed: http://yann.lecun.com/exdb/mnist/, "file formats"."""
    path = os.path.join(folder, name)
    opened = open
    if not os.path.exists(path):
        path, opened = path + ".gz", gzip.open
    try:
        with opened(path, "rb") as source:
            content = source.read()
    except (IOError, EOFError, zlib.error) as error:
        raise SampleError("%s: cannot be read (%s)" % (path, getattr(error, "strerror", None) or error))
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != struct.pack(">BBBB", 0, 0, 8, dimensions):
        raise SampleError("%s: is not a file in MNIST's format" % path)
    shape = struct.unpack(">%dI" % dimensions, content[4:start])
    array = numpy.frombuffer(content, numpy.uint8, offset=start)
    if not array.size or array.size != numpy.prod(shape, dtype=numpy.int64):
        raise SampleError("%s: is cut short or damaged" % path)
    return array.reshape(shape)
