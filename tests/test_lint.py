"""The linters, as tests that cannot be passed over."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

BIN = Path(sys.executable).parent


def tracked(root: Path, *patterns: str) -> list[str]:
    """Files that git tracks or would track, below the checkout's root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (root / name).is_file()]


def shell_scripts(root: Path) -> list[str]:
    """Every tracked file that a POSIX shell runs; a template is none until it is rendered."""
    found = []
    for name in tracked(root, ":!*.j2"):
        with (root / name).open("rb") as stream:
            if re.match(rb"#!\s*/(usr/)?bin/(env )?(ba|da)?sh\b", stream.readline(80)):
                found.append(name)
    return found


LINTERS: dict[str, list[str]] = {
    "ruff check": [str(BIN / "ruff"), "check", "."],
    "ruff format": [str(BIN / "ruff"), "format", "--check", "."],
    "mypy": [str(BIN / "mypy")],
    "ansible-lint": [str(BIN / "ansible-lint"), "--offline", "playbooks", "roles", "molecule"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("linter", LINTERS)
def test_linter_is_content(root: Path, linter: str) -> None:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_CONFIG": str(root / "ansible.cfg")}
    run = subprocess.run(LINTERS[linter], cwd=root, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, f"{run.stdout[-6000:]}\n{run.stderr[-3000:]}"


def test_yamllint_is_content(root: Path) -> None:
    command = [str(BIN / "yamllint"), "--strict", *tracked(root, "*.yml", "*.yaml")]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_shellcheck_is_content(root: Path) -> None:
    scripts = shell_scripts(root)
    assert "scripts/setup" in scripts
    run = subprocess.run(["shellcheck", *scripts], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_no_linter_is_told_to_look_away(root: Path) -> None:
    assert tracked(root, ".ansible-lint-ignore", "*.ansible-lint-ignore", ".yamlignore", ".shellcheckrc") == []
    words = ("no" + "qa", "type: *" + "ignore", "shellcheck " + "disable", "yamllint " + "disable")
    waiver = re.compile("|".join((*words, "ignore_" + "errors: *(true|yes)")))
    found = [
        f"{name}: {line.strip()}"
        for name in tracked(root)
        if name != "tests/test_lint.py" and Path(name).suffix in ("", ".py", ".yml", ".sh", ".j2", ".toml")
        for line in (root / name).read_text(encoding="utf-8", errors="replace").splitlines()
        if waiver.search(line)
    ]
    assert found == []


def test_no_mirror_and_no_path_of_a_machine_is_committed(root: Path) -> None:
    mirrors = "|".join(
        ("deb" + r"\.debian\.org", "security" + r"\.debian\.org", "pypi" + r"\.org", "pythonhosted" + r"\.org")
    )
    mirrors += "|" + "|".join(("registry" + r"\.npmjs", "registry-1" + r"\.docker", "docker" + r"\.io/"))
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in tracked(root)
        for number, line in enumerate((root / name).read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if re.search(mirrors, line) or re.search(r"(?<![\w.])/(root/\.pyenv|work)/", line)
    ]
    assert found == []


def test_the_makefile_stays_short(root: Path) -> None:
    assert len((root / "Makefile").read_text(encoding="utf-8").splitlines()) < 150


def test_every_role_documents_its_variables(root: Path) -> None:
    roles = sorted(path for path in (root / "roles").iterdir() if path.is_dir())
    assert roles
    for role in roles:
        assert (role / "meta" / "argument_specs.yml").is_file(), f"{role.name} has no meta/argument_specs.yml"
        # A role may be no more than another role's with values of its own.
        depends = (role / "meta" / "main.yml").is_file() and yaml.safe_load(
            (role / "meta" / "main.yml").read_text(encoding="utf-8")
        )["dependencies"]
        assert depends or (role / "tasks" / "main.yml").is_file(), f"{role.name} does nothing"
