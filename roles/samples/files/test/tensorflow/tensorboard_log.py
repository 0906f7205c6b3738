"""Where the samples write what TensorBoard shows."""

from __future__ import absolute_import, division, print_function

import os
import time

import tensorflow as tf

from command_line import SampleError

FOLDER = os.path.join(".", "tflog")
"""As in ``tensorboard --logdir=./tflog/``."""


def open_log(graph):
    """Return a writer of a new run below the folder, so that TensorBoard keeps runs apart."""
    path = os.path.join(FOLDER, time.strftime("%Y%m%d-%H%M%S"))
    try:
        return tf.summary.FileWriter(path, graph)
    except tf.errors.OpError as error:
        raise SampleError("%s: cannot be written (%s)" % (path, error.message.split(";")[-1].strip()))
