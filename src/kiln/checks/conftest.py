"""Expectations, probes and verdicts for the checks."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from kiln.checks.booting import boot
from kiln.checks.probes import BENDING, FRAMEWORKS

Spec = dict[str, Any]

NOTES = pytest.StashKey[str]()
"""What a check measured."""

EXECUTED = pytest.StashKey[int]()
"""How many checks came to a verdict."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "component(name): the component whose promise the check is")
    config.addinivalue_line("markers", "device(name): runs on images for this device only")
    config.addinivalue_line("markers", "privileged: needs root on the target")
    config.stash[EXECUTED] = 0
    # Where the target is this very node, its programs inherit nothing that was set to find kiln.
    for name in BENDING:
        os.environ.pop(name, None)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A scenario in which nothing was executed has shown nothing, so it fails; Pytest alone ends with 0 there."""
    if exitstatus == pytest.ExitCode.OK and not session.config.stash[EXECUTED]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _spec() -> Spec:
    loaded: Spec = json.loads(Path(os.environ["KILN_EXPECTATIONS"]).read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="session")
def spec() -> Spec:
    """What the tables say of the image under test."""
    return _spec()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what the image does not promise: a check for the other device is not a check of this image."""
    device = _spec()["device"]
    items[:] = [item for item in items if (mark := item.get_closest_marker("device")) is None or mark.args[0] == device]
    # Before any other check has run something on the target.
    items.sort(key=lambda item: "hygiene" not in item.nodeid)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Writes one JSON line per executed check: its name, verdict and reason."""
    outcome: Any = yield
    report = outcome.get_result()
    if (
        report.when == "call"
        or (report.when == "setup" and not report.passed)
        or (report.when == "teardown" and report.failed)
    ):
        component = item.get_closest_marker("component")
        why = _spec()["manifest"]["substitutions"].get(component.args[0]) if component else None
        reason = ""
        if hasattr(report, "wasxfail"):
            verdict, reason = "failed", "a check may not expect its own failure"
        elif report.passed:
            verdict, reason = ("substituted", why) if why else ("passed", "")
        elif report.skipped:
            verdict, reason = "not run", str(report.longrepr[2]).removeprefix("Skipped: ")
        else:
            verdict = "failed"
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (crash.message if crash else str(report.longrepr)).strip()
        name = f"{item.path.stem.removeprefix('test_')}: {item.name.removeprefix('test_')}"
        line: dict[str, Any] = {
            "check": name,
            "verdict": verdict,
            "reason": reason,
            "seconds": round(report.duration, 2),
        }
        line["note"] = item.stash.get(NOTES, "")
        report.substituted = verdict == "substituted"
        item.config.stash[EXECUTED] += verdict != "not run"
        if "KILN_VERDICTS" in os.environ:
            with Path(os.environ["KILN_VERDICTS"]).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Where Pytest itself tells the results, as under Molecule, what is substituted is not told as passed."""
    if report.when == "call" and getattr(report, "substituted", False):
        return "substituted", "s", "SUBSTITUTED"
    return None


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest) -> Host:
    """The target; one for all checks, so that what was asked once needs no second question."""
    option = request.config.option
    found = testinfra.get_hosts(
        (option.hosts or "local://").split(","),
        connection=option.connection,
        ansible_inventory=option.ansible_inventory,
        ssh_config=option.ssh_config,
        ssh_identity_file=option.ssh_identity_file,
        sudo=option.sudo,
    )
    assert len(found) == 1, f"the checks look at one target at a time, not at {len(found)}"
    return found[0]


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tells what a check measured beside its verdict."""

    def tell(text: str) -> None:
        request.node.stash[NOTES] = text

    return tell


@pytest.fixture(scope="session")
def root(host: Host) -> bool:
    """Whether the checks run as root, or may become root."""
    return bool(host.check_output("id -u") == "0")


@pytest.fixture(scope="session")
def booted(host: Host) -> Iterator[Host]:
    """The target where systemd runs on it; of an image, a container of its own that boots it."""
    image = os.environ.get("KILN_IMAGE", "")
    if host.check_output("cat /proc/1/comm") == "systemd":
        yield host
    elif image:
        # kiln verify removes what begins with the target's name, so also after a signal.
        name = f"{host.backend.name}-booted"
        try:
            boot(image, name)
            yield testinfra.get_hosts([f"docker://{name}"])[0]
        finally:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
    else:
        pytest.skip("systemd does not run on the target")


@pytest.fixture(autouse=True)
def _privileged(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("privileged") and not request.getfixturevalue("root"):
        pytest.skip("could not be seen without root")


# What programs leave behind goes into a folder that is gone when the command ends.
QUIET = (
    'scratch=$(mktemp -d) && trap "rm -rf $scratch" EXIT && export TMPDIR=$scratch KERAS_HOME=$scratch '
    "XDG_CACHE_HOME=$scratch GLOG_log_dir=$scratch PYTHONDONTWRITEBYTECODE=1; "
)


@pytest.fixture(scope="session")
def as_user(host: Host, spec: Spec, root: bool) -> Callable[[str], Any]:
    """Runs a command as the node's user in a login shell; nothing is written that outlives it."""
    user = spec["node"]["user"]["name"]

    def run(command: str) -> Any:
        quiet = QUIET + command
        if root:
            return host.run(f"su - {user} -s /bin/bash -c {shlex.quote(quiet)}")
        return host.run(f"bash -lc {shlex.quote(quiet)}")

    return run


@pytest.fixture(scope="session")
def in_workspace(as_user: Callable[[str], Any], spec: Spec) -> Callable[[str, str], Any]:
    """Runs a command as the node's user with a virtualenv activated, as the guide says."""

    def run(workspace: str, command: str) -> Any:
        return as_user(f"source {spec['workspaces'][workspace]}/bin/activate && {command}")

    return run


@pytest.fixture(scope="session")
def frameworks(in_workspace: Callable[[str, str], Any], spec: Spec) -> dict[str, dict[str, Any]]:
    """Workspace to what each framework computed there; one process per framework, asked once."""
    found: dict[str, dict[str, Any]] = {}
    for workspace in spec["workspaces"]:
        found[workspace] = {}
        for framework, script in FRAMEWORKS.items():
            run = in_workspace(workspace, f"cd $TMPDIR && HOME=$TMPDIR python -W ignore -c {shlex.quote(script)}")
            lines = run.stdout.strip().splitlines()
            try:
                found[workspace][framework] = json.loads(lines[-1])
            except (IndexError, ValueError):
                said = run.stderr.strip().splitlines()[-3:] or [f"exit code {run.rc}"]
                found[workspace][framework] = {"error": " ".join(said)}
    return found
