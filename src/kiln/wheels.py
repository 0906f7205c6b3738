"""The Python packages: which pins a project has, and the files locked for them in ``images/locks/wheels.yml``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from kiln.artifact import Artifact, is_sha256
from kiln.components import PythonVersion, Strict, Text, Texts
from kiln.errors import KilnError
from kiln.pins import SDIST_ENDINGS, Pin, read_pins
from kiln.project import Project
from kiln.tables import Table, read_table

if TYPE_CHECKING:
    from kiln.index import Index

Facts = Mapping[str, Mapping[str, Any]]
"""Component to version to its row."""

LOCK = "wheels.yml"

# What a node of any release can load: x86-64 and glibc 2.23 (Ubuntu 16.04), which is newer than manylinux1 needs.
PLATFORMS = ("manylinux1_x86_64", "linux_x86_64")


class LockRow(Strict, frozen=True):
    """One locked file and the Python series that install it."""

    file: Text
    project: Text
    sha256: str
    pythons: Texts


@dataclass(frozen=True)
class Wanted:
    """A pin of one group for one Python."""

    group: str
    python: PythonVersion
    pin: Pin


@lru_cache(maxsize=32)
def tags(python: PythonVersion) -> frozenset[Tag]:
    """Every wheel tag that the interpreter loads (PEP 425)."""
    major, minor = (int(part) for part in python.series.split("."))
    own = cpython_tags((major, minor), abis=[python.abi], platforms=PLATFORMS)
    shared = compatible_tags((major, minor), interpreter=f"cp{major}{minor}", platforms=PLATFORMS)
    return frozenset((*own, *shared))


def wanted_pins(project: Project, facts: Facts) -> list[Wanted]:
    """Every pin: those of ``images/requirements`` and those that follow from the component tables."""
    wanted: list[Wanted] = []
    for python in facts["python"].values():
        path = project.images / "requirements" / f"python{python.series}.txt"
        where = project.relative(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise KilnError(f"cannot be read ({error.strerror})", where=where, fix="restore it") from None
        for group, pins in read_pins(text, where).items():
            wanted += [Wanted(group, python, pin) for pin in pins]
        for group, pins in _component_pins(facts).items():
            wanted += [Wanted(group, python, pin) for pin in pins]
    return wanted


def _component_pins(facts: Facts) -> dict[str, list[Pin]]:
    groups: dict[str, list[Pin]] = {}
    for version, row in facts["tensorflow"].items():
        groups[f"tensorflow-{version}"] = [Pin("tensorflow", version), Pin("tensorboard", row.tensorboard)]
    for version, row in facts["pytorch"].items():
        if row.on_index:
            groups[f"pytorch-{version}"] = [Pin("torch", version), Pin("torchvision", row.torchvision)]
    for version, row in facts["keras"].items():
        extra = {"Keras-Applications": row.applications, "Keras-Preprocessing": row.preprocessing}
        groups[f"keras-{version}"] = [
            Pin("Keras", version),
            *(Pin(name, companion) for name, companion in extra.items() if companion),
        ]
    for version, row in facts["mkl"].items():
        groups[f"mkl-{version}"] = [
            Pin("mkl", version),
            Pin("mkl-include", row.include),
            Pin("intel-openmp", row.openmp),
        ]
    return groups


def make_lock(wanted: list[Wanted], index: Index) -> str:
    """The lock file's text for ``wanted``, asking the index for each pin."""
    groups: dict[str, dict[str, LockRow]] = {}
    for want in wanted:
        file, sha256 = index.choose(want.pin, tags(want.python))
        rows = groups.setdefault(want.group, {})
        known = rows.get(file)
        series = [*(known.pythons if known else []), want.python.series]
        rows[file] = LockRow(file, want.pin.project, sha256, series)
    lines = [
        "# The files that the pins lead to on the Python index, by sha256. Written by kiln artifacts lock.",
        "groups:",
    ]
    for group in sorted(groups):
        lines.append(f"  {group}:")
        for row in sorted(groups[group].values(), key=lambda row: row.file.lower()):
            pythons = ", ".join(f'"{series}"' for series in row.pythons)
            lines.append(f"    - {{file: {row.file}, project: {row.project},")
            lines.append(f"       pythons: [{pythons}], sha256: {row.sha256}}}")
    return "\n".join(lines) + "\n"


def read_lock(project: Project) -> dict[str, tuple[Artifact, ...]]:
    """Group to locked artifacts; none where nothing was locked yet."""
    path = project.images / "locks" / LOCK
    if not path.is_file():
        return {}
    table = read_table(path, project.root)
    for key in table.data:
        if key != "groups":
            raise KilnError(f"unknown key {key}", where=table.where(key), fix="run kiln artifacts lock")
    if not table.data.get("groups"):
        return {}
    return {group: _group(rows, group, table) for group, rows in table.entries(list[LockRow], "groups").items()}


def _group(rows: list[LockRow], group: str, table: Table) -> tuple[Artifact, ...]:
    if not rows:
        raise KilnError(f"group {group} is empty", where=table.where("groups", group), fix="run kiln artifacts lock")
    artifacts = tuple(
        Artifact(
            file=row.file,
            sha256=row.sha256,
            origin="index",
            path=row.project,
            group=group,
            source="the Python index",
            pythons=tuple(row.pythons),
        )
        for row in rows
    )
    for index, artifact in enumerate(artifacts):
        where = table.where("groups", group, index)
        if not is_sha256(artifact.sha256 or ""):
            raise KilnError(
                f"artifact {artifact.file} has sha256 {artifact.sha256!r}, not 64 lower-case hex digits",
                where=where,
                fix="run kiln artifacts lock",
            )
        try:
            version_of(artifact)
            if "/" in artifact.file:
                raise ValueError(artifact.file)
        except ValueError:
            raise KilnError(
                f"{artifact.file} is no wheel or source archive of {artifact.path}",
                where=where,
                fix="run kiln artifacts lock",
            ) from None
    return artifacts


def version_of(artifact: Artifact) -> Version:
    """The version that a wheel's or source archive's name gives; raises ValueError where it gives none."""
    if artifact.file.endswith(".whl"):
        return parse_wheel_filename(artifact.file)[1]
    ending = next((ending for ending in SDIST_ENDINGS if artifact.file.endswith(ending)), "")
    return Version(artifact.file.removesuffix(ending)[len(artifact.path) + 1 :])


def _project(artifact: Artifact) -> str:
    return artifact.path if artifact.origin == "index" else parse_wheel_filename(artifact.file)[0]


def requirements(artifacts: list[Artifact], series: str) -> str:
    """pip's requirements, with hashes, for what Python ``series`` installs of ``artifacts``."""
    return "".join(sorted(_requirement(artifact) for artifact in artifacts if series in artifact.pythons))


@lru_cache(maxsize=1024)
def _requirement(artifact: Artifact) -> str:
    return f"{_project(artifact)}=={version_of(artifact)} --hash=sha256:{artifact.sha256}\n"


def requirement_files(artifacts: Iterable[tuple[str, Artifact]]) -> dict[str, str]:
    """Path GROUP/requirements-pythonX.Y.txt to its text, for the Python packages among (group, artifact)."""
    groups: dict[str, list[Artifact]] = {}
    for name, artifact in artifacts:
        groups.setdefault(name, []).append(artifact)
    return {
        f"{name}/requirements-python{series}.txt": requirements(group, series)
        for name, group in groups.items()
        for series in sorted({series for artifact in group for series in artifact.pythons})
    }


def check_lock(project: Project, facts: Facts) -> list[str]:
    """Where the lock and the pins disagree, a sentence each; empty when the lock is what the pins lead to."""
    locked = {
        (group, series, canonicalize_name(artifact.path), version_of(artifact))
        for group, artifacts in read_lock(project).items()
        for artifact in artifacts
        for series in artifact.pythons
    }
    wanted = {
        (want.group, want.python.series, canonicalize_name(want.pin.project), Version(want.pin.version))
        for want in wanted_pins(project, facts)
    }
    return [
        f"{name} {version} ({group}, Python {series}) is {'pinned, not locked' if missing else 'locked, not pinned'}"
        for missing, difference in ((True, wanted - locked), (False, locked - wanted))
        for group, series, name, version in sorted(difference)
    ]
