"""kiln verify local: run on a node itself, with what the node has: its own Python, and a folder with kiln in it."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiln.checks.booting import boot
from kiln.matrix import Matrix
from kiln.project import find_project

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

PROJECT = find_project(Path(__file__).resolve().parent.parent)
MATRIX = Matrix(PROJECT, "registry")
RELEASE = MATRIX.releases()[-1]
USER = MATRIX.node.user.name
IMAGE = f"deeplearning:{RELEASE}-cpu"

# Pure modules, and extensions for the very Python that the node's distribution has.
PACKAGES = sysconfig.get_path("purelib")

KILN = "import sys; from kiln.cli import main; main(prog_name='kiln')"
"""The node has Python's interpreter and no program kiln."""


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    """A booted node without a network that kiln was copied to."""
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    try:
        boot(IMAGE, name)
        docker("exec", name, "mkdir", "-p", "/run/checkout/src", "/run/packages", "/run/store")
        into(name, PROJECT.root, ["images", "roles", "playbooks", "templates", "src/kiln"], "/run/checkout")
        into(name, Path(PACKAGES), ["."], "/run/packages")
        yield name
    finally:
        docker("rm", "--force", name)


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def into(name: str, folder: Path, names: list[str], target: str) -> None:
    """Unpacks parts of a folder on the node."""
    leave = ["--exclude=__pycache__", "--exclude=ansible_collections", "--exclude=mypy", "--exclude=ruff*"]
    packed = subprocess.run(["tar", "-c", "-C", str(folder), *leave, *names], capture_output=True, check=True)
    command = ["docker", "exec", "--interactive", name, "tar", "-x", "--no-same-owner", "-C", target]
    subprocess.run(command, input=packed.stdout, check=True)


def kiln(node: str, *words: str, user: str = "root") -> subprocess.CompletedProcess[str]:
    settings = {"PYTHONPATH": "/run/checkout/src:/run/packages", "PYTHONDONTWRITEBYTECODE": "1"}
    settings |= {"KILN_ROOT": "/run/checkout", "KILN_STORE": "/run/store"}
    options = [f"--env={name}={value}" for name, value in settings.items()]
    command = ["docker", "exec", f"--user={user}", *options, node, "/usr/bin/python3", "-c", KILN, "verify", "local"]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


# Where a running system writes by itself.
ALIVE = r"^/(proc|sys|dev|run|tmp)(/|$)|^/var/(log|lib/systemd|tmp)(/|$)"


def files(node: str) -> set[str]:
    """Every file and folder of the node with kind, mode, owner, size, target and times of change."""
    listed = docker("exec", node, "find", "/", "-xdev", "-printf", "%p\t%y %m %U:%G %s %l %T@ %C@\n").splitlines()
    return {line for line in listed if not re.search(ALIVE, line.partition("\t")[0])}


def told(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Check to what was said of it."""
    try:
        return {check["check"]: check for check in json.loads(run.stdout)["checks"]}
    except ValueError:
        raise AssertionError(run.stdout[-2000:] + run.stderr[-2000:]) from None


@pytest.mark.long
def test_a_node_verifies_itself_and_stays_as_it_was(node: str) -> None:
    before = files(node)
    run = kiln(node, "--json")
    checks = told(run)
    assert [f"{name}: {check['reason']}" for name, check in checks.items() if check["verdict"] == "failed"] == []
    assert run.returncode == 0, run.stderr
    executed = {name for name, check in checks.items() if check["verdict"] in ("passed", "substituted")}
    assert len(executed) > 60
    # All kinds: frameworks, ports, accounts, compiled files.
    for name in (
        "frameworks: tensorflow_computes[first]",
        "services: nothing_listens_but_what_the_table_names",
        "accounts: no_account_but_the_users_has_a_password",
        "elf: every_needed_library_is_there",
    ):
        assert name in executed
    assert sorted(before ^ files(node)) == []


def test_the_comparison_sees_a_change(node: str) -> None:
    before = files(node)
    docker("exec", node, "touch", "/opt/left")
    docker("exec", node, "rm", "/opt/left")
    assert "/opt" in {line.partition("\t")[0] for line in before ^ files(node)}


def test_as_the_user_it_says_what_it_could_not_see(node: str) -> None:
    docker("exec", node, "chown", USER, "/run/store")
    run = kiln(node, "--json", "--only", "accounts or elf or system or services", user=USER)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr
    checks = told(run)
    blind = {name for name, check in checks.items() if check["reason"] == "could not be seen without root"}
    assert {
        "accounts: no_account_but_the_users_has_a_password",
        "system: root_has_no_password",
        "elf: every_needed_library_is_there",
        "services: ssh_takes_passwords_as_the_release_says_and_never_roots",
    } <= blind
    assert {checks[name]["verdict"] for name in blind} == {"not run"}
    assert checks["system: the_user_may_become_root"]["verdict"] == "passed"


def test_a_broken_node_fails_by_itself(node: str) -> None:
    docker("exec", node, "systemctl", "stop", "ssh")
    try:
        run = kiln(node, "--only", "ssh_answers_at_its_port")
        assert run.returncode == 1, run.stdout + run.stderr
    finally:
        docker("exec", node, "systemctl", "start", "ssh")
