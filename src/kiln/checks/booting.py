"""Boots an image as a node without a network, to see what runs there."""

from __future__ import annotations

import subprocess

from kiln import owner
from kiln.engine import Engine
from kiln.errors import KilnError
from kiln.node import GPUS, SYSTEMD, await_boot
from kiln.owner import OWNER_LABEL


def boot(image: str, name: str) -> None:
    """Starts container ``name`` of ``image`` under systemd; raises KilnError when it does not boot.

    Nobody reaches it, so its documented password opens no door here.
    """
    identity = ["--name", name, "--hostname", "node", "--network=none", f"--label={OWNER_LABEL}={owner.myself()}"]
    identity += [GPUS] if Engine().gives_gpus() else []
    command = ["docker", "run", "--detach", "--stop-signal=SIGRTMIN+3", *identity, *SYSTEMD]
    run = subprocess.run([*command, image, "/lib/systemd/systemd"], capture_output=True, text=True, check=False)
    if run.returncode:
        said = run.stderr.strip().splitlines()[:1] or [f"exit code {run.returncode}"]
        raise KilnError(f"cannot be booted ({said[0]})", where=image, fix="look at the engine's log")
    await_boot(name)
