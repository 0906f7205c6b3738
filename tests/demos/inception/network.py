"""Inception V1 of TensorFlow-Slim for pictures of any size, and how they are read."""

from __future__ import absolute_import, division, print_function

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow.contrib import slim
from tensorflow.contrib.slim.python.slim.nets.inception_v1 import inception_v1_base

ANIMALS = ("dog", "cat")

SIZE = 64
"""Pixels of a side: with 224, as Google trains, the same net takes twelve times as long."""

CHECKPOINT = os.path.join("model", "inception_v1.ckpt")


def read(path):
    """Return a picture as floats between -1 and 1, as the preprocessing of TensorFlow-Slim does."""
    picture = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR)
    return np.asarray(picture, np.float32) / 127.5 - 1


def read_all(folder):
    """Return the pictures of a folder for each animal, and their labels."""
    names = [
        (os.path.join(folder, animal, name), label)
        for label, animal in enumerate(ANIMALS)
        for name in sorted(os.listdir(os.path.join(folder, animal)))
    ]
    return np.stack([read(name) for name, _ in names]), np.array([label for _, label in names])


def logits(images, classes, is_training):
    """Return Inception V1's answer for each class, with the variables that Google's checkpoint names."""
    # The moving averages of so few steps would still be what they began with at Slim's own 0.9997.
    normal = {"is_training": is_training, "decay": 0.9, "epsilon": 0.001, "scale": False}
    with slim.arg_scope([slim.conv2d], normalizer_fn=slim.batch_norm, normalizer_params=normal):
        net, _ = inception_v1_base(images, scope="InceptionV1")
    with tf.variable_scope("InceptionV1/Logits"):
        net = slim.dropout(tf.reduce_mean(net, [1, 2], keepdims=True), 0.8, is_training=is_training)
        net = slim.conv2d(net, classes, [1, 1], activation_fn=None, normalizer_fn=None, scope="Conv2d_0c_1x1")
    return tf.squeeze(net, [1, 2])


class Classifier(object):
    """Inception V1 with the weights of a checkpoint."""

    def __init__(self, checkpoint, classes):
        self.images = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3])
        self.answers = tf.nn.softmax(logits(self.images, classes, is_training=False))
        self.session = tf.Session()
        tf.train.Saver(slim.get_model_variables()).restore(self.session, checkpoint)

    def classify(self, images):
        """Return the probability of every class for every picture."""
        return self.session.run(self.answers, {self.images: images})
