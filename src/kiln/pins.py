"""Exact pins of Python distributions, as ``images/requirements`` holds them."""

from __future__ import annotations

from dataclasses import dataclass

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from kiln.errors import KilnError

SDIST_ENDINGS = (".tar.gz", ".tar.bz2", ".zip")
"""Names of source archives, preferred first."""


@dataclass(frozen=True)
class Pin:
    """One distribution at one exact version."""

    project: str
    version: str

    def __str__(self) -> str:
        return f"{self.project}=={self.version}"


def read_pins(text: str, where: str) -> dict[str, list[Pin]]:
    """Group to pins, of a requirements file whose groups begin with ``# group: NAME``."""
    groups: dict[str, list[Pin]] = {}
    group: list[Pin] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith("# group:"):
            group = groups.setdefault(line.partition(":")[2].strip(), [])
            continue
        line = line.partition("#")[0].strip()
        if not line:
            continue
        project, equals, version = (part.strip() for part in line.partition("=="))
        if not equals or not project or not version:
            raise KilnError(f"{line!r} is no exact pin", where=f"{where}:{number}", fix="write name==version")
        if group is None:
            raise KilnError(
                f"{line!r} stands in no group", where=f"{where}:{number}", fix="write # group: NAME above it"
            )
        if any(canonicalize_name(pin.project) == canonicalize_name(project) for pin in group):
            raise KilnError(f"{project} is pinned twice", where=f"{where}:{number}", fix="keep one line")
        try:
            Version(version)
        except InvalidVersion:
            raise KilnError(
                f"{line!r} names no version", where=f"{where}:{number}", fix="write name==version, and nothing else"
            ) from None
        group.append(Pin(project, version))
    return groups
