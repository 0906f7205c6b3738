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

from kiln.errors import KilnError
from kiln.store import Store


def find_packer() -> Path:
    """The ``packer`` on the PATH; raises KilnError when there is none."""
    found = shutil.which("packer")
    if found is None:
        raise KilnError("packer is not installed", where="PATH", fix="run make setup, or install the packer package")
    return Path(found)


def packer_version(store: Store) -> str:
    """Packer's version, e.g. ``1.6.6``; asked once per binary, since starting Packer costs longer than a whole plan."""
    packer = find_packer()
    status = packer.stat()
    identity = [str(packer), status.st_size, status.st_mtime_ns]
    cache = store.root / "packer-version.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
        if known["binary"] == identity:
            return str(known["version"])
    except (OSError, ValueError, KeyError):
        pass
    said = subprocess.run(
        [packer, "version"], capture_output=True, text=True, check=False, env={**os.environ, "CHECKPOINT_DISABLE": "1"}
    )
    found = re.search(r"v(\d+\.\d+\.\d+)", said.stdout)
    if found is None:
        raise KilnError("does not say its version", where=str(packer), fix="install Packer 1.6.6 or newer")
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
        "packer": packer_version(store),
    }
