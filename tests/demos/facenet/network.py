"""FaceNet in small: an Inception-ResNet that maps a face to a point, so that distance is how unlike two faces are."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from faces import SIZE
from tensorflow.contrib import slim

POINT = 128
"""Coordinates of a face's point, as in FaceNet (arXiv:1503.03832)."""


def residual_block(net):
    """Three branches of different reach, added to what came in: Inception-ResNet's block 35 (arXiv:1602.07261)."""
    near = slim.conv2d(net, 16, 1)
    middle = slim.conv2d(slim.conv2d(net, 16, 1), 16, 3)
    far = slim.conv2d(slim.conv2d(slim.conv2d(net, 16, 1), 24, 3), 24, 3)
    joined = slim.conv2d(
        tf.concat([near, middle, far], axis=3), net.shape[3].value, 1, activation_fn=None, normalizer_fn=None
    )
    return tf.nn.relu(net + 0.2 * joined)


def points(images, is_training):
    """Return each face's point, at distance 1 from the origin."""
    normal = {"is_training": is_training, "decay": 0.9}
    with slim.arg_scope([slim.conv2d], normalizer_fn=slim.batch_norm, normalizer_params=normal):
        net = slim.conv2d(images, 24, 5, stride=2)
        net = slim.conv2d(net, 48, 3, stride=2)
        net = residual_block(net)
        net = slim.conv2d(net, 96, 3, stride=2)
        net = residual_block(net)
        net = slim.conv2d(net, 32, 1)
    # Where in the face something is tells people apart, so nothing is averaged over it.
    net = slim.fully_connected(slim.flatten(net), POINT, activation_fn=None)
    return tf.nn.l2_normalize(net, axis=1)


class Embedding:
    """The net with the weights of a model's folder, or with none learnt."""

    def __init__(self, folder=None):
        tf.set_random_seed(1)
        self.images = tf.placeholder(tf.float32, [None, SIZE, SIZE, 1])
        self.points = points(self.images, is_training=False)
        self.session = tf.Session()
        self.session.run(tf.global_variables_initializer())
        if folder:
            tf.train.Saver(slim.get_model_variables()).restore(self.session, tf.train.latest_checkpoint(folder))

    def embed(self, images):
        """Return the points of faces."""
        return self.session.run(self.points, {self.images: images})
