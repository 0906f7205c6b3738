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
from kiln.image_spec import ImageSpec
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

    @property
    def function(self) -> str:
        """The check without its parameter."""
        return self.caught_by.partition("[")[0]

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
    outcomes: list[Outcome] = []
    try:
        unbroken = _unbroken(project, image, mutations)
        with ThreadPoolExecutor(jobs) as pool:
            running = [
                pool.submit(_break, project, image, mutation, f"{prefix}-{number}", unbroken)
                for number, mutation in enumerate(mutations)
            ]
            try:
                for future in as_completed(running):
                    outcomes.append(future.result())
                    told(outcomes[-1])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                # Checks whose target is gone soon end.
                _remove(engine, prefix)
                raise
    finally:
        _remove(engine, prefix)
    return outcomes


def _remove(engine: Engine, prefix: str) -> None:
    for container in engine.containers(prefix):
        engine.remove_container(container)


def _unbroken(project: Project, image: str, mutations: Sequence[Mutation]) -> Sequence[Check]:
    """What the checks say of the image as it is: one that fails there proves nothing when it fails again."""
    functions = sorted({mutation.function for mutation in mutations})
    return verify(project, image, only=" or ".join(functions)).checks if functions else ()


def _break(project: Project, image: str, mutation: Mutation, name: str, unbroken: Sequence[Check]) -> Outcome:
    started = time.monotonic()
    engine = Engine()
    try:
        caught, said = _judge(project, image, mutation, name, unbroken, engine)
    except KilnError as error:
        caught, said = False, f"could not be judged: {error}"
    finally:
        _remove(engine, f"{name}$")
    return Outcome(mutation, caught=caught, said=said, seconds=time.monotonic() - started)


def _judge(
    project: Project, image: str, mutation: Mutation, name: str, unbroken: Sequence[Check], engine: Engine
) -> tuple[bool, str]:
    """Whether the check catches the mutation, and what it says."""
    if any(check.verdict == "failed" for check in unbroken if mutation.catches(check)):
        return False, f"no proof: {mutation.caught_by} fails on the unbroken image too"
    if mutation.booted:
        boot(image, name)
    else:
        engine.run_idle(image, name)
    command = ["docker", "exec", name, "/bin/bash", "-c", mutation.command]
    broken = subprocess.run(command, capture_output=True, text=True, check=False)
    if broken.returncode:
        return False, f"the image could not be broken: {broken.stderr.strip() or broken.stdout.strip()}"
    report = verify(project, name, kind="node" if mutation.booted else "image", only=mutation.function)
    checks = [check for check in report.checks if mutation.catches(check)]
    failed = [check for check in checks if check.verdict == "failed"]
    if failed:
        return True, failed[0].reason.splitlines()[0]
    if checks:
        return False, f"{mutation.caught_by}: {checks[0].verdict}"
    return False, f"there is no check {mutation.caught_by}"
