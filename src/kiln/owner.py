"""Which process a container or network was made for, so that the next run knows what a dead one has left."""

from __future__ import annotations

import os
from pathlib import Path

OWNER_LABEL = "org.deeplearning.owner"
"""On whatever lives no longer than the process that made it."""


def myself() -> str:
    """The value of the label for this process."""
    return _owner(os.getpid())


def is_dead(owner: str) -> bool:
    """Whether the process named by a label is gone for certain; of another boot or container nothing is certain."""
    place, _, process = owner.rpartition("/")
    pid = process.partition(":")[0]
    return place == _place() and pid.isdigit() and owner != _owner(int(pid))


def is_of_another_boot(owner: str) -> bool:
    """Whether the process named by a label ran before this system was started, or on another system."""
    return owner.partition("/")[0] != _place().partition("/")[0]


def _owner(pid: int) -> str:
    """Boot and PID namespace, then ``pid:start time``: a pid alone may be another's by now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{_place()}/{pid}:"
    # Field 22, counted behind the command's name, which may hold blanks: proc(5).
    return f"{_place()}/{pid}:{stat.rpartition(')')[2].split()[19]}"


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
