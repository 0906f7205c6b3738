"""MKL on the CPU image: linked, and doing the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.device("cpu")


def test_caffe_links_mkl(as_user: Callable[[str], Any], spec: Any) -> None:
    for tree in spec["caffe_trees"]:
        linked = as_user(f"ldd {tree}/build/lib/libcaffe.so*").stdout
        assert f"libmkl_rt.so => {spec['node']['paths']['mkl']}/lib/" in linked
        assert "openblas" not in linked


@pytest.mark.component("caffe")
def test_mkl_multiplies_when_caffe_does(as_user: Callable[[str], Any], spec: Any) -> None:
    tree = spec["caffe_trees"][0]
    run = as_user(
        f"cd {tree} && MKL_VERBOSE=1 ./build/tools/caffe time -model examples/mnist/lenet.prototxt -iterations 1 2>&1"
    )
    assert "MKL_VERBOSE SGEMM(" in run.stdout, run.stdout[-800:]
