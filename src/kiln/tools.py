"""The build tools and their versions, since a stage's result depends on them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from importlib.metadata import version
from pathlib import Path

from kiln.ansible.connection import mitogen_strategy
from kiln.errors import KilnError
from kiln.store import Store


def find_packer() -> Path:
    """The ``packer`` on the PATH; raises KilnError when there is none."""
    found = shutil.which("packer")
    if found is None:
        raise KilnError("packer is not installed", where="PATH", fix="run make setup, or install the packer package")
    return Path(found)


def packer_version(store: Store) -> str:
    """Packer's version, e.g. ``1.6.6``."""
    return _version(store, find_packer(), "version")


def mmdebstrap_version(store: Store) -> str:
    """mmdebstrap's version, e.g. ``1.3.5``; ``none`` where it is not installed, which a plan can do without."""
    found = shutil.which("mmdebstrap")
    return _version(store, Path(found), "--version") if found else "none"


def _version(store: Store, program: Path, question: str) -> str:
    """What the program says of itself; asked once per file, since starting Packer costs longer than a whole plan."""
    status = program.stat()
    identity = [str(program), status.st_size, status.st_mtime_ns]
    cache = store.root / f"{program.name}-version.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
        if known["binary"] == identity:
            return str(known["version"])
    except (OSError, ValueError, KeyError):
        pass
    said = subprocess.run(
        [program, question], capture_output=True, text=True, check=False, env={**os.environ, "CHECKPOINT_DISABLE": "1"}
    )
    found = re.search(r"\bv?(\d+\.\d+\.\d+)", said.stdout)
    if found is None:
        raise KilnError("does not say its version", where=str(program), fix=f"install the {program.name} package anew")
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps({"binary": identity, "version": found[1]}), encoding="utf-8")
    temporary.replace(cache)
    return found[1]


def tool_versions(store: Store) -> dict[str, str]:
    """Name to version of every tool that shapes a stage; ``ansible`` is the distribution with the collections."""
    return {
        "ansible": version("ansible"),
        "ansible-core": version("ansible-core"),
        "mitogen": version("mitogen") if mitogen_strategy() else "none",
        "packer": packer_version(store),
    }
