"""What the upgrade report says of samples: of an image as it is, and of one in which they were changed."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator

import pytest

from kiln.errors import KilnError
from kiln.sample_changes import Sample, read_samples, sample_changes
from tabled import SAMPLES

IMAGE = "deeplearning:1.2-cpu"

CHANGES = f"""
cd {SAMPLES}
rm pycaffe/mnist.py
mv keras/mnist.ipynb keras/digits.ipynb
sed -i 's/"--batch"/"--batch-size"/' pytorch/mnist.py
echo '# more' >>tensorflow/mnist.py
touch tensorflow/gan.py
"""


@pytest.fixture
def changed() -> Iterator[str]:
    """A copy of the image with other samples."""
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    image = f"{name}:changed"
    try:
        run = ["docker", "run", "--name", name, "--entrypoint=bash", IMAGE, "-ec", CHANGES]
        subprocess.run(run, check=True, capture_output=True)
        subprocess.run(["docker", "commit", name, image], check=True, capture_output=True)
        yield image
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)
        subprocess.run(["docker", "rmi", image], check=False, capture_output=True)


@pytest.mark.engine
def test_changes_between_two_images_are_told(changed: str) -> None:
    old, new = read_samples(IMAGE, SAMPLES), read_samples(changed, SAMPLES)
    assert "--batch" in old["pytorch/mnist.py"].flags
    assert sample_changes(old, old) == []
    assert sample_changes(old, new) == [
        "keras/mnist.ipynb is keras/digits.ipynb now",
        "pycaffe/mnist.py is gone",
        "pytorch/mnist.py takes --batch no more and takes --batch-size now",
        "tensorflow/gan.py is new",
        "tensorflow/mnist.py does its work in another way, with the same flags",
    ]


@pytest.mark.engine
def test_an_image_without_samples_is_told() -> None:
    with pytest.raises(KilnError, match="/nowhere cannot be read"):
        read_samples(IMAGE, "/nowhere")


def test_a_file_that_both_have_is_not_moved() -> None:
    same = Sample("00", frozenset())
    assert sample_changes({"a": same}, {"a": same, "b": same}) == ["b is new"]
