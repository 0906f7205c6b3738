"""Train FaceNet by its triplet loss on the faces in ./people, and keep the weights in a model's folder."""

import argparse
from pathlib import Path

import numpy as np
from faces import SIZE, faces
from network import points, slim, tf

STEPS = 60
PEOPLE = 10
"""In a batch, with EACH pictures of each."""
EACH = 5
MARGIN = 0.2
"""By which a stranger must be farther away, as in FaceNet (arXiv:1503.03832)."""
RATE = 0.002


def batch(labels, chance):
    """Return the places of some pictures of some people."""
    people = chance.choice(np.unique(labels), PEOPLE, replace=False)
    return np.concatenate([chance.choice(np.flatnonzero(labels == person), EACH) for person in people])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    chosen = parser.parse_args()
    images, labels, without = faces(Path("people"))
    print("%d faces of %d people, %d pictures without one" % (len(labels), len(np.unique(labels)), without))
    tf.set_random_seed(1)
    chance = np.random.RandomState(1)
    given = tf.placeholder(tf.float32, [None, SIZE, SIZE, 1])
    wanted = tf.placeholder(tf.int32, [None])
    loss = tf.contrib.losses.metric_learning.triplet_semihard_loss(wanted, points(given, is_training=True), MARGIN)
    steps = tf.train.get_or_create_global_step()
    rate = tf.train.polynomial_decay(RATE, steps, STEPS, 0.0)
    train = slim.learning.create_train_op(loss, tf.train.AdamOptimizer(rate))
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for step in range(1, STEPS + 1):
            places = batch(labels, chance)
            now = session.run(train, {given: images[places], wanted: labels[places]})
            if step % 10 == 0:
                print("step %d of %d, loss %.4f" % (step, STEPS, now))
        chosen.model.mkdir(exist_ok=True)
        tf.train.Saver(slim.get_model_variables()).save(session, str(chosen.model / "model.ckpt"), steps)


if __name__ == "__main__":
    main()
