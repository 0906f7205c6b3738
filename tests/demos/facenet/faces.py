"""Find the face on a picture, and cut it out."""

import cv2
import numpy as np

SIZE = 64
"""Pixels of a side of a cut-out face."""

DETECTOR = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")


class NoFaceError(Exception):
    """The picture shows no face, or there is no picture."""


def face(path):
    """Return the largest face of a picture, whatever the light: floats of mean 0 and deviation 1."""
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise NoFaceError("%s is no picture" % path)
    found = DETECTOR.detectMultiScale(picture, scaleFactor=1.05, minNeighbors=3, minSize=(50, 50))
    if not len(found):
        raise NoFaceError("%s shows no face" % path)
    x, y, width, height = max(found, key=lambda box: box[2] * box[3])
    cut = cv2.resize(picture[y : y + height, x : x + width], (SIZE, SIZE)).astype(np.float32)
    return ((cut - cut.mean()) / cut.std())[..., np.newaxis]


def faces(folder):
    """Return the faces in a folder that has one for each person, who each is, and how many pictures show none."""
    found, people, without = [], [], 0
    for person in sorted(folder.iterdir()):
        for path in sorted(person.iterdir()):
            try:
                found.append(face(path))
            except NoFaceError:
                without += 1
            else:
                people.append(int(person.name))
    return np.stack(found), np.array(people), without
