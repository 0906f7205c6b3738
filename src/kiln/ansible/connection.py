"""How Ansible enters a stage's container."""

from __future__ import annotations

import os
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CALLBACKS = Path(__file__).with_name("callback")
"""Folder of the callback plugins: what Ansible does, and that it changes nothing."""

ENVIRONMENT = {"APT_CONFIG": "/run/kiln/apt.conf", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
"""What modules find in their environment. It is not the container's own: that would be committed."""


def mitogen_strategy() -> Path | None:
    """Mitogen's strategy plugins: one Python stays in the container, a task costs 0.1 s instead of 1 s.

    $KILN_CONNECTION=docker goes back to one ``docker exec`` or more for every task.
    """
    found = find_spec("ansible_mitogen")
    if os.environ.get("KILN_CONNECTION") == "docker" or found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "plugins" / "strategy"


def connection(container: str, interpreter: str, *, mitogen: bool) -> dict[str, Any]:
    """Ansible's variables for ``container``; ``interpreter`` is the target's Python."""
    common = {"ansible_host": container, "ansible_user": "root"}
    if mitogen:
        assignments = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        return {
            **common,
            "ansible_connection": "docker",
            "ansible_python_interpreter": shlex.join(["/usr/bin/env", *assignments, interpreter]),
        }
    return {
        **common,
        "ansible_connection": "community.docker.docker",
        "ansible_python_interpreter": interpreter,
        "ansible_docker_extra_env": ENVIRONMENT,
    }
