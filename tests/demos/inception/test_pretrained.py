"""Tell what a picture shows, with the weights that were trained for the classes of ImageNet."""

from __future__ import absolute_import, division, print_function

import sys

from imagenet import CLASSES, NAMES
from network import Classifier, read


def main():
    (path,) = sys.argv[1:]
    (answer,) = Classifier("./inception_v1.ckpt", CLASSES).classify([read(path)])
    names = dict(NAMES.values())
    for number in answer.argsort()[:-6:-1]:
        print("Probability %.4f => [%s]" % (answer[number], names.get(number, "class %d" % number)))


if __name__ == "__main__":
    main()
