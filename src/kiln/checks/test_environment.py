"""What people's shells find, however the shell came to be."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pytest

from kiln.checks.probes import BENDING

# A login; a terminal inside one; `ssh node command`, which Bash knows by SSH_CLIENT: bash(1), INVOCATION.
SHELLS = {"login": "bash -lc", "interactive": "bash -ic", "command": "SSH_CLIENT='192.0.2.1 1 22' bash -c"}


@pytest.fixture(params=sorted(SHELLS))
def in_shell(request: pytest.FixtureRequest, as_user: Callable[[str], Any]) -> Callable[[str], str]:
    """Output of a command in that kind of shell of the user's, with nothing inherited."""

    def run(command: str) -> str:
        program = SHELLS[request.param]
        start = f"env -i HOME=$HOME USER=$USER PATH=/usr/local/bin:/usr/bin:/bin {program}"
        return str(as_user(f"{start} {shlex.quote(command)} 2>/dev/null").stdout.strip())

    return run


def test_a_shell_finds_the_nodes_programs(in_shell: Callable[[str], str], spec: Any) -> None:
    assert in_shell("command -v qsctl")
    # The system's own: a virtualenv is what people activate.
    assert in_shell("command -v python") == "/usr/bin/python"
    path = in_shell('echo "$PATH"').split(":")
    assert (spec["device"] == "gpu") == ("/usr/local/cuda/bin" in path)


def test_a_shell_bends_neither_loader_nor_python(in_shell: Callable[[str], str]) -> None:
    names = [line.partition("=")[0] for line in in_shell("env").splitlines()]
    assert "PATH" in names
    assert sorted(set(names) & set(BENDING)) == []


def test_a_login_writes_utf_8(as_user: Callable[[str], Any]) -> None:
    assert as_user("locale charmap").stdout.strip() == "UTF-8"
