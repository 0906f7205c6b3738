"""Train Inception V1 from scratch on the pictures of ./picture, and keep its weights in ./model."""

from __future__ import absolute_import, division, print_function

import os

import numpy as np
from network import ANIMALS, CHECKPOINT, SIZE, logits, read_all, slim, tf

STEPS = 60
BATCH = 15
RATE = 0.002
"""Of learning at the beginning; it falls to nothing at the last step."""


def main():
    pictures, labels = read_all("picture")
    print("%d pictures of %s" % (len(labels), " and ".join(ANIMALS)))
    tf.set_random_seed(1)
    chance = np.random.RandomState(1)
    images = tf.placeholder(tf.float32, [None, SIZE, SIZE, 3])
    wanted = tf.placeholder(tf.int64, [None])
    loss = tf.losses.sparse_softmax_cross_entropy(wanted, logits(images, len(ANIMALS), is_training=True))
    steps = tf.train.get_or_create_global_step()
    rate = tf.train.polynomial_decay(RATE, steps, STEPS, 0.0)
    train = slim.learning.create_train_op(loss, tf.train.AdamOptimizer(rate))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for step in range(1, STEPS + 1):
            if step % (len(labels) // BATCH) == 1:
                order = chance.permutation(len(labels))
            chosen, order = order[:BATCH], order[BATCH:]
            # A mirrored animal is one too.
            batch = pictures[chosen][:, :, :: chance.choice([-1, 1])]
            now = session.run(train, {images: batch, wanted: labels[chosen]})
            if step % 10 == 0:
                print("step %d of %d, loss %.4f" % (step, STEPS, now))
        if not os.path.isdir(os.path.dirname(CHECKPOINT)):
            os.makedirs(os.path.dirname(CHECKPOINT))
        tf.train.Saver(slim.get_model_variables()).save(session, CHECKPOINT)


if __name__ == "__main__":
    main()
