"""What became of the samples between two images: files, and the flags that they take."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from kiln.errors import KilnError

_FLAG = re.compile(r"""add_argument\(\s*["'](--[\w-]+)["']""")


@dataclass(frozen=True)
class Sample:
    """A file of the samples."""

    sha256: str
    flags: frozenset[str]
    """Names with their dashes."""


def read_samples(image: str, folder: str) -> dict[str, Sample]:
    """The files below ``folder`` of an image by their path there; what links lead to outside of it is left out.

    Raises KilnError when the image cannot be read.
    """
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint=tar", image, "-C", folder, "-c", "."]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise KilnError(f"{folder} cannot be read ({said[-1]})", where=image, fix="verify the image")
    found = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            if stream:
                content = stream.read()
                flags = frozenset(_FLAG.findall(content.decode(errors="replace")))
                found[member.name.removeprefix("./")] = Sample(hashlib.sha256(content).hexdigest(), flags)
    return found


def sample_changes(old: Mapping[str, Sample], new: Mapping[str, Sample]) -> list[str]:
    """A sentence for each sample that is gone, moved, new, takes other flags, or has other content."""
    by_content = {sample.sha256: path for path, sample in sorted(new.items()) if path not in old}
    gone = {path: sample for path, sample in old.items() if path not in new}
    moved = {path: by_content[sample.sha256] for path, sample in gone.items() if sample.sha256 in by_content}
    sentences = []
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            sentences.append(f"{path} is {moved[path]} now" if path in moved else f"{path} is gone")
        elif path not in old:
            sentences += [] if path in moved.values() else [f"{path} is new"]
        elif old[path] != new[path]:
            less, more = sorted(old[path].flags - new[path].flags), sorted(new[path].flags - old[path].flags)
            words = [f"takes {', '.join(less)} no more"] if less else []
            words += [f"takes {', '.join(more)} now"] if more else []
            sentences.append(f"{path} {' and '.join(words) or 'does its work in another way, with the same flags'}")
    return sentences
