"""The channel tables: where artifacts come from, and what stands in for what cannot be had there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kiln.artifact import Artifact, is_sha256
from kiln.components import Strict, Text, Texts
from kiln.errors import KilnError
from kiln.tables import Table, read_table


class Base(Strict, frozen=True):
    """The distribution that the images of a channel stand on."""

    kind: Literal["mmdebstrap", "tarball"]
    distribution: Literal["debian-12", "ubuntu-16"]
    suite: Text
    interpreter: Text
    """The target's Python that Ansible's modules run on."""
    source: Text
    suites: list[Text] = []
    components: list[Text] = []
    include: list[Text] = []
    """Packages beyond the smallest system, a tarball's included."""
    mirrors: dict[Text, Text] = {}
    """Suite to the address of its archive; suites that it lacks come from the machine's own mirrors."""
    group: Text | None = None


class Fallback(Strict, frozen=True):
    """A group that takes another's place, and where it comes from."""

    group: Text
    source: Text


class Delivery(Strict, frozen=True):
    """How the channel delivers one component: from an artifact group, with further settings for the roles."""

    source: Text
    group: Text | None = None
    fallback: Fallback | None = None
    """What takes its place where this machine cannot pack what the group holds."""
    settings: dict[Text, Any] = {}


class NoSettings(Strict, frozen=True):
    """Of a component whose roles need nothing more."""


class CaffeSettings(Strict, frozen=True):
    builder: Text
    """Stage that it is built in."""
    blas: Text
    """The BLAS of the image."""
    build_blas: Texts
    """Those that one build makes trees for."""
    run_time_blas: list[Text]
    """Those whose libraries come by apt."""
    cpu_only: bool
    mkldnn: bool
    mkl_group: Text | None


class AgentSettings(Strict, frozen=True):
    stand_in: Text | None
    """Build stage whose product it is."""
    confd: str
    """Its program; empty where ``archive`` holds it."""
    archive: str


class DigitsSettings(Strict, frozen=True):
    stand_in: Text | None
    """Build stage whose product they are."""
    path: Text
    """Folder with the files, in MNIST's format."""


class RepositorySettings(Strict, frozen=True):
    """An apt repository of NVIDIA, or its stand-in."""

    stand_in: Text | None
    """Build stage whose product answers for ``host``."""
    scheme: Literal["http", "https"]
    host: Text
    path: Text
    key: Text
    fingerprints: list[Text]
    fingerprint_file: Text | None
    enabled: bool


SETTINGS: dict[str, type[Strict]] = {
    "agent": AgentSettings,
    "caffe": CaffeSettings,
    "cuda": RepositorySettings,
    "cudnn": RepositorySettings,
    "digits": DigitsSettings,
}
"""Component to what its settings come out as; the others have none."""


class Substitution(Strict, frozen=True):
    """What the channel installs, instead of what the release asks for, and why."""

    component: Text
    instead_of: list[Text]
    why: Text
    by: Text | None = None
    """Version of the same component that is installed instead; none where the same version comes from elsewhere."""
    device: Literal["gpu", "cpu"] | None = None


class ArtifactRow(Strict, frozen=True):
    """One file of an artifact group."""

    file: Text
    origin: Literal["index", "debian", "url", "host"]
    path: Text
    source: Text
    sha256: str | None = None
    lock: Literal["first-fetch"] | None = None


class ChannelTable(Strict, frozen=True):
    """The shape of a channel's table; each entry is then read by itself, for its line."""

    channel: str
    base: dict[str, Any]
    components: dict[Any, Any]
    substitutions: list[Any] = []
    artifacts: dict[str, Any] = {}


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
    shape = table.convert(ChannelTable)
    if shape.channel != path.stem:
        raise KilnError(f"says it is channel {shape.channel}", where=table.where("channel"), fix=f"write {path.stem}")
    substitutions = tuple(
        table.convert(Substitution, "substitutions", index) for index in range(len(shape.substitutions))
    )
    return Channel(
        name=path.stem,
        table=table,
        base=table.convert(Base, "base"),
        components=table.entries(Delivery, "components"),
        substitutions=substitutions,
        groups={group: _group(table, group) for group in shape.artifacts},
    )


def _group(table: Table, group: str) -> tuple[Artifact, ...]:
    rows = table.convert(list[ArtifactRow], "artifacts", group)
    if not rows:
        raise KilnError(
            f"group {group} is empty", where=table.where("artifacts", group), fix="list its files, or drop it"
        )
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
    if row.sha256 is not None and not is_sha256(row.sha256):
        raise KilnError(
            f"artifact {row.file} has sha256 {row.sha256!r}, not 64 lower-case hex digits",
            where=where,
            fix="correct it",
        )
