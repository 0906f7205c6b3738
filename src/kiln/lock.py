"""One bake at a time per store: the second waits, and says for whom."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

POLL_S = 0.2
"""Between two tries: the kernel has no flock with a time limit, and a signal must be answered soon."""


@dataclass(frozen=True)
class Holder:
    """Who holds the lock."""

    pid: int
    user: str
    since: str
    """Local time, to the second."""
    command: str

    def __str__(self) -> str:
        return f"{self.command} of {self.user} (process {self.pid}, since {self.since})"


@contextmanager
def bake_lock(path: Path, waiting: Callable[[Holder | None], None]) -> Iterator[None]:
    """Holds the lock file ``path``; while another process has it, waits, and calls ``waiting`` once per holder.

    The kernel releases it with the process, however that ends. It is on the open file, which children do not inherit.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        told: Holder | None = None
        first = True
        while not _try(file.fileno()):
            holder = read_holder(path)
            if first or (holder is not None and holder != told):
                waiting(holder)
                told, first = holder, False
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(json.dumps(asdict(_myself())))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def read_holder(path: Path) -> Holder | None:
    """Who wrote the lock file last; none while it is being written."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _myself() -> Holder:
    since = datetime.now(UTC).astimezone().isoformat(sep=" ", timespec="seconds")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    name = Path(sys.argv[0]).name if sys.argv else "kiln"
    return Holder(os.getpid(), user, since, shlex.join([name, *sys.argv[1:]]))
