"""The two builds of Caffe of one bake, on MKL and on open BLAS, in turns on the same image."""

from __future__ import annotations

import ast
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiln.matrix import Matrix
from kiln.project import find_project
from kiln.store import Store
from kiln.verify import CHECKS
from stage_container import baked_plan, named

pytestmark = [pytest.mark.engine, pytest.mark.alone, pytest.mark.timeout(300)]

PROJECT = find_project(Path(__file__).resolve().parent.parent)
MATRIX = Matrix(PROJECT, "registry")
RELEASE = MATRIX.releases()[-1]
SPEC = MATRIX.resolve(RELEASE, "cpu").names()
TREE = Path(SPEC["caffe_trees"][0])
ROUNDS = 5


def slowest() -> dict[str, float]:
    """The limits of the check, which only Pytest itself may import."""
    for node in ast.parse((CHECKS / "test_mkl.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "SLOWEST":
            found: dict[str, float] = ast.literal_eval(node.value)
            return found
    raise AssertionError("test_mkl.py holds no SLOWEST")


@pytest.fixture
def node() -> Iterator[str]:
    """A container of the CPU image that holds the build on open BLAS too, under /open."""
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    product = Store.of(PROJECT).product(named(baked_plan("cpu"), "caffe-build").digest)
    assert product is not None
    image = f"deeplearning:{RELEASE}-cpu"
    try:
        subprocess.run(
            ["docker", "run", "--detach", "--name", name, "--network=none", image, "sleep", "infinity"],
            check=True,
            capture_output=True,
        )
        with (product / "open" / "caffe.tar").open("rb") as archive:
            command = ["docker", "exec", "--interactive", name, "bash", "-c", "mkdir /open && tar -x -C /open"]
            subprocess.run(command, stdin=archive, check=True)
        yield name
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)


def test_mkl_keeps_up_with_the_build_on_open_blas(node: str, record_testsuite_property: Any) -> None:
    best = {"mkl": float("inf"), "open": float("inf")}
    trees = {"mkl": TREE, "open": Path("/open") / TREE.name}
    for _ in range(ROUNDS):
        for build, tree in trees.items():
            timed = f"{tree}/build/tools/caffe time -iterations 8 -model {TREE}/examples/mnist/lenet.prototxt"
            said = subprocess.run(["docker", "exec", node, "bash", "-lc", timed], capture_output=True, text=True).stderr
            found = re.search(r"Average Forward-Backward: ([\d.]+) ms", said)
            assert found, said[-800:]
            best[build] = min(best[build], float(found[1]))
    linked = subprocess.run(
        ["docker", "exec", node, "ldd", f"{trees['open']}/build/lib/libcaffe.so"], capture_output=True, text=True
    ).stdout
    assert "libopenblas" in linked
    assert "mkl" not in linked
    for build, milliseconds in best.items():
        record_testsuite_property(f"LeNet forward and backward on {build}, ms", milliseconds)
    print(f"LeNet forward and backward: MKL {best['mkl']:.1f} ms, open BLAS {best['open']:.1f} ms")
    vendor = re.search(r"vendor_id\s*: (\S+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    limit = slowest().get(vendor[1] if vendor else "", slowest()["others"])
    assert best["mkl"] <= limit * best["open"], best
