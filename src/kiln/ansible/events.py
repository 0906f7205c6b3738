"""Reads what the callback plugin notes while Ansible runs: the task at work, and the words of the one that failed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WORDS = ("msg", "module_stderr", "stderr")


class Events:
    """One playbook run, followed through its events file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed_task = ""
        self.played = False
        """Whether the playbook came to its end without a failure."""
        self._failure: dict[str, Any] | None = None
        self._read = 0

    def follow(self, task: Callable[[str], None]) -> None:
        """Takes in what was noted since the last call; ``task`` is called for every task that began."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._take(json.loads(line), task)

    def _take(self, event: dict[str, Any], task: Callable[[str], None]) -> None:
        name = " : ".join(part for part in (event.get("role"), event.get("task")) if part)
        if event["event"] == "task":
            task(name)
        elif event["event"] in ("failed", "unreachable", "item failed") and not self._is_summary(event, name):
            # The one that ended the play is the last: a rescued one has others after it.
            self._failure = event
            self.failed_task = name
        elif event["event"] == "recap":
            hosts = event["hosts"].values()
            self.played = bool(hosts) and not any(host["failures"] or host["unreachable"] for host in hosts)

    def _is_summary(self, event: dict[str, Any], name: str) -> bool:
        """Whether it only sums up a failed loop, whose item said more."""
        return self._failure is not None and self.failed_task == name and "One or more items" in str(event.get("msg"))

    def words(self, most: int) -> list[str]:
        """What the failed task's module said, at most ``most`` lines of each of its outputs."""
        failure = self._failure or {}
        said = [str(failure[name]) for name in _WORDS if failure.get(name)]
        command = failure.get("cmd")
        if command:
            said.append("command: " + (shlex.join(map(str, command)) if isinstance(command, list) else str(command)))
        if "stderr" not in failure and failure.get("stdout"):
            said.append(str(failure["stdout"]))
        return [line for text in said for line in text.splitlines()[-most:]]
