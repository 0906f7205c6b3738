"""The baked images of both releases: whole, labelled, within their limits, and verified."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kiln.engine import Engine
from kiln.matrix import Matrix
from kiln.project import find_project
from kiln.verify import Report, verify

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

KILN = str(Path(sys.executable).parent / "kiln")
PROJECT = find_project(Path(__file__).resolve().parent.parent)
MATRIX = Matrix(PROJECT, "registry")
RELEASE = MATRIX.releases()[-1]
IMAGES = MATRIX.images(RELEASE)

# make test bakes the current release, and of those before it the cpu image; make test-all bakes all.
EVERY = [
    pytest.param(release, image, marks=[] if release == RELEASE or image == "cpu" else pytest.mark.long)
    for release in MATRIX.releases()
    for image in MATRIX.images(release)
]

# Limits: bytes of one image unpacked, and all together on disk over the largest.
LARGEST_BYTES = 5_200_000_000
TOGETHER_RATIO = 1.6


def kiln(*words: str) -> Any:
    run = subprocess.run([KILN, *words], cwd=PROJECT.root, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_nothing_is_left_to_build() -> None:
    states = {stage["state"] for stage in kiln("plan", "--json")["stages"]}
    assert states <= {"cached", "unneeded"}


def test_sizes_keep_their_limits() -> None:
    sizes = kiln("report", "--size", "--json")
    assert len(sizes["images"]) == len(IMAGES)
    for name, image in sizes["images"].items():
        assert 1e9 < image["total"] <= LARGEST_BYTES, f"{name}: {image['total']} bytes"
    assert sizes["ratio_to_largest"] <= TOGETHER_RATIO


@pytest.mark.parametrize(("release", "image"), EVERY)
def test_labels_tell_what_the_image_is(release: str, image: str) -> None:
    labels = Engine().image_labels(f"deeplearning:{release}-{image}")
    assert labels is not None
    spec = MATRIX.resolve(release, image)
    prefix = "org.deeplearning."
    assert labels[prefix + "release"] == release
    assert labels[prefix + "image"] == image
    assert labels[prefix + "channel"] == "registry"
    assert labels[prefix + "substitutions"].split(",") == list(spec.substitutions)
    assert len(labels[prefix + "digest"]) == 64
    assert labels[prefix + "revision"]


@pytest.mark.parametrize(("release", "image"), EVERY)
def test_the_image_keeps_every_promise(release: str, image: str) -> None:
    report: Report = verify(PROJECT, f"deeplearning:{release}-{image}")
    assert report.image == f"{release}/{image}"
    failed = [f"{check.check}: {check.reason}" for check in report.checks if check.verdict == "failed"]
    assert failed == []
    assert report.counts()["passed"] >= 50
    unexplained = [check.check for check in report.checks if check.verdict == "not run" and not check.reason]
    assert unexplained == []
