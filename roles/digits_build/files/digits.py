"""Write scikit-learn's handwritten digits in the format of MNIST. Runs in a virtualenv with numpy and scikit-learn.

Arguments: output folder, number of training images, number of test images, seed. The 1,797 digits (8x8, from NIST's forms,
UCI "Optical Recognition of Handwritten Digits") are split first, 1,437 for training and 360 for test, so that no test image has
a relative in the training set. Each is enlarged to 20x20, MNIST's own box, and set into 28x28 with a shift of at most 2 pixels
around the middle; an original serves several times, each time with another shift. The same seed gives the same bytes.
"""

import gzip
import os
import struct
import sys

import numpy
from sklearn.datasets import load_digits

BOX = 20
SIDE = 28
SHIFT = 2
TRAINING_ORIGINALS = 1437


def enlarge(images):
    """Return 8x8 images with values 0 to 16 as 20x20 images with values 0 to 255, bilinear."""
    size = images.shape[1]
    at = numpy.clip((numpy.arange(BOX) + 0.5) * size / BOX - 0.5, 0, size - 1)
    weights = numpy.maximum(0, 1 - numpy.abs(at[:, None] - numpy.arange(size)[None, :]))
    large = numpy.matmul(numpy.matmul(weights, images), weights.T)
    return numpy.rint(large * 255 / 16).astype(numpy.uint8)


def shifted(images, labels, count, random):
    """Return count images of 28x28 and their labels: every original as often as any other, give or take one."""
    repeats = -(-count // len(images))
    chosen = random.permutation(numpy.tile(numpy.arange(len(images)), repeats)[:count])
    border = (SIDE - BOX) // 2
    corners = border + random.randint(-SHIFT, SHIFT + 1, size=(count, 2))
    pages = numpy.zeros((count, SIDE, SIDE), numpy.uint8)
    for page, original, (row, column) in zip(pages, chosen, corners):
        page[row : row + BOX, column : column + BOX] = images[original]
    return pages, labels[chosen].astype(numpy.uint8)


def write(path, array):
    """Write an array of bytes as a compressed idx file: http://yann.lecun.com/exdb/mnist/, "file formats"."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(">%dI" % array.ndim, *array.shape)
    with open(path, "wb") as sink, gzip.GzipFile(filename="", mode="wb", fileobj=sink, mtime=0) as compressed:
        compressed.write(header + array.tobytes())


def main(folder, training, test, seed):
    random = numpy.random.RandomState(seed)
    digits = load_digits()
    order = random.permutation(len(digits.images))
    large = enlarge(digits.images[order])
    labels = digits.target[order]
    for name, count, part in (
        ("train", training, slice(None, TRAINING_ORIGINALS)),
        ("t10k", test, slice(TRAINING_ORIGINALS, None)),
    ):
        pages, answers = shifted(large[part], labels[part], count, random)
        write(os.path.join(folder, name + "-images-idx3-ubyte.gz"), pages)
        write(os.path.join(folder, name + "-labels-idx1-ubyte.gz"), answers)


main(sys.argv[1], *[int(number) for number in sys.argv[2:5]])
