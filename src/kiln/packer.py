"""Packer as one back end behind the planner: rendered templates, a process group that can be ended, streamed output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from packaging.version import Version
from packerpy import PackerExecutable

TERM_S = 15
"""How long Packer may take to remove its container and its keys after SIGTERM; 0.4 s on an idle machine."""

POLL_S = 0.25
"""How often a run's progress is looked at."""

_PLUGINS_SINCE = Version("1.7")


@dataclass(frozen=True)
class Build:
    """What a stage's template says."""

    parent: str
    """Image reference to start from."""
    container: str
    """The container's name."""
    mounts: Sequence[tuple[str, str, str]]
    """(source, target, "ro" or "rw")."""
    playbook: str
    variables: str
    """JSON file of extra variables, the connection's included."""
    ansible_playbook: str
    commit: str
    """Shell command that keeps the container's content; empty when it is thrown away."""


def hcl(value: str) -> str:
    """``value`` as a quoted HCL2 string."""
    return json.dumps(value, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")


def render_templates(templates: Path, folder: Path, build: Build, packer_version: str) -> list[Path]:
    """Writes the stage's Packer files into ``folder`` and returns them; a newer Packer gets its plugin block too."""
    environment = Environment(
        loader=FileSystemLoader(templates / "packer"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # HCL, not HTML: every value goes through the hcl filter instead.
        autoescape=select_autoescape(enabled_extensions=()),
    )
    environment.filters["hcl"] = hcl
    names = ["stage.pkr.hcl"]
    if Version(packer_version) >= _PLUGINS_SINCE:
        names.append("plugins.pkr.hcl")
    written = []
    for name in names:
        path = folder / name
        path.write_text(environment.get_template(f"{name}.j2").render(vars(build)), encoding="utf-8")
        written.append(path)
    return written


class Packer(PackerExecutable):
    """packerpy's commands, each in a process group of its own, its output handed on line by line.

    packerpy itself waits for the end of a run and then returns everything at once: no progress, no way to stop it.
    """

    def __init__(
        self,
        executable: Path,
        environment: Mapping[str, str],
        folder: Path,
        log: TextIO,
        polled: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs in ``folder``, where a crash log ends; ``log`` gets the plain output.

        ``polled`` is called every POLL_S: Ansible prints a task's name only with its result, which may take minutes.
        """
        super().__init__(executable_path=str(executable), machine_readable=True)
        self.environment = dict(environment)
        self.folder = folder
        self.log = log
        self.polled = polled
        self.errors: list[str] = []
        """What Packer itself called an error, oldest first."""
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = threading.Event()

    def execute_cmd(self, packer_cmd: str, template: str | None = None, **kwargs: Any) -> tuple[int, bytes, bytes]:
        """Runs one Packer command; returns its exit code, the plain output and the errors."""
        command = [self.configuration[self.PATH], packer_cmd, "-machine-readable", *self._explode_args(**kwargs)]
        if template is not None:
            command.append(template)
        # setpriv: should kiln die of SIGKILL, the kernel tells Packer, and Packer removes its container.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self.environment,
            cwd=self.folder,
            start_new_session=True,
        )
        self._process = process
        if self._cancelled.is_set():
            self.cancel()
        output: list[str] = []
        reader = threading.Thread(target=self._read, args=(process, output))
        reader.start()
        try:
            code = self._await(process)
        finally:
            # Packer may have died and left Ansible behind, which holds the pipe open.
            self._kill(signal.SIGKILL)
            reader.join()
        if self.cancelled and code == 0:  # Packer 1.6.6 may call an ended run a success
            code = -signal.SIGTERM
        return code, "\n".join(output).encode(), "\n".join(self.errors).encode()

    def _read(self, process: subprocess.Popen[str], output: list[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            for text in self._plain(line):
                output.append(text)
                self.log.write(text + "\n")
            self.log.flush()

    def _await(self, process: subprocess.Popen[str]) -> int:
        while True:
            self.polled()
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue

    def cancel(self) -> None:
        """Ends the run from any thread: SIGTERM to the whole group, SIGKILL to what is left of it after TERM_S."""
        self._cancelled.set()
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._kill(signal.SIGTERM)
        deadline = time.monotonic() + TERM_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self._kill(signal.SIGKILL)

    @property
    def pid(self) -> int | None:
        """Packer's process, and the id of its group; none before the run."""
        return self._process.pid if self._process else None

    @property
    def cancelled(self) -> bool:
        """Whether the run was told to end."""
        return self._cancelled.is_set()

    def _kill(self, number: signal.Signals) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    def _plain(self, line: str) -> list[str]:
        """The lines for a person in one line of machine-readable output; none for Packer's book-keeping."""
        fields = line.rstrip("\n").split(",", 4)
        if len(fields) < 4 or not fields[0].isdigit():
            return [line.rstrip("\n")]
        if fields[2] != "ui":
            return []
        text = fields[4] if len(fields) > 4 else ""
        text = text.replace("%!(PACKER_COMMA)", ",").replace("\\r", "\r").replace("\\n", "\n")
        if fields[3] == "error":
            self.errors.append(text.strip())
        return [part.removeprefix("    docker.stage: ").removeprefix("    docker.stage:") for part in text.split("\n")]
