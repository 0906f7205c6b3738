"""``kiln artifacts`` end to end: a copy of this project whose every file comes from a server of the test."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from file_server import FileServer, closed_port, serving
from kiln.cli import known_artifacts
from kiln.matrix import Matrix, read_components
from kiln.plan import Planner
from kiln.project import Project
from kiln.store import Store
from kiln.wheels import wanted_pins

KILN = Path(sys.executable).parent / "kiln"

TOOLS = ("numpy==", "six==", "protobuf==", "h5py==")
FRAMEWORKS = {"keras", "tensorflow", "torch"}
"""What the matrix wants wheels of; the server offers the rest as source."""


@dataclass
class Copy:
    """A copy of this project that knows no other host than ``server``."""

    project: Project
    server: FileServer
    home: Path

    def kiln(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "KILN_STORE": str(self.project.store),
            "PYENV_ROOT": str(self.home / "pyenv"),
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_INDEX_URL": self.server.index,
            "DOCKER_HOST": f"unix://{self.home}/none.sock",
        }
        return subprocess.run(
            [str(KILN), "--root", str(self.project.root), *words],
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def rows(self) -> dict[str, tuple[str, str]]:
        """(group, state) of each file, as ``kiln artifacts list`` tells."""
        run = self.kiln("artifacts", "list")
        assert run.returncode == 0, run.stderr
        head, *rows = [line.split() for line in run.stdout.splitlines()]
        assert head == ["GROUP", "FILE", "FROM", "SIZE", "STATE"]
        return {row[1]: (row[0], " ".join(row[3:])) for row in rows}


def _interpreter(pyenv: Path, version: str) -> None:
    """An interpreter's prefix that can be packed in no time."""
    prefix = pyenv / "versions" / version
    for folder in ("bin", "include", "lib"):
        (prefix / folder).mkdir(parents=True)
    program = prefix / "bin" / f"python{version.rpartition('.')[0]}"
    answer = (
        f'{{"version": "{version}", "final": true, "maxunicode": {0x10FFFF}, '
        f'"prefix": "{prefix}", "base_prefix": "{prefix}"}}'
    )
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)


def _few_pins(project: Project) -> None:
    """Leaves as many packages as the stages need and these tests name."""
    for path in (project.images / "requirements").glob("*.txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        tools = lines.index("# group: tools") + 1
        end = next((at for at in range(tools, len(lines)) if lines[at].startswith("# group:")), len(lines))
        few = [line for line in lines[tools:end] if line.startswith(TOOLS)]
        path.write_text("\n".join([*lines[:tools], *few, *lines[end:], ""]), encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def seed(server: FileServer, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The copy that each test copies, with the lock that its server's index leads to."""
    home = tmp_path_factory.mktemp("seed")
    project = Project(home / "project", home / "store")
    for folder in ("images", "roles", "playbooks", "templates"):
        shutil.copytree(root / folder, project.root / folder, symlinks=True)
    shutil.copy2(root / "ansible.cfg", project.root)
    _few_pins(project)
    facts = read_components(project)[1]
    offered: dict[str, set[str]] = {}
    for want in wanted_pins(project, facts):
        project_name = canonicalize_name(want.pin.project)
        kind = "-py2.py3-none-any.whl" if project_name in FRAMEWORKS else ".tar.gz"
        offered.setdefault(project_name, set()).add(f"{want.pin.project.replace('-', '_')}-{want.pin.version}{kind}")
    for name, files in offered.items():
        server.put_project(name, *sorted(files))
    path = project.images / "channels" / "registry.yml"
    channel = yaml.safe_load(path.read_text(encoding="utf-8"))
    for group in channel["artifacts"].values():
        for row in group:
            if row["origin"] in ("debian", "url"):
                sha256 = server.put(f"/{row['file']}", f"content of {row['file']}".encode())
                row.update(origin="url", path=f"{server.url}/{row['file']}", sha256=sha256)
    path.write_text(yaml.safe_dump(channel), encoding="utf-8")
    made = Copy(project, server, home)
    run = made.kiln("artifacts", "lock")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "wrote images/locks/wheels.yml\n"
    for version in facts["python"]:
        _interpreter(home / "pyenv", version)
    return made


@pytest.fixture
def copy(seed: Copy, tmp_path: Path) -> Copy:
    shutil.copytree(seed.project.root, tmp_path / "project", symlinks=True)
    seed.server.asked.clear()
    return Copy(Project(tmp_path / "project", tmp_path / "store"), seed.server, seed.home)


def refused(run: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a refusal; a fetch may have told how far it came."""
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    said = [line for line in run.stderr.splitlines() if not line.startswith("fetch")]
    assert len(said) == 1, run.stderr
    return said[0]


def stored(project: Project) -> int:
    return sum(path.is_file() for path in (project.store / "blobs").rglob("*"))


def test_lock_list_fetch_verify(copy: Copy) -> None:
    assert {state for _, state in copy.rows().values()} == {"missing", "locked at first fetch"}

    run = copy.kiln("artifacts", "fetch", "--release", "all")
    assert run.returncode == 0, run.stderr
    rows = copy.rows()
    # From this machine's interpreters: their source is only fetched where it has none.
    assert {group for group, state in rows.values() if not state.endswith("stored")} == {"python-source"}
    assert set(copy.server.asked.values()) == {1}
    before = copy.server.asked.copy()

    assert copy.kiln("artifacts", "fetch", "--release", "all").returncode == 0
    assert copy.server.asked == before

    run = copy.kiln("artifacts", "verify")
    assert (run.returncode, run.stdout) == (0, "all stored artifacts are what they were\n")
    digest = hashlib.sha256(b"content of six-1.11.0.tar.gz").hexdigest()
    blob = copy.project.store / "blobs" / digest[:2] / digest
    blob.chmod(0o644)
    blob.write_bytes(b"rotten")
    run = copy.kiln("artifacts", "verify")
    assert run.returncode == 1
    told, total = run.stdout.splitlines()
    assert told.startswith(f"six-1.11.0.tar.gz: damaged (sha256 {hashlib.sha256(b'rotten').hexdigest()}, not {digest})")
    assert total == "1 damaged"
    assert copy.rows()["six-1.11.0.tar.gz"][1] == "missing"

    assert copy.kiln("artifacts", "fetch").returncode == 0
    assert copy.server.asked["/files/six-1.11.0.tar.gz"] == 2
    assert copy.kiln("artifacts", "verify").returncode == 0


def test_after_a_failure_the_next_fetch_goes_on(copy: Copy) -> None:
    copy.server.faults["/files/numpy-1.14.5.tar.gz"] = ["wrong"]
    said = refused(copy.kiln("artifacts", "fetch"))
    assert said.startswith("kiln: numpy: numpy-1.14.5.tar.gz has sha256 ")
    before, count = copy.server.asked.copy(), stored(copy.project)
    assert count > 15
    run = copy.kiln("artifacts", "fetch")
    assert run.returncode == 0, run.stderr
    assert run.stderr.startswith("fetching 1 files\n")
    assert dict(copy.server.asked - before) == {"/files/numpy-1.14.5.tar.gz": 1, "/simple/numpy/": 1}
    assert stored(copy.project) == count + 1


def test_an_unreachable_index_is_told_before_anything_is_fetched(copy: Copy) -> None:
    dark = f"127.0.0.1:{closed_port()}"
    said = refused(copy.kiln("artifacts", "fetch", PIP_INDEX_URL=f"http://{dark}/simple"))
    assert said.startswith(f"kiln: out of reach: {dark} (")
    assert "six-1.11.0.tar.gz" in said
    assert copy.server.asked == {}
    assert stored(copy.project) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_sentence(copy: Copy, small_disk: Path) -> None:
    said = refused(copy.kiln("artifacts", "fetch", KILN_STORE=str(small_disk / "store")))
    assert said.startswith(f"kiln: {small_disk}/store")
    assert "(No space left on device); make room there" in said
    assert list((small_disk / "store" / "incoming").iterdir()) == []


def test_the_committed_lock_agrees_and_a_broken_one_does_not(project: Project, root: Path) -> None:
    def check(where: Path) -> subprocess.CompletedProcess[str]:
        command = [str(KILN), "--root", str(where), "--store", str(project.store), "artifacts", "lock", "--check"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    run = check(root)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    lock = project.images / "locks" / "wheels.yml"
    lines = lock.read_text(encoding="utf-8").splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if "project: six," in line)
    lock.write_text("".join(lines[:at] + lines[at + 2 :]), encoding="utf-8")
    run = check(project.root)
    assert run.returncode == 1
    assert {line.partition(" ")[0] for line in run.stdout.splitlines()} == {"six"}
    assert "is pinned, not locked" in run.stdout


def test_an_unknown_channel_is_answered_with_the_known_ones(copy: Copy) -> None:
    for name in ("ftp", "../stages"):
        said = refused(copy.kiln("artifacts", "verify", "--channel", name))
        assert said.endswith(f"channel '{name}' does not exist; choose one of registry, upstream")


@pytest.mark.parametrize("channel", ["registry", "upstream"])
def test_every_artifact_that_an_image_needs_is_listed(project: Project, channel: str) -> None:
    matrix = Matrix(project, channel)
    wanted = [(release, image) for release in matrix.releases() for image in matrix.images(release)]
    plan = Planner(project, Store.of(project), matrix).plan(wanted, frozenset())
    listed = {(artifact.group, artifact.file) for artifact in known_artifacts(project, channel)}
    assert {(artifact.group, artifact.file) for artifact in plan.artifacts} <= listed


def test_a_lock_that_cannot_be_made_leaves_the_old_one(copy: Copy) -> None:
    lock = copy.project.images / "locks" / "wheels.yml"
    before = lock.read_bytes()
    path = copy.project.images / "requirements" / "python3.6.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("six==", "six==9."), encoding="utf-8")
    assert "no file of six==9." in refused(copy.kiln("artifacts", "lock"))
    assert lock.read_bytes() == before
