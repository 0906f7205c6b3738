"""A node: a container of a baked image under systemd, given what the image's own roles need to run again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kiln.ansible.connection import ENVIRONMENT
from kiln.engine import Engine
from kiln.errors import KilnError
from kiln.plan import Plan, Stage
from kiln.store import Store
from kiln.supplies import Supplies

BOOT_S = 60
"""A node that has not booted by then never will; a booted one takes about 3 s."""

# What systemd needs without a privilege: freedesktop.org/wiki/Software/systemd/ContainerInterface.
SYSTEMD = [
    *("--tmpfs=/run:exec,mode=755", "--tmpfs=/run/lock", "--tmpfs=/tmp:exec,mode=1777"),
    *("--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro", "--env=container=docker"),
]

GPUS = "--gpus=all"

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
"""What Docker takes as a container's name: it leads out of no folder."""

NODE_LABEL = "org.deeplearning.node"
"""On the containers of ``start``, which nobody's end removes."""

MARKER = ".kiln-node"
"""In the folders that ``start`` laid out, so that no other is ever removed."""

NOT_AGAIN = ("seal",)
"""Stages that a booted node must not go through again: it has keys, logs and an identity of its own."""


def chain(plan: Plan) -> list[Stage]:
    """The stages that the only image of ``plan`` went through and a node may go through again, first to last."""
    (stage,) = plan.finals
    found: list[Stage] = []
    while stage.parent:
        if stage.name not in NOT_AGAIN:
            found.insert(0, stage)
        stage = plan.by_digest[stage.parent]
    return found


def start(plan: Plan, expectations: dict[str, Any], store: Store, name: str, work: Path) -> None:
    """Boots the only image of ``plan`` as container ``name`` and lays out ``work`` for its roles and checks.

    ``work`` then holds converge.yml, the image's playbooks with their variables, and expectations.json, which its
    checks read. Raises KilnError when the image is not baked, the name is none or taken, ``work`` holds what ``start``
    did not write, or the node does not boot.
    """
    (final,) = plan.finals
    if final.state == "missing":
        raise KilnError(f"{final.tag} is not baked", fix="run kiln bake first")
    if Engine().containers(_exactly(name)):
        raise KilnError(f"there is a container {name} already", fix=f"run kiln node stop {name}, or take another name")
    _clear(work)
    work.mkdir(parents=True)
    (work / MARKER).touch()
    stages = chain(plan)
    everything = replace(
        final,
        name="node",
        artifacts=tuple(dict.fromkeys(entry for stage in stages for entry in stage.artifacts)),
        products=tuple(dict.fromkeys(entry for stage in stages for entry in stage.products)),
    )
    with ExitStack() as stack:
        mounts = Supplies(plan, store).mounts(everything, work, {}, stack)
    _write(stages, work)
    (work / "expectations.json").write_text(json.dumps(expectations), encoding="utf-8")
    options = [
        f"--mount=type=bind,source={source},target={target}{',readonly' * (mode == 'ro')}"
        for source, target, mode in mounts
    ]
    identity = ["--name", name, "--hostname", "node", f"--label={NODE_LABEL}={name}"]
    options += [GPUS] if Engine().gives_gpus() else []
    command = ["docker", "run", "--detach", *identity, *SYSTEMD, *options, final.reference]
    _docker([*command, "/lib/systemd/systemd"], "cannot be started")
    await_boot(name)


def await_boot(name: str) -> None:
    """Returns once the container's systemd has booted; raises KilnError when it does not."""
    ends = time.monotonic() + BOOT_S
    state = ""
    while time.monotonic() < ends:
        # Without a bus yet it says offline or nothing.
        state = _docker(["docker", "exec", name, "systemctl", "is-system-running"], "does not answer", check=False)
        if state in ("running", "degraded"):
            return
        time.sleep(0.2)
    raise KilnError(
        f"did not boot within {BOOT_S} s (systemd says {state or 'nothing'})",
        where=f"container {name}",
        fix="look at docker logs",
    )


def stop(name: str, work: Path) -> bool:
    """Removes the node and what ``start`` laid out, and nothing else; False where neither was there."""
    engine = Engine()
    containers = engine.containers(_exactly(name))
    if any(NODE_LABEL not in container.labels for container in containers):
        raise KilnError(f"container {name} is none of kiln node start's", fix=f"docker rm --force {name} removes it")
    cleared = _clear(work)
    for container in containers:
        engine.remove_container(container)
    return bool(containers) or cleared


def check_name(name: str) -> None:
    """Raises KilnError where ``name`` can be no container's."""
    if not NAME.fullmatch(name):
        raise KilnError(
            f"{name!r} is no name of a container", fix="take letters, digits, dots, dashes and underscores, two or more"
        )


def _exactly(name: str) -> str:
    """The pattern of ``Engine.containers`` for this very name."""
    check_name(name)
    return f"{re.escape(name)}$"


def _clear(work: Path) -> bool:
    """Removes the folder that ``start`` laid out; whether there was one. An empty one may be anybody's."""
    if work.is_symlink() or not work.is_dir():
        if os.path.lexists(work):
            raise KilnError("is no folder", where=str(work), fix="name another for --work")
        return False
    if not (work / MARKER).is_file() and any(work.iterdir()):
        raise KilnError("was not laid out by kiln node start", where=str(work), fix="name another folder for --work")
    shutil.rmtree(work)
    return True


def _write(stages: list[Stage], work: Path) -> None:
    common = {"ansible_python_interpreter": stages[-1].interpreter, "ansible_docker_extra_env": ENVIRONMENT}
    plays = [
        {
            "name": f"Stage {stage.name}",
            "ansible.builtin.import_playbook": str(stage.playbook),
            "vars": stage.variables | common,
        }
        for stage in stages
    ]
    (work / "converge.yml").write_text(yaml.safe_dump(plays, sort_keys=False, width=1000), encoding="utf-8")


def _docker(command: list[str], what: str, *, check: bool = True) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    if check and run.returncode:
        said = run.stderr.strip().splitlines()[-1:] or [f"exit code {run.returncode}"]
        raise KilnError(f"the node {what} ({said[0]})", where=" ".join(command[:2]), fix="look at the engine's log")
    return run.stdout.strip()
