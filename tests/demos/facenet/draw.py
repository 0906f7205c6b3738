"""Draw photographs of people, in place of those that the guide downloads.

FOLDER/people/NUMBER/ gets pictures of people for training, FOLDER/strangers/NUMBER/ of others, FOLDER/{a,b,c}{1,2}.jpg
two each of three further ones. A person has proportions that stay; light, place, size, tilt and noise differ.
"""

import argparse
import random
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 160, 200
"""Pixels of a picture."""


class Person:
    """The proportions of a face; lengths in halves of its width."""

    def __init__(self, chance):
        self.long = chance.uniform(1.15, 1.5)
        self.eyes_apart = chance.uniform(0.32, 0.5)
        self.eyes_high = chance.uniform(0.1, 0.32)
        self.eye = chance.uniform(0.11, 0.19)
        self.brow = chance.uniform(0.03, 0.12)
        self.brow_tilt = chance.uniform(-0.1, 0.1)
        self.nose = chance.uniform(0.2, 0.5)
        self.mouth_wide = chance.uniform(0.22, 0.48)
        self.mouth_low = chance.uniform(0.55, 0.75)
        self.lips = chance.uniform(0.05, 0.14)
        self.fringe = chance.uniform(0.4, 0.8)
        self.skin = chance.randint(150, 210)
        self.hair = chance.randint(20, 110)


def ellipse(picture, middle, axes, angle, shade):
    cv2.ellipse(picture, tuple(int(v) for v in middle), tuple(max(1, int(v)) for v in axes), angle, 0, 360, shade, -1)


def photograph(person, chance):
    """Return a grey picture of a person."""
    half = 46
    x, y = WIDTH / 2, HEIGHT / 2
    picture = np.full((HEIGHT, WIDTH), chance.randint(90, 240), np.uint8)
    ellipse(picture, (x, y - 4), (half * 1.12, half * person.long * 1.1), 0, person.hair)
    ellipse(picture, (x, y), (half, half * person.long), 0, person.skin)
    top = int(y - half * person.long)
    scalp = np.zeros_like(picture)
    ellipse(scalp, (x, y), (half, half * person.long), 0, 255)
    scalp[int(top + (1 - person.fringe) * half * person.long) :] = 0
    picture[scalp > 0] = person.hair
    eyes = y - half * person.eyes_high
    for side in (-1, 1):
        eye = x + side * half * person.eyes_apart
        size = half * person.eye
        ellipse(picture, (eye, eyes), (size * 1.5, size * 1.1), 0, person.skin - 45)
        ellipse(picture, (eye, eyes), (size, size * 0.6), 0, 235)
        ellipse(picture, (eye, eyes), (size * 0.55, size * 0.6), 0, 15)
        angle = side * person.brow_tilt * 100
        ellipse(picture, (eye, eyes - size * 1.9), (size * 1.5, half * person.brow), angle, person.hair)
    nose = y + half * person.nose * 0.6
    ellipse(picture, (x, nose), (half * 0.16, half * 0.07), 0, person.skin - 60)
    cv2.line(picture, (int(x), int(eyes + 6)), (int(x), int(nose - 5)), person.skin + 25, 4)
    mouth = y + half * person.mouth_low * person.long * 0.85
    ellipse(picture, (x, mouth), (half * person.mouth_wide, half * person.lips), 0, person.skin - 90)
    return taken(picture, chance)


def taken(picture, chance):
    """Return the picture as a camera sees it on one day."""
    turn = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), chance.uniform(-6, 6), chance.uniform(0.85, 1.1))
    turn[:, 2] += (chance.uniform(-8, 8), chance.uniform(-8, 8))
    seen = cv2.warpAffine(picture, turn, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    light = np.linspace(chance.uniform(0.75, 1), chance.uniform(0.75, 1), WIDTH)
    seen = cv2.GaussianBlur(seen * light * chance.uniform(0.8, 1.15), (5, 5), 0)
    seen += np.random.RandomState(chance.randint(0, 2**31)).normal(0, 5, seen.shape)
    return seen.clip(0, 255).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--strangers", type=int, default=12)
    parser.add_argument("--pictures", type=int, default=8, help="of each of them")
    chosen = parser.parse_args()
    chance = random.Random(20180821)
    for group, count in (("people", chosen.people), ("strangers", chosen.strangers)):
        for number in range(count):
            person, folder = Person(chance), chosen.folder / group / str(number)
            folder.mkdir(parents=True)
            for picture in range(chosen.pictures):
                cv2.imwrite(str(folder / ("%d.jpg" % picture)), photograph(person, chance))
    for letter in "abc":
        person = Person(chance)
        for number in (1, 2):
            cv2.imwrite(str(chosen.folder / ("%s%d.jpg" % (letter, number))), photograph(person, chance))


if __name__ == "__main__":
    main()
