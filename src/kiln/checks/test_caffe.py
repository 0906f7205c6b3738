"""Caffe's programs as the guide calls them, in a plain login shell."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from kiln.checks.asking import QUIETLY, lines

# The guide's solver with fewer iterations.
SHORT = "sed" + "".join(
    f" -e 's/^{setting}: .*/{value}/'"
    for setting, value in {
        "max_iter": "max_iter: 40",
        "test_interval": "test_interval: 40",
        "test_iter": "test_iter: 10",
        "snapshot": "snapshot: 0",
        "snapshot_prefix": "snapshot_after_train: false",
    }.items()
)


@pytest.fixture(params=[0, 1], ids=["first", "second"])
def tree(request: pytest.FixtureRequest, spec: Any) -> str:
    return str(spec["caffe_trees"][request.param])


@pytest.mark.component("caffe")
def test_lenet_trains_and_its_loss_falls(as_user: Callable[[str], Any], tree: str) -> None:
    # On a copy: reading a database changes its lock file.
    copy = f"mkdir $TMPDIR/examples && cp -r {tree}/examples/mnist $TMPDIR/examples/ && cd $TMPDIR"
    solver = f"{SHORT} examples/mnist/lenet_solver.prototxt > solver.prototxt"
    run = as_user(f"{copy} && {solver} && {tree}/build/tools/caffe train --solver=solver.prototxt 2>&1")
    losses = [float(value) for value in re.findall(r"Test net output #1: loss = ([\d.]+)", run.stdout)]
    assert len(losses) >= 2, run.stdout[-1500:]
    assert losses[-1] < losses[0] / 2


@pytest.mark.component("caffe")
def test_every_program_finds_its_libraries(as_user: Callable[[str], Any], tree: str) -> None:
    run = as_user(
        f"find {tree}/build/ {tree}/python/ -type f \\( -perm -u+x -o -name '*.so*' \\) | xargs -r ldd 2>/dev/null"
    )
    assert "=>" in run.stdout
    assert [line for line in run.stdout.splitlines() if "not found" in line] == []


@pytest.mark.component("caffe")
def test_all_of_caffe_is_the_users(as_user: Callable[[str], Any], spec: Any, tree: str) -> None:
    assert lines(as_user(f"find {tree} {QUIETLY} ! -user {spec['node']['user']['name']}"))[:3] == []


@pytest.mark.component("digits")
def test_the_example_has_its_databases(as_user: Callable[[str], Any], tree: str) -> None:
    run = as_user(f"ls {tree}/examples/mnist/mnist_train_lmdb/data.mdb {tree}/examples/mnist/mnist_test_lmdb/data.mdb")
    assert run.rc == 0, run.stderr
