"""Times C = A B of square float32 matrices through one library; runs inside the image, on its Python 3.6.

``gemm.py LIBRARY N…`` with LIBRARY tensorflow, pytorch, or the path of a BLAS. Prints a line ``RESULT {…}``: the
library's name for itself, and the best GFLOP/s (2 N³ operations) for each N. A product that is wrong ends it.
"""

import array
import ctypes
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

REPEATS = 4
"""Of one product after a first that does not count."""

ROW_MAJOR, NO_TRANSPOSE = 101, 111
"""Source: the CBLAS standard's cblas.h."""


class Blas:
    """A library with the C interface of BLAS."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)

    def name(self) -> str:
        """Name and version; for OpenBLAS also the processor whose code it took."""
        if hasattr(self.library, "openblas_get_config"):
            self.library.openblas_get_config.restype = ctypes.c_char_p
            words = self.library.openblas_get_config().decode().split()
            return "{} {}, code for {}".format(*words[:2], words[-2])
        said = ctypes.create_string_buffer(200)
        self.library.mkl_get_version_string(said, len(said))
        version = re.search(r"Version (\S+)", said.value.decode())
        return "MKL " + (version.group(1) if version else "of an unknown version")

    def prepare(self, side: int) -> "tuple[Callable[[], Any], Callable[[], float]]":
        """What multiplies two matrices of ones, and what reads an element of the product, which must be ``side``."""
        matrix = ctypes.c_float * (side * side)
        ones, product = matrix.from_buffer(array.array("f", [1.0]) * (side * side)), matrix()
        one, zero, size = ctypes.c_float(1), ctypes.c_float(0), ctypes.c_int(side)
        order = (ROW_MAJOR, NO_TRANSPOSE, NO_TRANSPOSE, size, size, size)

        def multiply() -> None:
            self.library.cblas_sgemm(*order, one, ones, size, ones, size, zero, product, size)

        return multiply, lambda: product[side * side - 1]


class TensorFlow:
    """TensorFlow's own product."""

    def __init__(self) -> None:
        self.module = importlib.import_module("tensorflow")
        self.session = self.module.Session()

    def name(self) -> str:
        """Name and version."""
        return f"TensorFlow {self.module.__version__}"

    def prepare(self, side: int) -> "tuple[Callable[[], Any], Callable[[], float]]":
        """As that of ``Blas``."""
        # Of a constant TensorFlow would remember the product.
        ones = self.module.Variable(self.module.ones((side, side)))
        product = self.module.matmul(ones, ones)
        self.session.run(ones.initializer)
        return lambda: self.session.run(product.op), lambda: float(self.session.run(product[-1, -1]))


class PyTorch:
    """PyTorch's own product."""

    def __init__(self) -> None:
        self.module = importlib.import_module("torch")

    def name(self) -> str:
        """Name and version."""
        return f"PyTorch {self.module.__version__}"

    def prepare(self, side: int) -> "tuple[Callable[[], Any], Callable[[], float]]":
        """As that of ``Blas``."""
        ones, product = self.module.ones(side, side), self.module.empty(side, side)
        return lambda: self.module.mm(ones, ones, out=product), lambda: float(product[-1, -1])


FRAMEWORKS = {"tensorflow": TensorFlow, "pytorch": PyTorch}  # type: dict[str, Callable[[], Any]]


def best(multiply: "Callable[[], Any]", side: int) -> float:
    """GFLOP/s of the fastest of the repeats."""
    multiply()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds) / 1e9


def main() -> None:
    """Measures as the command line says."""
    # On the CPU, whatever else there is.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    word = sys.argv[1]
    library = FRAMEWORKS[word]() if word in FRAMEWORKS else Blas(word)
    found = {}
    for word in sys.argv[2:]:
        multiply, element = library.prepare(int(word))
        found[word] = best(multiply, int(word))
        if element() != float(word):
            sys.exit(f"{library.name()} multiplies wrongly: {element()} instead of {word}")
    print("RESULT " + json.dumps({"name": library.name(), "gflops": found}))


if __name__ == "__main__":
    main()
