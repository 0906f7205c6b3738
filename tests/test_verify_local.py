"""kiln verify local: run on a node itself, with what the node has: its own Python, and an archive with kiln in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
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

KILN = str(Path(sys.executable).with_name("kiln"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A booted node without a network that the archive of kiln was unpacked on."""
    archive = tmp_path_factory.mktemp("bundle") / "kiln-verify.tar.gz"
    command = [KILN, f"--root={PROJECT.root}", "verify", "--bundle", str(archive)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == "on the node: tar -xzf kiln-verify.tar.gz && kiln-verify/run\n"
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    try:
        boot(IMAGE, name)
        unpack = ["docker", "exec", "--interactive", name, "tar", "-xz", "-C", "/run"]
        subprocess.run(unpack, input=archive.read_bytes(), check=True)
        docker("exec", name, "mkdir", "-m", "777", "/run/kiln-verify/store")
        yield name
    finally:
        docker("rm", "--force", name)


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def kiln(node: str, *words: str, user: str = "root") -> subprocess.CompletedProcess[str]:
    command = ["docker", "exec", f"--user={user}", node, "/run/kiln-verify/run", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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


def test_a_node_with_another_python_is_told_so(node: str) -> None:
    docker("exec", node, "sh", "-c", "sed s/^version=.*/version=3.99/ /run/kiln-verify/run > /run/other")
    run = subprocess.run(["docker", "exec", node, "sh", "/run/other"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert "has no /usr/bin/python3.99; check it with kiln verify ssh://" in run.stderr


def test_an_archive_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    command = [KILN, f"--root={PROJECT.root}", "verify", "--bundle", str(tmp_path / "none" / "x.tar.gz")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
