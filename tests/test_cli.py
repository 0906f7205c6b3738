"""The command line: one sentence and exit code 2 for bad input, never a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kiln.project import Project

KILN = Path(sys.executable).parent / "kiln"


def kiln(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KILN, *words], cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def refused(run: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a refusal."""
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1, run.stderr
    return lines[0]


def test_version(root: Path) -> None:
    run = kiln("--version", cwd=root)
    assert run.returncode == 0
    assert run.stdout.startswith("kiln, version ")


@pytest.mark.engine
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["plan", "--release", "9.9"], "release '9.9' does not exist; choose one of 1.1, 1.2"),
        (["plan", "--image", "tpu"], "image 'tpu' is not in release 1.2; choose one of cuda91, cuda80, cpu"),
        (["plan", "--channel", "ftp"], "channel 'ftp' does not exist; choose one of registry, upstream"),
        (["bake", "--release", "9.9"], "release '9.9' does not exist"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(root: Path, words: list[str], says: str) -> None:
    assert says in refused(kiln(*words, cwd=root))


def test_broken_yaml_is_named_with_its_line(project: Project) -> None:
    (project.images / "releases" / "1.2.yml").write_text('release: "1.2"\nimages: [\n', encoding="utf-8")
    said = refused(kiln("--root", str(project.root), "plan", cwd=project.root))
    assert "images/releases/1.2.yml:3: is not valid YAML" in said


@pytest.mark.parametrize(
    "text", ["images: &a {cuda91: *a}\n", "images: &a [*a]\n", f"images: {'[' * 2000}{']' * 2000}\n"]
)
def test_yaml_without_an_end_is_refused(project: Project, text: str) -> None:
    (project.images / "releases" / "1.2.yml").write_text(text, encoding="utf-8")
    said = refused(kiln("--root", str(project.root), "plan", cwd=project.root))
    assert "images/releases/1.2.yml: is nested without end" in said


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    assert "run kiln inside a checkout" in refused(kiln("plan", cwd=tmp_path, KILN_ROOT=""))


@pytest.mark.parametrize("command", ["plan", "bake"])
def test_a_missing_engine_is_named_with_the_way_out(root: Path, tmp_path: Path, command: str) -> None:
    said = refused(
        kiln("--store", str(tmp_path / "store"), command, cwd=root, DOCKER_HOST=f"unix://{tmp_path}/no.sock")
    )
    assert "no Docker engine answers" in said
    assert "start it" in said


def test_a_missing_packer_is_named_with_the_way_out(root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("env", "git", "docker"):
        if found := shutil.which(tool):
            (bare / tool).symlink_to(found)
    said = refused(kiln("plan", cwd=root, PATH=str(bare)))
    assert said == "kiln: PATH: packer is not installed; run make setup, or install the packer package"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_store_without_permission_is_named(root: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.touch()
    said = refused(kiln("--store", str(store), "plan", cwd=root))
    assert str(store) in said


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(root: Path, shell: str) -> None:
    run = kiln("completion", shell, cwd=root)
    assert run.returncode == 0
    assert "_KILN_COMPLETE" in run.stdout


def test_help_lists_every_target_of_the_makefile(root: Path) -> None:
    run = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True)
    for target in ("images", "test", "test-all", "plan", "setup"):
        assert f"make {target} " in run.stdout
