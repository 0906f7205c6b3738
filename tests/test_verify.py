"""kiln verify: what it ends with, what it writes, and that it leaves its target as it was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

import pytest
from bs4 import BeautifulSoup, Tag

from kiln.engine import Engine
from kiln.matrix import Matrix
from kiln.project import Project, find_project
from kiln.verify import Check, Report, as_junit, as_text, verify
from stage_container import baked_plan

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

PROJECT = find_project(Path(__file__).resolve().parent.parent)
MATRIX = Matrix(PROJECT, "registry")
RELEASE = MATRIX.releases()[-1]
USER = MATRIX.node.user.name
IMAGE = f"deeplearning:{RELEASE}-cpu"
KILN = str(Path(sys.executable).parent / "kiln")


def kiln(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KILN, "verify", *words],
        cwd=PROJECT.root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def parsed(xml: str) -> BeautifulSoup:
    return BeautifulSoup(xml.partition("?>")[2], "html.parser")


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def node() -> Iterator[str]:
    """A running container of the image, without a network."""
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    docker("run", "--detach", "--name", name, "--network", "none", IMAGE, "sleep", "infinity")
    yield name
    docker("rm", "--force", name)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--only", "root_has_no_password"], 0),
        (["--only", "the_cpu_floor_is_declared"], 0),
        (["--only", "the_cpu_floor_is_declared", "--strict"], 1),
        (["--only", "no_check_has_this_name"], 1),
        (["--only", "the_manifest_is_of_this_image", "--as", f"{RELEASE}/cuda80"], 1),
    ],
    ids=["passed", "substituted", "strict", "nothing executed", "another image"],
)
def test_exit_codes(words: list[str], code: int) -> None:
    run = kiln(IMAGE, *words)
    assert run.returncode == code, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no-such-image"], "there is no image and no container no-such-image"),
        (["ssh://nobody"], "write ssh://user@host:port"),
        ([IMAGE, "--as", "cpu"], "write --as RELEASE/IMAGE"),
        ([IMAGE, "--as", "9.9/cpu"], "release '9.9' does not exist"),
        (["ssh://nobody@127.0.0.1:1"], "cannot log in"),
    ],
)
def test_what_cannot_run_is_one_sentence_and_exit_code_2(words: list[str], says: str) -> None:
    run = kiln(*words)
    assert run.returncode == 2, run.stdout + run.stderr
    assert says in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_an_image_that_says_nothing_of_itself_needs_a_name() -> None:
    name = f"kiln-test:{uuid.uuid4().hex}"
    archive = subprocess.run(["tar", "-c", "-T", "/dev/null"], capture_output=True, check=True).stdout
    subprocess.run(
        ["docker", "import", "--change", 'CMD ["true"]', "-", name], input=archive, capture_output=True, check=True
    )
    try:
        run = kiln(name)
        assert run.returncode == 2
        assert "add --as RELEASE/IMAGE" in run.stderr
    finally:
        docker("rmi", name)


@pytest.fixture
def foreign() -> Iterator[str]:
    """The image without a word of what it is, as if somebody else had built it."""
    name = f"kiln-test:{uuid.uuid4().hex}"
    container = docker("create", IMAGE)
    try:
        changes = [f"--change=LABEL org.deeplearning.{key}=" for key in ("release", "image", "channel")]
        docker("commit", *changes, container, name)
        yield name
        docker("rmi", name)
    finally:
        docker("rm", container)


def test_an_image_that_somebody_else_built_is_compared_with_what_is_named(foreign: str) -> None:
    only = ["--only", "accounts or the_node_boots_whole"]
    assert kiln(foreign, *only).returncode == 2
    run = kiln(foreign, "--as", f"{RELEASE}/cpu", *only)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed      services: the_node_boots_whole" in run.stdout


@pytest.mark.parametrize("login", ["keys-only", "forced-change"])
def test_the_published_password_is_a_finding_unless_the_release_allows_it(project: Project, login: str) -> None:
    table = project.images / "releases" / f"{RELEASE}.yml"
    text = table.read_text(encoding="utf-8")
    table.write_text(re.sub(r"(?m)^login: .*", f"login: {login}", text), encoding="utf-8")
    report = verify(project, IMAGE, only="accounts or ssh_takes_passwords")
    failed = {check.check for check in report.checks if check.verdict == "failed"}
    assert {
        "accounts: the_users_password_is_as_the_release_says",
        "accounts: no_account_has_a_published_password_that_the_release_does_not_allow",
    } <= failed
    assert ("services: ssh_takes_passwords_as_the_release_says_and_never_roots" in failed) == (login == "keys-only")


@pytest.mark.alone
def test_an_image_that_keeps_no_promise_fails_by_name() -> None:
    (bootstrap,) = (stage for stage in baked_plan("cpu").stages if stage.name == "bootstrap")
    run = kiln(bootstrap.reference, "--as", f"{RELEASE}/cpu", "--only", "not frameworks and not python", "--json")
    assert run.returncode == 1, run.stderr
    verdicts = {check["check"]: check["verdict"] for check in json.loads(run.stdout)["checks"]}
    assert verdicts["system: the_user_is_as_the_table_says"] == "failed"
    assert verdicts["manifest: the_manifest_is_of_this_image"] == "failed"
    assert Engine().containers("kiln-verify-") == []


def test_json_and_junit_tell_the_same(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    run = kiln(IMAGE, "--json", "--junit", str(junit), "--only", "root_has_no_password or the_cpu_floor_is_declared")
    data = json.loads(run.stdout)
    assert data["image"] == f"{RELEASE}/cpu"
    assert sorted(check["verdict"] for check in data["checks"]) == ["passed", "substituted"]
    assert data["counts"] == {"passed": 1, "substituted": 1}
    cases = parsed(junit.read_text(encoding="utf-8")).find_all("testcase")
    assert {case["name"]: [child.name for child in case.find_all()] for case in cases} == {
        "root_has_no_password": [],
        "the_cpu_floor_is_declared": ["skipped"],
    }


def test_reports_never_show_more_than_there_was() -> None:
    checks = [
        Check("a: x", "passed", "", 0.1),
        Check("a: y", "failed", "no <&> good\nmore", 0.1),
        Check("a: z", "substituted", "why", 0.1),
        Check("b: w", "not run", "no device", 0.1),
    ]
    report = Report("target", f"{RELEASE}/cpu", tuple(checks))
    assert report.exit_code() == 1
    assert "1 passed, 1 failed, 1 substituted, 1 not run" in as_text(report)
    suite = parsed(as_junit(report)).find("testsuite")
    assert isinstance(suite, Tag)
    assert (suite["tests"], suite["failures"], suite["skipped"]) == ("4", "1", "2")
    failure = suite.find("failure")
    assert isinstance(failure, Tag)
    assert failure["message"] == "no <&> good"
    assert Report("target", "x", (checks[3],)).exit_code() == 1
    assert Report("target", "x", (checks[2],)).exit_code() == 0
    assert Report("target", "x", (checks[2],)).exit_code(strict=True) == 1
    assert Report("target", "x", ()).exit_code() == 1


def test_a_report_holds_what_the_terminal_wrote() -> None:
    reason = f"{'long ' * 60}\nE \x1b[31mred\x00\ud800 end"
    checks = (Check("a: y", "failed", reason, 0.1, "\x07 ms"), Check("b: z", "not run", "no\x1b device", 0.1))
    report = Report("target", f"{RELEASE}/cpu", checks)
    xml = as_junit(report)
    # Beautiful Soup takes anything.
    expat.ParserCreate().Parse(xml.encode("utf-8"), True)
    (failure,) = parsed(xml).find_all("failure")
    assert failure.text.endswith("red\ufffd\ufffd end")
    text = as_text(report)
    assert "long " * 60 in text
    assert "red" in text
    assert re.search(r"\b0 +1 +0 +0  a\n", text)


@pytest.mark.parametrize("place", ["none/junit.xml", "."])
def test_a_report_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path, place: str) -> None:
    run = kiln(IMAGE, "--junit", str(tmp_path / place))
    assert run.returncode == 2
    assert run.stdout == ""
    assert "name a file in a folder that exists" in run.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_container(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        ["env", "--default-signal=INT", KILN, "verify", IMAGE],
        cwd=PROJECT.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline()
        assert Engine().containers(f"kiln-verify-{run.pid}-")
        run.send_signal(number)
        _, errors = run.communicate(timeout=30)
        assert run.returncode == code
        assert len(errors.strip().splitlines()) == 1, errors
        assert Engine().containers(f"kiln-verify-{run.pid}-") == []


def test_a_node_without_network_is_verified_and_left_as_it_was(node: str) -> None:
    before = docker("diff", node)
    run = kiln(node, "--as", f"{RELEASE}/cpu")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    assert "the target has no network" in run.stdout
    assert docker("diff", node) == before
    assert docker("inspect", "--format", "{{.State.Running}}", node) == "true"


def test_over_ssh_as_the_user_what_could_not_be_seen_is_told(tmp_path: Path) -> None:
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    docker("run", "--detach", "--name", name, IMAGE, "sleep", "infinity")
    try:
        home = MATRIX.node.user.home
        authorize = (
            f"install -d -m 700 {home}/.ssh && cat > {home}/.ssh/authorized_keys && chown -R {USER}: {home}/.ssh"
        )
        serve = (
            "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key && mkdir -p /run/sshd && /usr/sbin/sshd"
        )
        command = ["docker", "exec", "--interactive", name, "bash", "-euc", f"{authorize}; {serve}"]
        subprocess.run(command, input=key.with_suffix(".pub").read_bytes(), check=True, capture_output=True)
        address = docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
        config = tmp_path / "config"
        config.write_text(
            f"Host {address}\n  IdentityFile {key}\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
            "  LogLevel ERROR\n",
            encoding="utf-8",
        )
        time.sleep(0.5)
        run = kiln(f"ssh://{USER}@{address}:22", "--ssh-config", str(config), "--only", "system or manifest")
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr
        assert f"as {RELEASE}/cpu" in run.stdout
        assert "could not be seen without root" in run.stdout
        docker("exec", name, "chown", "root:root", MATRIX.node.paths.data)
        broken = kiln(f"ssh://{USER}@{address}:22", "--ssh-config", str(config), "--only", "the_data_folder")
        assert broken.returncode == 1, broken.stdout
    finally:
        docker("rm", "--force", name)
