"""Times ResNet-50 of the image's Keras on synthetic data; runs inside the image, on its Python 3.6.

Prints a line ``RESULT {…}``: images/s of every round of ``inference`` (forward) and ``training`` (forward, backward,
update), or ``not_run`` with the reason. The first steps, in which TensorFlow builds its graph, are left out.
"""

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

SIDE, CLASSES = 224, 1000
INTER_OP_THREADS = 2
"""Source: user guide 1.2, platform speed: on CPUs intra_op is the number of cores, inter_op 2."""


def timed(step: "Callable[[], Any]", images: int, args: Any, steps: int) -> "list[float]":
    """Images/s of each round of ``steps`` steps; no third round is begun once the time is over."""
    step()
    found = []  # type: list[float]
    begun = time.perf_counter()
    while len(found) < args.rounds and (len(found) < 2 or time.perf_counter() - begun < args.limit):
        started = time.perf_counter()
        for _ in range(steps):
            step()
        found.append(images * steps / (time.perf_counter() - started))
    return found


def measure(args: Any) -> "dict[str, Any]":
    """Both, on one model in one session."""
    # Only the image has these packages.
    numpy, tensorflow, keras = map(importlib.import_module, ("numpy", "tensorflow", "keras"))
    if args.device == "gpu" and not tensorflow.test.is_gpu_available():
        return {"not_run": "TensorFlow finds no GPU"}
    cores = len(os.sched_getaffinity(0))
    config = tensorflow.ConfigProto(intra_op_parallelism_threads=cores, inter_op_parallelism_threads=INTER_OP_THREADS)
    keras.backend.set_session(tensorflow.Session(config=config))
    model = keras.applications.ResNet50(weights=None, input_shape=(SIDE, SIDE, 3), classes=CLASSES)
    model.compile(optimizer=keras.optimizers.SGD(lr=0.01, momentum=0.9), loss="categorical_crossentropy")
    random = numpy.random.RandomState(0)
    images = random.rand(args.batch, SIDE, SIDE, 3).astype("float32")
    labels = keras.utils.to_categorical(random.randint(CLASSES, size=args.batch), CLASSES)
    return {
        "tensorflow": tensorflow.__version__,
        "keras": keras.__version__,
        "build": "mkl" if importlib.import_module("tensorflow.python.pywrap_tensorflow").IsMklEnabled() else "plain",
        "parameters": model.count_params(),
        "inference": timed(lambda: model.predict_on_batch(images), args.batch, args, 2 * args.steps),
        "training": timed(lambda: model.train_on_batch(images, labels), args.batch, args, args.steps),
    }


def main() -> None:
    """Measures as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of training in a round; of inference twice as many")
    parser.add_argument("--limit", type=float, required=True, help="seconds for the rounds of each of the two")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    print("RESULT " + json.dumps(measure(args)))


if __name__ == "__main__":
    main()
