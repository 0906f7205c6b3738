"""Print the distance between each two faces, as facecomp.ipynb of the guide does: PICTURE PICTURE DISTANCE."""

import argparse
import itertools
import sys

import numpy as np
from faces import NoFaceError, face
from network import Embedding


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pictures", nargs="+")
    chosen = parser.parse_args()
    try:
        images = np.stack([face(picture) for picture in chosen.pictures])
    except NoFaceError as error:
        sys.exit("compare.py: %s" % error)
    placed = zip(chosen.pictures, Embedding(chosen.model).embed(images))
    for (one, here), (other, there) in itertools.combinations(placed, 2):
        print("%s %s %.4f" % (one, other, np.linalg.norm(here - there)))


if __name__ == "__main__":
    main()
