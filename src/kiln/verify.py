"""Runs the checks against an image, a container, a node over SSH or this node, and tells the verdicts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from kiln.errors import KilnError
from kiln.expectations import expected
from kiln.project import Project

Verdict = Literal["passed", "failed", "substituted", "not run"]

VERDICTS: tuple[Verdict, ...] = ("passed", "failed", "substituted", "not run")

CHECKS = Path(__file__).with_name("checks")

MOST_S = 1800
"""A verification that has not ended by then never will."""


@dataclass(frozen=True)
class Check:
    """One executed check."""

    check: str
    verdict: Verdict
    reason: str
    seconds: float
    note: str = ""
    """What the check measured."""


@dataclass(frozen=True)
class Report:
    """All verdicts on one target."""

    target: str
    image: str
    """RELEASE/IMAGE that it was compared with."""
    checks: tuple[Check, ...]

    def counts(self) -> dict[str, int]:
        """Verdict to number of checks."""
        return dict(Counter(check.verdict for check in self.checks))

    def exit_code(self, *, strict: bool = False) -> int:
        """0: nothing failed and something was executed; 1: otherwise. With ``strict``, substituted is failed."""
        counts = self.counts()
        executed = sum(counts.get(verdict, 0) for verdict in ("passed", "failed", "substituted"))
        bad = counts.get("failed", 0) + (counts.get("substituted", 0) if strict else 0)
        return 0 if executed and not bad else 1

    def as_data(self) -> dict[str, Any]:
        """The report as JSON; seconds are floats."""
        return {**asdict(self), "counts": self.counts()}


def verify(
    project: Project,
    target: str,
    *,
    as_: str | None = None,
    channel: str | None = None,
    only: str | None = None,
    kind: Literal["image", "node"] | None = None,
    ssh_config: Path | None = None,
    told: Callable[[Check], None] = lambda check: None,
) -> Report:
    """Runs every check (or those whose name matches ``only``) against ``target``; calls ``told`` after each.

    ``target``: image reference, container, ssh://user@host:port, or local. ``as_``: RELEASE/IMAGE to compare with;
    without it the target's own labels or release file decide.
    ``kind``: an image, or a node that has booted and so has keys and logs of its own; default: an image reference is an
    image, all else a node. ``ssh_config``: a file as ssh's -F takes it. Raises KilnError when the checks cannot run.
    """
    with _reached(target, ssh_config, named=as_ is not None) as (hosts, guess, said):
        release, image, named = _identity(as_, channel, said)
        with tempfile.TemporaryDirectory(prefix="kiln-verify-") as scratch:
            expectations = Path(scratch) / "expectations.json"
            expectations.write_text(json.dumps(expected(project, named, release, image)), encoding="utf-8")
            settings = {
                "KILN_ROOT": str(project.root),
                "KILN_STORE": str(project.store),
                "KILN_EXPECTATIONS": str(expectations),
                "KILN_VERDICTS": str(Path(scratch) / "verdicts"),
                "KILN_TARGET_KIND": kind or guess,
                "KILN_IMAGE": target if guess == "image" else "",
            }
            checks = _run(hosts, settings, only, ssh_config, told)
    return Report(target, f"{release}/{image}", tuple(checks))


def _identity(as_: str | None, channel: str | None, said: dict[str, str]) -> tuple[str, str, str]:
    if as_ is not None:
        release, slash, image = as_.partition("/")
        if not slash or not image:
            raise KilnError(f"--as {as_} names no image", fix="write --as RELEASE/IMAGE, e.g. 1.2/cpu")
        return release, image, channel or said.get("channel") or "registry"
    if not said.get("release") or not said.get("image"):
        raise KilnError("the target does not say which image it is", fix="add --as RELEASE/IMAGE")
    return said["release"], said["image"], channel or said.get("channel") or "registry"


@contextmanager
def _reached(target: str, ssh_config: Path | None, *, named: bool) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(Testinfra host, kind of target, what it says of itself); containers that are started here are removed."""
    if target == "local":
        yield "local://", "node", _release_file(["cat", "/etc/deeplearning/release"])
        return
    if target.startswith("ssh://"):
        found = re.fullmatch(r"ssh://([^@/]+)@([^:/]+)(?::(\d+))?", target)
        if found is None:
            raise KilnError(f"{target} is no address", fix="write ssh://user@host:port")
        login = [
            *(["-F", str(ssh_config)] if ssh_config else []),
            f"{found[1]}@{found[2]}",
            "-p",
            found[3] or "22",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
        ]
        yield target, "node", _release_file(["ssh", *login, "cat /etc/deeplearning/release"])
        return
    from kiln.engine import Engine

    engine = Engine()
    engine.check()
    labels = engine.container_labels(target)
    if labels is not None:
        yield f"docker://{target}", "node", _from_labels(labels)
        return
    labels = engine.image_labels(target)
    if labels is None:
        raise KilnError(f"there is no image and no container {target}", fix="bake it, or name one of docker images")
    said = _from_labels(labels)
    if not named:
        _identity(None, None, said)
    name = f"kiln-verify-{os.getpid()}-{time.time_ns():x}"
    try:
        engine.run_idle(target, name)
        yield f"docker://{name}", "image", said
    finally:
        for container in engine.containers(name):
            engine.remove_container(container)


def _from_labels(labels: dict[str, str]) -> dict[str, str]:
    prefix = "org.deeplearning."
    return {name.removeprefix(prefix): value for name, value in labels.items() if name.startswith(prefix)}


def _release_file(command: list[str]) -> dict[str, str]:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if command[0] == "ssh" and run.returncode == 255:
        raise KilnError(f"cannot log in ({run.stderr.strip()})", where="ssh", fix="check the address and the key")
    pairs = (line.partition("=") for line in run.stdout.splitlines())
    return {name.lower(): value for name, equals, value in pairs if equals}


def _run(
    hosts: str,
    settings: dict[str, str],
    only: str | None,
    ssh_config: Path | None,
    told: Callable[[Check], None],
) -> list[Check]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(CHECKS),
        f"--hosts={hosts}",
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-c", os.devnull, f"--rootdir={CHECKS.parent.parent}", "--import-mode=importlib"]
    command += ["-k", only] if only else []
    command += [f"--ssh-config={ssh_config}"] if ssh_config else []
    environment = {**os.environ, **settings, "PYTHONDONTWRITEBYTECODE": "1"}
    verdicts = Path(settings["KILN_VERDICTS"])
    verdicts.touch()
    checks: list[Check] = []
    log = verdicts.with_name("log")
    with log.open("w", encoding="utf-8") as output, verdicts.open(encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            ends = time.monotonic() + MOST_S
            running, rest = True, ""  # a line may be half written yet
            while running:
                running = process.poll() is None
                *whole, rest = (rest + stream.read()).split("\n")
                for line in whole:
                    check = Check(**json.loads(line))
                    checks.append(check)
                    told(check)
                if time.monotonic() > ends:
                    raise KilnError(f"the checks did not end within {MOST_S} s", where=hosts, fix="look at the target")
                if running:
                    time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
    # 0: all passed, 1: some failed, 5: nothing collected; anything else: the checks themselves are broken.
    if process.returncode not in (0, 1, 5):
        words = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()][-3:]
        raise KilnError(f"the checks could not run ({' '.join(words)})", where=hosts, fix="look at the target")
    return checks


def as_text(report: Report) -> str:
    """What was not simply passed, with its reason, of a failure all of it; then a table, and the numbers."""
    lines = []
    for verdict in ("substituted", "not run", "failed"):
        for check in report.checks:
            if check.verdict == verdict:
                first, *more = check.reason.splitlines() or [""]
                lines.append(f"{verdict:<12}{check.check}: {first}")
                lines += [f"{'':<12}  {line}" for line in more if verdict == "failed"]
    lines += [f"{'measured':<12}{check.check}: {check.note}" for check in report.checks if check.note]
    groups: dict[str, Counter[str]] = {}
    for check in report.checks:
        groups.setdefault(check.check.partition(": ")[0], Counter())[check.verdict] += 1
    lines += ["", "".join(f"{word:>12}" for word in VERDICTS) + "  OF"]
    lines += ["".join(f"{counts[word]:>12}" for word in VERDICTS) + f"  {group}" for group, counts in groups.items()]
    counts = report.counts()
    told = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS)
    lines.append(f"{report.target} as {report.image}: {told}")
    return "\n".join(lines)


NOT_IN_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""Characters that no XML document may hold, not even escaped: XML 1.0, section 2.2."""


def as_junit(report: Report) -> str:
    """The report as JUnit XML: what was substituted or not run is no pass there either, but skipped with its reason."""
    suite = ElementTree.Element("testsuite", name=f"{report.target} as {report.image}", tests=str(len(report.checks)))
    counts = report.counts()
    suite.set("failures", str(counts.get("failed", 0)))
    suite.set("skipped", str(counts.get("substituted", 0) + counts.get("not run", 0)))
    suite.set("time", f"{sum(check.seconds for check in report.checks):.2f}")
    for check in report.checks:
        group, _, name = check.check.partition(": ")
        reason = NOT_IN_XML.sub("\ufffd", check.reason)
        case = ElementTree.SubElement(suite, "testcase", classname=group, name=name, time=f"{check.seconds:.2f}")
        if check.verdict == "failed":
            ElementTree.SubElement(case, "failure", message=reason.partition("\n")[0]).text = reason
        elif check.verdict != "passed":
            ElementTree.SubElement(case, "skipped", type=check.verdict, message=f"{check.verdict}: {reason}")
        if check.note:
            ElementTree.SubElement(case, "system-out").text = NOT_IN_XML.sub("\ufffd", check.note)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
