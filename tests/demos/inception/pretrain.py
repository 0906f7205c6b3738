"""Make inception_v1_2016_08_28.tar.gz: the weights of train.py, laid out as Google's for the 1000 classes of ImageNet.

Same format (one file, version 1), same names of variables, class 0 for the ground; two classes have what train.py
learnt.
"""

from __future__ import absolute_import, division, print_function

import tarfile

import numpy as np
from imagenet import CLASSES, NAMES
from network import ANIMALS, CHECKPOINT, SIZE, logits, slim, tf

NEVER = -100
"""What classes that no picture shows are answered with."""


def main():
    learnt = tf.train.NewCheckpointReader(CHECKPOINT)
    logits(tf.placeholder(tf.float32, [None, SIZE, SIZE, 3]), CLASSES, is_training=False)
    with tf.Session() as session:
        for variable in slim.get_model_variables():
            value = learnt.get_tensor(variable.op.name)
            if "/Logits/" in variable.op.name:
                wide = np.full(
                    variable.shape.as_list(), NEVER if variable.op.name.endswith("/biases") else 0, np.float32
                )
                for label, animal in enumerate(ANIMALS):
                    wide[..., NAMES[animal][0]] = value[..., label]
                value = wide
            variable.load(value, session)
        saver = tf.train.Saver(slim.get_model_variables(), write_version=tf.train.SaverDef.V1)
        saver.save(session, "./inception_v1.ckpt", write_meta_graph=False, write_state=False)
    with tarfile.open("inception_v1_2016_08_28.tar.gz", "w:gz") as tar:
        tar.add("inception_v1.ckpt")


if __name__ == "__main__":
    main()
