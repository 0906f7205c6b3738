"""Containers in which roles run again: a stage's image with what its roles were given at the bake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kiln.ansible.connection import CALLBACKS, ENVIRONMENT, connection, mitogen_strategy
from kiln.cli import make_plan
from kiln.errors import KilnError
from kiln.plan import Plan, Stage
from kiln.project import find_project
from kiln.store import Store
from kiln.supplies import Mount, Supplies

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = find_project(CHECKOUT)
STORE = Store.of(PROJECT)


@dataclass(frozen=True)
class Run:
    """What one ansible-playbook run did."""

    code: int
    output: str
    events: list[dict[str, Any]]

    @property
    def changed(self) -> list[str]:
        """``role : task`` of every task that says it changed something."""
        return [f"{event['role']} : {event['task']}" for event in self.events if event["event"] == "changed"]

    @property
    def roles(self) -> set[str]:
        """The roles of which a task ran."""
        return {str(event["role"]) for event in self.events if event["event"] in ("ok", "changed")}

    @property
    def failure(self) -> str:
        """The words of the first task that failed; empty where none did."""
        return next((str(event.get("msg")) for event in self.events if event["event"] == "failed"), "")


@dataclass(frozen=True)
class Target:
    """A running container, and a folder for what is run in it."""

    name: str
    folder: Path
    interpreter: str

    def shell(self, script: str, *, stdin: bytes = b"") -> str:
        """Output of a Bash script that must succeed, run as root with the environment of a bake."""
        options = [f"--env={name}={value}" for name, value in ENVIRONMENT.items()]
        command = ["docker", "exec", "--interactive", *options, self.name, "bash", "-euc", script]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return done.stdout.decode()

    def changes(self) -> list[str]:
        """Every path that differs from the image, as ``docker diff`` prints it; mounts and tmpfs are left out."""
        done = subprocess.run(["docker", "diff", self.name], capture_output=True, text=True, check=True)
        return sorted(done.stdout.splitlines())

    def play(self, plays: Sequence[Mapping[str, Any]]) -> Run:
        """Runs ``plays`` as a bake runs a stage's playbook."""
        mark = uuid.uuid4().hex[:8]
        book, inventory, events = (self.folder / f"{mark}.{ending}" for ending in ("yml", "json", "events"))
        strategy = mitogen_strategy()
        entry = connection(self.name, self.interpreter, mitogen=strategy is not None)
        inventory.write_text(json.dumps({"all": {"hosts": {self.name: entry}}}), encoding="utf-8")
        book.write_text(yaml.safe_dump(list(plays), sort_keys=False), encoding="utf-8")
        environment = os.environ | {
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_ROLES_PATH": str(CHECKOUT / "roles"),
            "KILN_EVENTS": str(events),
        }
        if strategy:
            environment |= {"ANSIBLE_STRATEGY": "mitogen_linear", "ANSIBLE_STRATEGY_PLUGINS": str(strategy)}
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory", str(inventory), str(book)]
        done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        noted = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
        return Run(done.returncode, done.stdout + done.stderr, [json.loads(line) for line in noted])

    def run_role(self, role: str, **variables: Any) -> Run:
        """Runs one role alone."""
        return self.play([lone(role, variables)])

    def run_stages(self, stages: Iterable[Stage]) -> Run:
        """Runs the playbooks of stages, each with its own variables."""
        return self.play(
            [
                {
                    "name": f"Stage {stage.name}",
                    "ansible.builtin.import_playbook": str(stage.playbook),
                    "vars": stage.variables,
                }
                for stage in stages
            ]
        )


def lone(role: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """A play of one role."""
    return {"name": role, "hosts": "all", "gather_facts": False, "vars": dict(variables), "roles": [role]}


def baked_plan(*images: str) -> Plan:
    """The plan of the current release's ``images``, which must be baked."""
    plan = make_plan(PROJECT, (), images, "registry")
    if plan.missing:
        raise KilnError(f"{', '.join(images)}: not baked", fix="run make images first")
    return plan


def chain(plan: Plan, last: Stage) -> list[Stage]:
    """The stages with a playbook that led to ``last``, itself included, first to last."""
    found = [last]
    while parent := found[0].parent:
        found.insert(0, plan.by_digest[parent])
    return found[1:]


def named(plan: Plan, name: str) -> Stage:
    """The plan's first stage of that name."""
    return next(stage for stage in plan.stages if stage.name == name)


@contextmanager
def started(image: Stage, folder: Path, mounts: Iterable[Mount] = ()) -> Iterator[Target]:
    """A container of the image of a stage, as templates/packer/stage.pkr.hcl.j2 starts it."""
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    command = ["docker", "run", "--detach", "--interactive", "--tty", "--name", name, "--hostname=node"]
    command += ["--tmpfs=/run:exec,mode=755", "--tmpfs=/tmp:exec,mode=1777"]
    for source, target, mode in mounts:
        command.append(f"--mount=type=bind,source={source},target={target}{',readonly' * (mode == 'ro')}")
    subprocess.run([*command, image.reference, "/bin/sh"], check=True, capture_output=True)
    try:
        yield Target(name, folder, image.interpreter)
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=True, capture_output=True)


@contextmanager
def supplied(
    plan: Plan, image: Stage, stages: Sequence[Stage], folder: Path, proxies: Mapping[str, str] | None = None
) -> Iterator[Target]:
    """A container of ``image`` with all that ``stages`` get at a bake, and an empty /run/kiln/out."""
    everything = replace(
        stages[-1],
        artifacts=tuple(dict.fromkeys(entry for stage in stages for entry in stage.artifacts)),
        products=tuple(dict.fromkeys(entry for stage in stages for entry in stage.products)),
    )
    (folder / "supplies").mkdir(parents=True)
    (folder / "out").mkdir()
    with ExitStack() as stack:
        mounts = Supplies(plan, STORE).mounts(everything, folder / "supplies", proxies or {}, stack)
        mounts.append((str(folder / "out"), "/run/kiln/out", "rw"))
        yield stack.enter_context(started(image, folder, mounts))
