"""A node or an image, reached through an engine or SSH, that two programs of ``kiln.node_tools`` are run on.

They come from standard input or the command line: nothing is written there.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kiln.engine import Engine
from kiln.errors import KilnError
from kiln.node_tools import data_manifest, losses

RELEASE_FILE = "/etc/deeplearning/release"
"""Where a node says what it was made from."""

NOT_ENTERED = ("data", "dev", "proc", "run", "sys", "tmp")
"""Below the root: what survives an upgrade, and what does not survive a boot anyway."""


class Shell(Protocol):
    """Runs programs somewhere."""

    def command(self, words: Sequence[str]) -> list[str]:
        """The command here that runs ``words`` there, with standard input passed on."""


@dataclass(frozen=True)
class Container:
    """A running container, as root."""

    name: str

    def command(self, words: Sequence[str]) -> list[str]:
        return ["docker", "exec", "--interactive", "--user=root", self.name, *words]


@dataclass(frozen=True)
class Ssh:
    """A machine that SSH logs in to; ``sudo`` stands before what needs root."""

    login: tuple[str, ...]
    sudo: tuple[str, ...] = ()

    def command(self, words: Sequence[str]) -> list[str]:
        return ["ssh", *self.login, shlex.join([*self.sudo, *words])]


@dataclass(frozen=True)
class Local:
    """This machine."""

    def command(self, words: Sequence[str]) -> list[str]:
        return list(words)


def connect(target: str, ssh_config: Path | None) -> Shell:
    """How to run programs on ``target``, as root where that can be; raises KilnError when it cannot be reached."""
    if target == "local":
        return Local()
    if not target.startswith("ssh://"):
        if Engine().container_labels(target) is None:
            raise KilnError(f"there is no container {target}", fix="name one of docker ps, or ssh://user@host:port")
        return Container(target)
    found = re.fullmatch(r"ssh://([^@/]+)@([^:/]+)(?::(\d+))?", target)
    if found is None:
        raise KilnError(f"{target} is no address", fix="write ssh://user@host:port")
    config = ["-F", str(ssh_config)] if ssh_config else []
    options = ["-p", found[3] or "22", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    login = (*config, *options, f"{found[1]}@{found[2]}")
    asked = subprocess.run(
        ["ssh", *login, "id -u; sudo -n true"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if asked.returncode == 255:
        raise KilnError(f"cannot log in ({asked.stderr.strip()})", where="ssh", fix="check the address and the key")
    if asked.stdout.strip() == "0":
        return Ssh(login)
    if asked.returncode:
        raise KilnError(
            f"{found[1]} may not become root",
            where=target,
            fix="log in as root, or as a user with sudo without password",
        )
    return Ssh(login, ("sudo", "-n"))


_FIND_PYTHON = (
    "for python in /usr/bin/python3 /usr/bin/python2.7 python3 python2.7 python; do"
    ' command -v "$python" && exit; done; exit 127'
)


def _python(shell: Shell, where: str) -> str:
    run = subprocess.run(
        shell.command(["sh", "-c", _FIND_PYTHON]), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if run.returncode:
        said = (run.stderr + run.stdout).strip().splitlines()[-1:] or ["it has none"]
        raise KilnError(f"no Python there answers ({said[0]})", where=where, fix="look at the target")
    return run.stdout.strip()


@dataclass(frozen=True)
class Place:
    """A node or an image, and its Python."""

    where: str
    shell: Shell
    python: str

    @classmethod
    def of(cls, where: str, shell: Shell) -> Place:
        return cls(where, shell, _python(shell, where))

    def manifest(self, path: Path, *, content: bool) -> None:
        """Writes the manifest of the root file system."""
        words = [self.python, "-", "make", "/", "--one-file-system", *([] if content else ["--no-content"])]
        words += [word for name in NOT_ENTERED for word in ("--exclude", name)]
        with Path(data_manifest.__file__).open("rb") as program, path.open("wb") as output:
            run = subprocess.run(
                self.shell.command(words), stdin=program, stdout=output, stderr=subprocess.PIPE, check=False
            )
        said = run.stderr.decode("utf-8", "replace").strip()
        # A file that vanished or that nobody may read makes it 2, and the manifest is whole but for that entry.
        if run.returncode not in (0, 2) or (run.returncode == 2 and "could not be read whole" not in said):
            raise KilnError(f"its files could not be listed ({said})", where=self.where, fix="look at the target")

    def ask(self, words: Sequence[str], request: dict[str, Any] | None = None) -> Any:
        """The answer of the node's program ``losses``."""
        program = Path(losses.__file__).read_text(encoding="utf-8")
        run = subprocess.run(
            self.shell.command([self.python, "-c", program, *words]),
            input=json.dumps(request or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            said = run.stderr.strip().splitlines()[-1:] or [f"exit code {run.returncode}"]
            raise KilnError(said[0].removeprefix("losses: "), where=self.where, fix="correct that and run it again")
        return json.loads(run.stdout)


def made_from(target: str, ssh_config: Path | None = None) -> tuple[str, str]:
    """Release and image that the node was made from, each empty where it does not say; raises KilnError."""
    run = subprocess.run(
        connect(target, ssh_config).command(["cat", RELEASE_FILE]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    said = dict(line.partition("=")[::2] for line in run.stdout.splitlines())
    return said.get("RELEASE", ""), said.get("IMAGE", "")
