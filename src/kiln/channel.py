"""The channel tables: where artifacts come from, and what stands in for what cannot be had there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kiln.artifact import Artifact
from kiln.components import Strict
from kiln.errors import KilnError
from kiln.tables import Table, read_table

_HEX = frozenset("0123456789abcdef")


class Base(Strict, frozen=True):
    """The distribution that the images of a channel stand on."""

    kind: Literal["mmdebstrap", "tarball"]
    distribution: Literal["debian-12", "ubuntu-16"]
    suite: str
    interpreter: str
    """The target's Python that Ansible's modules run on."""
    source: str
    suites: list[str] = []
    components: list[str] = []
    include: list[str] = []
    """Packages beyond the smallest system, a tarball's included."""
    mirrors: dict[str, str] = {}
    """Suite to the address of its archive; suites that it lacks come from the machine's own mirrors."""
    group: str | None = None


class Fallback(Strict, frozen=True):
    """A group that takes another's place, and where it comes from."""

    group: str
    source: str


class Delivery(Strict, frozen=True):
    """How the channel delivers one component: from an artifact group, with further settings for the roles."""

    source: str
    group: str | None = None
    fallback: Fallback | None = None
    """What takes its place where this machine cannot pack what the group holds."""
    settings: dict[str, Any] = {}


class Substitution(Strict, frozen=True):
    """What the channel installs, instead of what the release asks for, and why."""

    component: str
    instead_of: list[str]
    why: str
    by: str | None = None
    """Version of the same component that is installed instead; none where the same version comes from elsewhere."""
    device: Literal["gpu", "cpu"] | None = None


class ArtifactRow(Strict, frozen=True):
    """One file of an artifact group."""

    file: str
    origin: Literal["index", "debian", "url", "host"]
    path: str
    source: str
    sha256: str | None = None
    lock: Literal["first-fetch"] | None = None


@dataclass(frozen=True)
class Channel:
    """One channel, its table checked."""

    name: str
    table: Table
    base: Base
    components: dict[str, Delivery]
    substitutions: tuple[Substitution, ...]
    groups: dict[str, tuple[Artifact, ...]]

    def substitution(self, component: str, version: str, device: str) -> Substitution | None:
        """The substitution that applies to ``component`` at ``version`` on ``device``, if any."""
        for entry in self.substitutions:
            if entry.component == component and version in entry.instead_of and entry.device in (None, device):
                return entry
        return None


def read_channel(path: Path, root: Path) -> Channel:
    """Reads ``images/channels/NAME.yml``; raises KilnError with file and line for anything that does not fit."""
    table = read_table(path, root)
    for key in table.data:
        if key not in ("channel", "base", "components", "substitutions", "artifacts"):
            raise KilnError(f"unknown key {key}", where=table.where(key), fix="remove it")
    for key in ("channel", "base", "components"):
        if key not in table.data:
            raise KilnError(f"key {key} is missing", where=table.where(), fix="add it")
    if table.data["channel"] != path.stem:
        raise KilnError(
            f"says it is channel {table.data['channel']}", where=table.where("channel"), fix=f"write {path.stem}"
        )
    substitutions = tuple(
        table.convert(Substitution, "substitutions", index) for index in range(len(table.data.get("substitutions", [])))
    )
    return Channel(
        name=path.stem,
        table=table,
        base=table.convert(Base, "base"),
        components=table.entries(Delivery, "components"),
        substitutions=substitutions,
        groups={group: _group(table, group) for group in table.data.get("artifacts", {})},
    )


def _group(table: Table, group: str) -> tuple[Artifact, ...]:
    rows = table.convert(list[ArtifactRow], "artifacts", group)
    seen: set[str] = set()
    artifacts = []
    for index, row in enumerate(rows):
        where = table.where("artifacts", group, index)
        if "/" in row.file or row.file in ("", ".", ".."):
            raise KilnError(f"artifact file {row.file!r} is not a plain file name", where=where, fix="drop the folder")
        if row.file in seen:
            raise KilnError(f"artifact {row.file} stands twice in group {group}", where=where, fix="keep one")
        seen.add(row.file)
        if row.origin == "url" and not row.path.startswith(("https://", "http://")):
            raise KilnError(f"artifact {row.file} has path {row.path!r}, no URL", where=where, fix="write https://…")
        _check_digest(row, where)
        artifacts.append(
            Artifact(file=row.file, sha256=row.sha256, origin=row.origin, path=row.path, group=group, source=row.source)
        )
    return tuple(artifacts)


def _check_digest(row: ArtifactRow, where: str) -> None:
    if row.origin == "host":
        if row.sha256 or row.lock:
            raise KilnError(
                f"artifact {row.file} is packed on this machine and cannot have a checksum here",
                where=where,
                fix="remove sha256 and lock",
            )
        return
    if row.sha256 is None and row.lock is None:
        raise KilnError(
            f"artifact {row.file} has no sha256", where=where, fix="give it one, or mark it lock: first-fetch"
        )
    if row.sha256 is not None and row.lock is not None:
        raise KilnError(f"artifact {row.file} has a sha256 and a lock", where=where, fix="keep one of them")
    if row.sha256 is not None and (len(row.sha256) != 64 or not set(row.sha256) <= _HEX):
        raise KilnError(
            f"artifact {row.file} has sha256 {row.sha256!r}, not 64 lower-case hex digits",
            where=where,
            fix="correct it",
        )
