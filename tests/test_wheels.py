"""The lock of the Python packages: made from an index, and checked against the pins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from file_server import FileServer, serving
from kiln.artifact import Artifact
from kiln.components import PythonVersion
from kiln.errors import KilnError
from kiln.index import Index
from kiln.matrix import read_components
from kiln.pins import Pin
from kiln.project import Project
from kiln.wheels import Wanted, check_lock, make_lock, read_lock, requirements, version_of, wanted_pins

PY2 = PythonVersion("2.7", "cp27mu", "py2", "a test")
PY3 = PythonVersion("3.6", "cp36m", "py3", "a test")

PINS = [
    Wanted(group, python, pin)
    for python in (PY2, PY3)
    for group, pin in (
        ("tools", Pin("numpy", "1.14.5")),
        ("tools", Pin("Six", "1.11.0")),
        ("qsctl", Pin("tqdm", "4.0")),
    )
]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as served:
        yield served


def write_lock(project: Project, text: str) -> None:
    (project.images / "locks" / "wheels.yml").write_text(text, encoding="utf-8")


def wrong(project: Project) -> list[str]:
    return check_lock(project, read_components(project)[1])


def test_a_lock_holds_what_each_interpreter_installs(server: FileServer, project: Project) -> None:
    numpy = server.put_project(
        "numpy",
        "numpy-1.14.5-cp27-cp27m-manylinux1_x86_64.whl",
        "numpy-1.14.5-cp27-cp27mu-manylinux1_x86_64.whl",
        "numpy-1.14.5-cp36-cp36m-manylinux1_x86_64.whl",
        "numpy-1.14.5.zip",
    )
    six = server.put_project("six", "six-1.11.0-py2.py3-none-any.whl", "six-1.11.0.tar.gz")
    tqdm = server.put_project("tqdm", "tqdm-4.0-py3-none-any.whl", "tqdm-4.0.tar.gz")
    text = make_lock(PINS, Index(urls=[server.index]))
    write_lock(project, text)
    found = {
        (artifact.group, artifact.file): (artifact.path, artifact.pythons, artifact.sha256)
        for artifacts in read_lock(project).values()
        for artifact in artifacts
    }
    assert found == {
        ("tools", file): (name, pythons, digests[file])
        for file, name, pythons, digests in (
            ("numpy-1.14.5-cp27-cp27mu-manylinux1_x86_64.whl", "numpy", ("2.7",), numpy),
            ("numpy-1.14.5-cp36-cp36m-manylinux1_x86_64.whl", "numpy", ("3.6",), numpy),
            ("six-1.11.0-py2.py3-none-any.whl", "Six", ("2.7", "3.6"), six),
        )
    } | {
        ("qsctl", "tqdm-4.0.tar.gz"): ("tqdm", ("2.7",), tqdm["tqdm-4.0.tar.gz"]),
        ("qsctl", "tqdm-4.0-py3-none-any.whl"): ("tqdm", ("3.6",), tqdm["tqdm-4.0-py3-none-any.whl"]),
    }
    written = re.findall(r"(?m)^  (\w+):$|file: ([^,]+),", text)
    assert [group or file for group, file in written] == [
        "qsctl",
        "tqdm-4.0-py3-none-any.whl",
        "tqdm-4.0.tar.gz",
        "tools",
        "numpy-1.14.5-cp27-cp27mu-manylinux1_x86_64.whl",
        "numpy-1.14.5-cp36-cp36m-manylinux1_x86_64.whl",
        "six-1.11.0-py2.py3-none-any.whl",
    ]


def test_the_same_pins_give_the_same_text(server: FileServer) -> None:
    server.put_project("numpy", "numpy-1.14.5.zip")
    server.put_project("six", "six-1.11.0.tar.gz")
    server.put_project("tqdm", "tqdm-4.0.tar.gz")
    first, second = (make_lock(PINS, Index(urls=[server.index])) for _ in range(2))
    assert first == second


def test_what_pip_gets_is_pinned_by_hash(server: FileServer) -> None:
    artifacts = [
        Artifact(file, digest * 64, "index", project, "tools", "a test", pythons)
        for file, project, digest, pythons in (
            ("numpy-1.14.5-cp27-cp27mu-manylinux1_x86_64.whl", "numpy", "a", ("2.7",)),
            ("six-1.11.0-py2.py3-none-any.whl", "Six", "b", ("2.7", "3.6")),
            ("backports.functools_lru_cache-1.5.tar.gz", "backports.functools-lru-cache", "c", ("2.7",)),
        )
    ]
    assert requirements(artifacts, "3.6") == f"Six==1.11.0 --hash=sha256:{'b' * 64}\n"
    assert requirements(artifacts, "2.7").splitlines() == [
        f"Six==1.11.0 --hash=sha256:{'b' * 64}",
        f"backports.functools-lru-cache==1.5 --hash=sha256:{'c' * 64}",
        f"numpy==1.14.5 --hash=sha256:{'a' * 64}",
    ]
    assert str(version_of(artifacts[2])) == "1.5"


def test_the_committed_lock_is_what_the_pins_lead_to(root: Path, tmp_path: Path) -> None:
    committed = Project(root, tmp_path)
    assert wrong(committed) == []
    assert len(read_lock(committed)["tools"]) > 100


def test_a_pin_without_a_row_is_told(project: Project) -> None:
    path = project.images / "requirements" / "python3.6.txt"
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n# group: tools\nnew==1.0\n")
    assert wrong(project) == ["new 1.0 (tools, Python 3.6) is pinned, not locked"]


def test_a_row_without_a_pin_is_told(project: Project) -> None:
    path = project.images / "requirements" / "python2.7.txt"
    text = path.read_text(encoding="utf-8")
    version = re.search(r"^six==(.+)$", text, re.MULTILINE)
    assert version is not None
    path.write_text(text.replace(version[0] + "\n", ""), encoding="utf-8")
    assert wrong(project) == [f"six {version[1]} (tools, Python 2.7) is locked, not pinned"]


def test_a_moved_pin_is_told_from_both_sides(project: Project) -> None:
    path = project.images / "requirements" / "python2.7.txt"
    path.write_text(re.sub(r"(?m)^six==.+$", "six==9.9", path.read_text(encoding="utf-8")), encoding="utf-8")
    said = wrong(project)
    assert said[0] == "six 9.9 (tools, Python 2.7) is pinned, not locked"
    assert said[1].endswith("(tools, Python 2.7) is locked, not pinned")
    assert len(said) == 2


def test_a_component_s_version_is_a_pin(project: Project) -> None:
    path = project.images / "components" / "keras.yml"
    text, count = re.subn(r'applications: "[^"]+"', 'applications: "9.9"', path.read_text(encoding="utf-8"))
    assert count
    path.write_text(text, encoding="utf-8")
    assert any(line.startswith("keras-applications 9.9 (keras-") and "pinned" in line for line in wrong(project))


def test_pins_of_no_interpreter_file_are_one_sentence(project: Project) -> None:
    (project.images / "requirements" / "python3.6.txt").unlink()
    with pytest.raises(KilnError, match=r"images/requirements/python3\.6\.txt: cannot be read"):
        wanted_pins(project, read_components(project)[1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("groups: []\nmore: 1\n", "images/locks/wheels.yml:2: unknown key more"),
        ("groups: [1]\n", "images/locks/wheels.yml:1: groups must be a mapping"),
        ("groups:\n  tools: 1\n", "images/locks/wheels.yml:2: expected"),
        ("groups:\n  tools:\n    - {file: a}\n", "images/locks/wheels.yml:3: key project is missing"),
        ("groups:\n  tools: []\n", "images/locks/wheels.yml:2: group tools is empty"),
    ],
)
def test_a_lock_that_was_spoiled_by_hand_is_one_sentence(project: Project, text: str, says: str) -> None:
    write_lock(project, text)
    with pytest.raises(KilnError) as caught:
        read_lock(project)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"file": "a-1.exe"}, "a-1.exe is no wheel or"),
        ({"file": "a-1.whl"}, "a-1.whl is no wheel or"),
        ({"file": "a-x.zip"}, "a-x.zip is no wheel or"),
        ({"file": ""}, "file must not be empty"),
        ({"file": "a/1.zip"}, "a/1.zip is no wheel or"),
        ({"pythons": []}, "pythons must not be empty"),
        ({"sha256": "x"}, "artifact a-1.zip has sha256 'x', not 64 lower-case hex digits"),
        ({"sha256": ""}, "artifact a-1.zip has sha256 '', not 64 lower-case hex digits"),
    ],
)
def test_a_locked_file_is_read_strictly(project: Project, change: dict[str, object], says: str) -> None:
    row = {"file": "a-1.zip", "project": "a", "pythons": ["2.7"], "sha256": "0" * 64}
    write_lock(project, yaml.safe_dump({"groups": {"tools": [row]}}))
    assert read_lock(project)["tools"][0].file == row["file"]
    write_lock(project, yaml.safe_dump({"groups": {"tools": [row | change]}}))
    with pytest.raises(KilnError, match=re.escape(says)) as caught:
        read_lock(project)
    assert str(caught.value).startswith("images/locks/wheels.yml:")


@pytest.mark.parametrize("text", ["groups:\n", "groups: {}\n", None])
def test_an_empty_lock_locks_nothing(project: Project, text: str | None) -> None:
    if text is None:
        (project.images / "locks" / "wheels.yml").unlink()
    else:
        write_lock(project, text)
    assert read_lock(project) == {}
    assert any("is pinned, not locked" in line for line in wrong(project))
