"""A small LeNet in TensorFlow 1; strides where LeNet pools, which is four times as fast."""

from __future__ import absolute_import, division, print_function

import tensorflow as tf

import mnist_data

LEARNING_RATE = 0.003
"""At the first step; it falls to nothing at the last."""
DROPPED = 0.4
TEST_BATCH = 1000


class LeNet(object):
    """Its tensors, in the default graph."""

    def __init__(self, steps):
        self.images = tf.placeholder(tf.float32, [None, mnist_data.SIDE, mnist_data.SIDE], name="images")
        self.labels = tf.placeholder(tf.int64, [None], name="labels")
        self.training = tf.placeholder_with_default(False, [], name="training")
        image = tf.expand_dims(self.images, -1)
        for name, filters in (("conv1", 16), ("conv2", 32)):
            image = tf.layers.conv2d(image, filters, 5, 2, padding="same", activation=tf.nn.relu, name=name)
        hidden = tf.layers.dense(self._drop(tf.layers.flatten(image)), 128, activation=tf.nn.relu, name="hidden")
        score = tf.layers.dense(self._drop(hidden), mnist_data.CLASSES, name="score")
        self.loss = tf.losses.sparse_softmax_cross_entropy(self.labels, score)
        self.correct = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(score, 1), self.labels), tf.int64))
        self.step = tf.train.get_or_create_global_step()
        rate = tf.train.polynomial_decay(LEARNING_RATE, self.step, steps, end_learning_rate=0.0)
        self.train = tf.train.AdamOptimizer(rate).minimize(self.loss, self.step)

    def _drop(self, values):
        return tf.layers.dropout(values, DROPPED, training=self.training)

    def feed(self, images, labels, training=False):
        """Return what a session feeds for a batch."""
        return {self.images: images, self.labels: labels, self.training: training}

    def count_correct(self, session, digits):
        """Return how many test images are named right."""
        return sum(
            int(
                session.run(
                    self.correct,
                    self.feed(
                        digits.test_images[start : start + TEST_BATCH], digits.test_labels[start : start + TEST_BATCH]
                    ),
                )
            )
            for start in range(0, len(digits.test_images), TEST_BATCH)
        )
