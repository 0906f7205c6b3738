"""One file that a stage needs from outside."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Origin = Literal["index", "debian", "url", "host"]


def is_sha256(text: str) -> bool:
    """Whether ``text`` is a checksum as the tables write it: 64 lower-case hex digits."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


@dataclass(frozen=True)
class Artifact:
    """A file by name and checksum, and where it can be had."""

    file: str
    """File name, without a folder."""
    sha256: str | None
    """64 hex digits; none: locked at the first fetch, or packed on this machine."""
    origin: Origin
    """index: the machine's Python index; debian: its Debian mirror; url: as it says; host: made from this machine."""
    path: str
    """index: the project's name; debian: path below the archive's root; url: the URL; host: what to pack."""
    group: str
    source: str
    """Where the values come from, in words."""
    pythons: tuple[str, ...] = ()
    """Python series that install it; empty where it is no Python package."""

    @property
    def key(self) -> str:
        """The name under which a first checksum is locked."""
        return f"{self.origin} {self.path}" if self.origin == "url" else f"{self.origin} {self.path} {self.file}"
