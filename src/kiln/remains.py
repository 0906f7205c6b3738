"""What a dead bake leaves: processes, containers, images without a name, files."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

from kiln.engine import Engine

RUN_VARIABLE = "KILN_RUN"
"""In the environment of every process of a bake: the name of its run."""


def remove_remains(engine: Engine, prefix: str, folders: Iterable[Path]) -> str:
    """Removes what runs named ``prefix``… left, and ``folders``; returns what there was, in words.

    The caller makes sure that no such run is alive.
    """
    counts = {"processes": end_processes(prefix), "containers": remove_containers(engine, prefix)}
    counts["images"] = engine.remove_untagged()
    counts["folders"] = 0
    for folder in folders:
        remove_tree(folder)
        counts["folders"] += 1
    return ", ".join(f"{what} {count}" for what, count in counts.items() if count)


def remove_containers(engine: Engine, prefix: str) -> int:
    """Removes the containers whose names start with ``prefix``; returns how many there were."""
    containers = engine.containers(prefix)
    for container in containers:
        engine.remove_container(container)
    return len(containers)


def remove_tree(folder: Path) -> None:
    """Removes a folder, and whatever a container's root has locked up in it."""
    for place, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(place) / name
            if not path.is_symlink() and not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def end_processes(prefix: str) -> int:
    """Ends, by SIGKILL, every other process of runs named ``prefix``…; returns how many there were."""
    ended = 0
    marker = b"\0" + os.fsencode(f"{RUN_VARIABLE}={prefix}")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if marker in b"\0" + (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
                ended += 1
        except OSError:  # gone, or another user's
            continue
    return ended
