"""Draw dogs and cats, in place of the photographs that the guide downloads.

FOLDER/picture/{dog,cat}/ gets the pictures for training, FOLDER/unseen/{dog,cat}/ others. What tells the animals apart
are the ears: a dog's hang down, a cat's stand up. All else is chance.
"""

from __future__ import absolute_import, division, print_function

import argparse
import os
import random

from PIL import Image, ImageDraw

SIZE = 96
"""Pixels of a side."""

ANIMALS = ("dog", "cat")


def grey(chance, low, high):
    """Return a colour whose parts lie between low and high."""
    return tuple(chance.randint(low, high) for _ in range(3))


def draw(animal, chance):
    """Return a picture of an animal's head on some ground."""
    picture = Image.new("RGB", (SIZE, SIZE), grey(chance, 120, 255))
    pen = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y = chance.randint(0, SIZE), chance.randint(0, SIZE)
        pen.line((x, y, x + chance.randint(-30, 30), y + chance.randint(-30, 30)), fill=grey(chance, 60, 220), width=2)
    x, y, radius = chance.randint(42, 54), chance.randint(44, 54), chance.randint(19, 25)
    fur = grey(chance, 30, 150)
    ear = tuple(max(0, part - 30) for part in fur)
    for side in (-1, 1):
        if animal == "cat":
            outer, inner = x + side * radius, x + side * radius // 5
            pen.polygon([(outer, y - radius // 3), (outer, y - 2 * radius), (inner, y - radius * 9 // 10)], fill=ear)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fur)
    for side in (-1, 1):
        if animal == "dog":
            middle = x + side * radius
            pen.ellipse((middle - radius // 2, y - radius // 2, middle + radius // 2, y + radius * 3 // 2), fill=ear)
        eye = x + side * radius * 2 // 5
        pen.ellipse((eye - 3, y - 8, eye + 3, y - 2), fill=grey(chance, 200, 255))
    pen.ellipse((x - 4, y + 4, x + 4, y + 9), fill=(20, 20, 20))
    return picture


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--pictures", type=int, default=15, help="of each animal for training")
    parser.add_argument("--unseen", type=int, default=20, help="of each animal that are not for training")
    parser.add_argument("--mixed", action="store_true", help="half of each animal's pictures show the other one")
    chosen = parser.parse_args()
    chance = random.Random(20180821)
    for part, count in (("picture", chosen.pictures), ("unseen", chosen.unseen)):
        for animal in ANIMALS:
            path = os.path.join(chosen.folder, part, animal)
            os.makedirs(path)
            for number in range(1, count + 1):
                wrong = chosen.mixed and part == "picture" and number % 2
                shown = ANIMALS[(ANIMALS.index(animal) + 1) % 2] if wrong else animal
                draw(shown, chance).save(os.path.join(path, "%s%d.jpg" % (animal, number)), quality=90)


if __name__ == "__main__":
    main()
