"""Print how often a picture of the same person is nearer than one of another, among the people in ./strangers."""

import argparse
from pathlib import Path

import numpy as np
from faces import faces
from network import Embedding


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="folder of the weights; without one nothing is learnt")
    chosen = parser.parse_args()
    images, labels, _ = faces(Path("strangers"))
    placed = Embedding(chosen.model).embed(images)
    distances = np.linalg.norm(placed[:, np.newaxis] - placed, axis=2)
    same = labels[:, np.newaxis] == labels
    nearer = [
        (
            distances[number, same[number] & (np.arange(len(labels)) != number)][:, np.newaxis]
            < distances[number, ~same[number]]
        )
        for number in range(len(labels))
    ]
    print("nearer: %.4f" % np.mean([part.mean() for part in nearer]))


if __name__ == "__main__":
    main()
