"""Ansible callback: one JSON line per event, appended to the file that $KILN_EVENTS names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.executor.stats import AggregateStats
from ansible.executor.task_result import TaskResult
from ansible.playbook.task import Task
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: kiln_events
type: notification
short_description: One JSON line per event
description:
  - Appends task starts, results and failures to a file, for the live progress and the error message of a bake.
  - The environment variable KILN_EVENTS names the file; without it the plugin is silent.
options: {}
"""

# What a module says about its failure; the rest of its result may be megabytes.
WORDS = ("msg", "stderr", "stdout", "cmd", "rc", "module_stderr", "module_stdout", "exception")
LONGEST = 20_000
"""Characters of each that are kept, from the end: the last words name the cause."""


class CallbackModule(CallbackBase):
    """Notes what a play does while it does it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "kiln_events"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        named = os.environ.get("KILN_EVENTS")
        self.path = Path(named) if named else None

    def _note(self, event: str, **values: Any) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}, default=str) + "\n")

    def _result(self, event: str, result: TaskResult) -> None:
        said = {} if result._result.get("_ansible_no_log") else _words(result._result)
        self._note(event, **_named(result._task), **said)

    def v2_playbook_on_task_start(self, task: Task, is_conditional: bool) -> None:
        self._note("task", **_named(task))

    def v2_playbook_on_handler_task_start(self, task: Task) -> None:
        self._note("task", **_named(task))

    def v2_runner_on_ok(self, result: TaskResult) -> None:
        self._note("changed" if result._result.get("changed") else "ok", **_named(result._task))

    def v2_runner_on_failed(self, result: TaskResult, ignore_errors: bool = False) -> None:
        self._result("ignored" if ignore_errors else "failed", result)

    def v2_runner_on_unreachable(self, result: TaskResult) -> None:
        self._result("unreachable", result)

    def v2_runner_item_on_failed(self, result: TaskResult) -> None:
        self._result("item failed", result)

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        self._note("recap", hosts={host: stats.summarize(host) for host in stats.processed})


def _named(task: Task) -> dict[str, str]:
    role = task._role.get_name() if task._role else ""
    return {"role": role, "task": task.get_name(include_role_fqcn=False).removeprefix(f"{role} : ")}


def _words(result: dict[str, Any]) -> dict[str, Any]:
    words: dict[str, Any] = {}
    for name in WORDS:
        value = result.get(name)
        if value not in (None, ""):
            words[name] = value[-LONGEST:] if isinstance(value, str) else value
    return words
