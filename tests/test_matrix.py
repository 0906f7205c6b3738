"""The matrix accepts the project's tables, and refuses broken ones in one sentence with file, line and the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from kiln.errors import KilnError
from kiln.matrix import Matrix
from kiln.project import Project
from kiln.stages import StageTable

STAGES = "images/stages.yml"


@dataclass(frozen=True)
class Broken:
    """A table with one thing wrong: the first match of ``find`` in ``file`` becomes ``put``."""

    name: str
    file: str
    find: str
    put: str
    says: str
    """Pattern that the refusal must match."""
    channel: str = "registry"
    line_of: str | None = None
    """Text whose line the refusal must name."""


BROKEN = [
    Broken(**row) for row in yaml.safe_load(Path(__file__).with_name("broken_tables.yml").read_text(encoding="utf-8"))
]


def resolve_everything(project: Project, channel: str) -> None:
    matrix = Matrix(project, channel)
    for release in matrix.releases():
        for image in matrix.images(release):
            matrix.resolve(release, image)


@pytest.mark.parametrize("channel", ["registry", "upstream"])
def test_the_projects_own_tables_are_accepted(project: Project, channel: str) -> None:
    resolve_everything(project, channel)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_table_is_refused_with_place_and_way_out(project: Project, broken: Broken) -> None:
    path = project.root / broken.file
    text = path.read_text(encoding="utf-8")
    assert broken.find in text, "the table no longer holds what this test breaks"
    changed = text.replace(broken.find, broken.put, 1)
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(KilnError, match=broken.says) as refused:
        resolve_everything(project, broken.channel)
    said = str(refused.value)
    assert "\n" not in said
    assert refused.value.fix
    place = re.match(r"(images/[\w./-]+\.yml):(\d+): |images/locks", said)
    assert place, said
    if broken.line_of is not None:
        line = changed.splitlines()[int(place[2]) - 1]
        assert broken.line_of in line, f"{said}\nnames line {line!r}"


def test_at_least_forty_broken_tables_are_refused() -> None:
    assert len({broken.name for broken in BROKEN}) >= 40


@pytest.mark.parametrize(
    ("release", "image", "channel", "says"),
    [
        ("9.9", "cpu", "registry", r"release '9\.9' does not exist; choose one of 1\.1, 1\.2"),
        ("1.2", "tpu", "registry", r"image tpu is not in release 1\.2; choose one of cuda91, cuda80, cpu"),
        ("1.2", "cpu", "ftp", r"channel 'ftp' does not exist; choose one of registry, upstream"),
        ("../1.2", "cpu", "registry", r"release '\.\./1\.2' does not exist"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(
    project: Project, release: str, image: str, channel: str, says: str
) -> None:
    with pytest.raises(KilnError, match=says):
        Matrix(project, channel).resolve(release, image)


def test_the_registry_declares_what_it_substitutes(project: Project) -> None:
    spec = Matrix(project, "registry").resolve("1.2", "cuda91")
    assert set(spec.substitutions) == {"agent", "base", "caffe", "cuda", "cudnn", "digits", "pytorch", "tensorflow"}
    assert spec.components["pytorch"].version == spec.row.pytorch
    assert spec.components["pytorch"].installed != spec.row.pytorch
    assert spec.components["keras"].verdict == "exact"


def test_upstream_substitutes_nothing(project: Project) -> None:
    matrix = Matrix(project, "upstream")
    for release in matrix.releases():
        for image in matrix.images(release):
            assert matrix.resolve(release, image).substitutions == {}


STAGE_TABLES = [
    ("unknown key", "stages:", "phases:", "unknown key phases"),
    ("unknown stage key", "kind: bootstrap", "kind: bootstrap\n    colour: red", "unknown key colour"),
    ("stage twice", "name: python\n", "name: base\n", "stage base stands twice"),
    ("no playbook", "name: keras\n", "name: theano\n", "stage theano has no playbook"),
    ("build without parent", "    kind: build\n    parent: builder\n", "    kind: build\n", "names no parent"),
    ("unknown parent", "parent: builder\n", "parent: nobody\n", "names nobody, which is no earlier stage"),
]


@pytest.mark.parametrize(("name", "find", "put", "says"), STAGE_TABLES, ids=[row[0] for row in STAGE_TABLES])
def test_a_broken_stage_table_is_refused(project: Project, name: str, find: str, put: str, says: str) -> None:
    path: Path = project.root / STAGES
    text = path.read_text(encoding="utf-8")
    assert find in text
    path.write_text(text.replace(find, put, 1), encoding="utf-8")
    with pytest.raises(KilnError, match=says) as refused:
        StageTable(project)
    assert re.match(r"images/stages\.yml:\d+: ", str(refused.value))
