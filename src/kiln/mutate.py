"""Breaks a baked image in one way at a time and shows which check finds it: a check that cannot fail is a defect."""

from __future__ import annotations

import hashlib
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Literal

from kiln.checks.booting import boot
from kiln.components import Strict
from kiln.engine import Engine
from kiln.errors import KilnError
from kiln.matrix import ImageSpec
from kiln.project import Project
from kiln.tables import read_table
from kiln.templating import render
from kiln.verify import CHECKS, Check, verify

MUTATIONS = CHECKS / "mutations.yml"


class Row(Strict, frozen=True):
    """One entry of the table."""

    images: Literal["all", "cpu", "gpu"]
    command: str
    caught_by: str
    booted: bool = False
    """Whether only a node that has booted can be broken in this way."""


@dataclass(frozen=True)
class Mutation:
    """One way to break an image."""

    name: str
    command: str
    """Shell command, run as root in a container of the image."""
    caught_by: str
    """The check that must fail, with its parameter in brackets where one of several is meant."""
    booted: bool = False

    def catches(self, check: Check) -> bool:
        """Whether ``check`` is the one that must fail."""
        name = check.check.partition(": ")[2]
        return self.caught_by in (name, name.partition("[")[0])


@dataclass(frozen=True)
class Outcome:
    """What the check said of one broken image."""

    mutation: Mutation
    caught: bool
    said: str
    seconds: float


def read_mutations(spec: ImageSpec) -> list[Mutation]:
    """The ways to break an image, with its own paths, users and versions filled in."""
    names = spec.names()
    names["packages"] = {
        python.workspace: f"{names['workspaces'][python.workspace]}/lib/python{python.series}/site-packages"
        for python in spec.pythons
    }
    table = read_table(MUTATIONS, MUTATIONS.parent)
    return [
        Mutation(name, str(render(row.command, names, table.where(name))), row.caught_by, row.booted)
        for name, row in ((name, table.convert(Row, name)) for name in table.data)
        if row.images in ("all", spec.device)
    ]


def sample(mutations: Sequence[Mutation], count: int, seed: str) -> list[Mutation]:
    """``count`` of them, other ones for another ``seed``, no two for the same check while others are left."""
    shuffled = sorted(mutations, key=lambda mutation: hashlib.sha256(f"{seed} {mutation.name}".encode()).digest())
    seen: set[str] = set()
    order = []
    for mutation in shuffled:
        order.append((mutation.caught_by in seen, mutation))
        seen.add(mutation.caught_by)
    return [mutation for _, mutation in sorted(order, key=lambda entry: entry[0])][:count]


def mutate(
    project: Project,
    image: str,
    mutations: Sequence[Mutation],
    *,
    jobs: int,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Breaks ``image`` in each way, ``jobs`` containers at a time; calls ``told`` after each."""
    engine = Engine()
    engine.check()
    if engine.image_labels(image) is None:
        raise KilnError(f"there is no image {image}", fix="run kiln bake first")
    prefix = f"kiln-mutate-{uuid.uuid4().hex[:8]}"
    outcomes = []
    try:
        with ThreadPoolExecutor(jobs) as pool:
            running = [
                pool.submit(_break, project, image, mutation, f"{prefix}-{number}")
                for number, mutation in enumerate(mutations)
            ]
            try:
                for future in as_completed(running):
                    outcomes.append(future.result())
                    told(outcomes[-1])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        for container in engine.containers(prefix):
            engine.remove_container(container)
    return outcomes


def _break(project: Project, image: str, mutation: Mutation, name: str) -> Outcome:
    started = time.monotonic()
    engine = Engine()
    try:
        if mutation.booted:
            boot(image, name)
        else:
            engine.run_idle(image, name)
        command = ["docker", "exec", name, "/bin/bash", "-c", mutation.command]
        broken = subprocess.run(command, capture_output=True, text=True, check=False)
        if broken.returncode:
            said = f"the image could not be broken: {broken.stderr.strip() or broken.stdout.strip()}"
            return Outcome(mutation, caught=False, said=said, seconds=time.monotonic() - started)
        function = mutation.caught_by.partition("[")[0]
        report = verify(project, name, kind="node" if mutation.booted else "image", only=function)
        checks = [check for check in report.checks if mutation.catches(check)]
        failed = [check for check in checks if check.verdict == "failed"]
        if failed:
            said = failed[0].reason.splitlines()[0]
        elif checks:
            said = f"{mutation.caught_by}: {checks[0].verdict}"
        else:
            said = f"there is no check {mutation.caught_by}"
        return Outcome(mutation, caught=bool(failed), said=said, seconds=time.monotonic() - started)
    finally:
        for container in engine.containers(f"{name}$"):
            engine.remove_container(container)
