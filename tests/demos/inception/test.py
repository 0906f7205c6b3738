"""Tell which animal a picture shows, with the weights of train.py; for a folder, the share of right answers."""

from __future__ import absolute_import, division, print_function

import os
import sys

from network import ANIMALS, CHECKPOINT, Classifier, read, read_all


def main():
    (path,) = sys.argv[1:]
    classifier = Classifier(CHECKPOINT, len(ANIMALS))
    if os.path.isdir(path):
        pictures, labels = read_all(path)
        right = (classifier.classify(pictures).argmax(axis=1) == labels).sum()
        print("accuracy: %.4f" % (right / len(labels)))
    else:
        (answer,) = classifier.classify([read(path)])
        print("%s: %s %.4f" % (path, ANIMALS[answer.argmax()], answer.max()))


if __name__ == "__main__":
    main()
