"""Each check of an image has a way to break the image that makes it fail."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from kiln.engine import Engine
from kiln.errors import KilnError
from kiln.matrix import Matrix
from kiln.mutate import Mutation, mutate, read_mutations, sample
from kiln.owner import OWNER_LABEL
from kiln.project import Project, find_project
from kiln.verify import CHECKS

PROJECT = find_project(Path(__file__).resolve().parent.parent)
MATRIX = Matrix(PROJECT, "registry")
RELEASE = MATRIX.releases()[-1]
IMAGES = ("cpu", "cuda91")
JOBS = os.cpu_count() or 1


def mutations(image: str) -> list[Mutation]:
    return read_mutations(MATRIX.resolve(RELEASE, image))


def checks() -> set[str]:
    """The name of every check function."""
    return {
        node.name.removeprefix("test_")
        for path in CHECKS.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def constant(module: str, name: str) -> Any:
    """A literal of a check's module, which only Pytest itself may import."""
    for node in ast.parse((CHECKS / f"{module}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{module}.py holds no {name}")


def test_every_check_has_a_mutation() -> None:
    caught = {mutation.caught_by.partition("[")[0] for image in IMAGES for mutation in mutations(image)}
    assert len(checks()) > 40
    assert checks() - caught == set(), "these checks were never seen to fail"
    assert caught - checks() == set(), "these checks do not exist"


def test_every_promise_of_a_list_has_a_mutation() -> None:
    caught = {mutation.caught_by for mutation in mutations("cpu")}
    assert {f"the_image_holds_no[{what}]" for what, *_ in constant("test_hygiene", "NOTHING_OF")} <= caught
    assert {f"automatic_updates_are_masked[{unit}]" for unit in constant("test_system", "UPDATES")} <= caught


def test_there_are_at_least_a_hundred_mutations() -> None:
    assert len({mutation.name for image in IMAGES for mutation in mutations(image)}) >= 100


def test_a_mutation_repeats_no_value_of_the_tables() -> None:
    text = (CHECKS / "mutations.yml").read_text(encoding="utf-8")
    node = MATRIX.node
    values = {node.user.home, node.user.password, node.paths.mkl, node.paths.manifest, node.user.uid}
    platform = yaml.safe_load((PROJECT.images / "appcenter.yml").read_text(encoding="utf-8"))
    values |= {service["cmd"] for service in platform["services"].values()}
    for image in MATRIX.images(RELEASE):
        names = MATRIX.resolve(RELEASE, image).names()
        values |= {f"python{python['series']}" for python in names["interpreters"]}
        values |= set(names["components"].get("cudnn", {}).get("packages", ()))
        values |= {row["package"] for row in names["components"].get("cuda", {}).get("packages", ())}
    assert sorted(value for value in map(str, values) if re.search(rf"(?<![\w.]){re.escape(value)}\b", text)) == []
    assert not re.search(r"\bubuntu\b", text)


def test_a_sample_is_of_different_checks_and_of_today() -> None:
    every = mutations("cpu")
    today = sample(every, 15, "2018-08-01")
    assert len({mutation.caught_by for mutation in today}) == 15
    assert today == sample(every, 15, "2018-08-01") != sample(every, 15, "2018-08-02")


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("image", "count"), [("cpu", 15), ("cuda91", 6)])
def test_a_sample_of_mutations_is_caught(image: str, count: int) -> None:
    chosen = sample(mutations(image), count, datetime.now(UTC).date().isoformat())
    outcomes = mutate(PROJECT, f"deeplearning:{RELEASE}-{image}", chosen, jobs=JOBS)
    assert [f"{outcome.mutation.name}: {outcome.said}" for outcome in outcomes if not outcome.caught] == []
    assert len(outcomes) == count


@pytest.mark.engine
def test_what_a_dead_run_left_goes_with_the_next() -> None:
    image = f"deeplearning:{RELEASE}-cpu"
    left = f"kiln-left-{uuid.uuid4().hex}"
    code = "import os, sys; from kiln.engine import Engine; Engine().run_idle(*sys.argv[1:]); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, image, left], check=False).returncode == -9
    assert Engine().containers(left)
    mine = f"kiln-mine-{uuid.uuid4().hex}"
    Engine().run_idle(image, mine)
    try:
        mutate(PROJECT, image, [Mutation("harmless", "true", "root_has_no_password")], jobs=1)
        assert [len(Engine().containers(name)) for name in (left, mine)] == [0, 1]
    finally:
        for container in Engine().containers(mine):
            Engine().remove_container(container)


@pytest.mark.engine
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("image", IMAGES)
def test_every_mutation_is_caught(image: str) -> None:
    outcomes = mutate(PROJECT, f"deeplearning:{RELEASE}-{image}", mutations(image), jobs=JOBS)
    assert [f"{outcome.mutation.name}: {outcome.said}" for outcome in outcomes if not outcome.caught] == []


@pytest.mark.engine
@pytest.mark.parametrize(
    ("command", "check", "says"),
    [
        ("true", "root_has_no_password", "passed"),
        ("true", "no_such_check", "there is no check"),
        ("false", "root_has_no_password", "could not be broken"),
    ],
)
def test_what_is_not_caught_is_told(command: str, check: str, says: str) -> None:
    mutation = Mutation("harmless", command, check)
    (outcome,) = mutate(PROJECT, f"deeplearning:{RELEASE}-cpu", [mutation], jobs=1)
    assert not outcome.caught
    assert says in outcome.said


@pytest.mark.engine
def test_a_check_that_fails_on_the_unbroken_image_proves_nothing(project: Project) -> None:
    table = project.images / "releases" / f"{RELEASE}.yml"
    text = table.read_text(encoding="utf-8")
    table.write_text(re.sub(r"(?m)^login: .*", "login: keys-only", text), encoding="utf-8")
    mutation = Mutation("harmless", "true", "the_users_password_is_as_the_release_says")
    (outcome,) = mutate(project, f"deeplearning:{RELEASE}-cpu", [mutation], jobs=1)
    assert not outcome.caught
    assert "fails on the unbroken image too" in outcome.said


@pytest.mark.engine
def test_what_cannot_be_judged_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_boot(image: str, name: str) -> None:
        raise KilnError("did not boot", where=image)

    monkeypatch.setattr("kiln.mutate.boot", no_boot)
    check = "root_has_no_password"
    mutations = [Mutation("boots", "true", check, booted=True), Mutation("idle", "passwd -d root", check)]
    outcomes = mutate(PROJECT, f"deeplearning:{RELEASE}-cpu", mutations, jobs=1)
    assert {outcome.mutation.name: outcome.caught for outcome in outcomes} == {"boots": False, "idle": True}
    assert any("could not be judged" in outcome.said and "did not boot" in outcome.said for outcome in outcomes)


def _is_training(process: int) -> bool:
    """Whether Caffe runs in a container of the mutations of ``process``."""
    shape = f'{{{{.ID}}}} {{{{.Label "{OWNER_LABEL}"}}}}'
    listed = ["docker", "ps", "--filter=name=^/kiln-mutate-", f"--format={shape}"]
    rows = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    processes = (
        subprocess.run(
            ["docker", "top", row.split()[0], "-eo", "pid,args"], capture_output=True, text=True, check=False
        )
        for row in rows
        if f"/{process}:" in row
    )
    return any("caffe train" in told.stdout for told in processes)


@pytest.mark.alone
@pytest.mark.engine
def test_a_signal_ends_a_run_without_waiting_for_its_checks() -> None:
    words = ["mutate", "cpu", "--only", "a learning rate of nothing"]
    # Its check of the unbroken image is left out: what is to be ended comes after.
    code = "from kiln import cli, mutate; mutate._unbroken = lambda *_: (); cli.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=PROJECT.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        while not _is_training(run.pid):
            assert run.poll() is None, run.communicate()[0].decode()
            time.sleep(0.2)
        begun = time.monotonic()
        run.terminate()
        run.communicate(timeout=60)
        assert run.returncode == 143
    # Training alone takes longer on an idle machine.
    assert time.monotonic() - begun < 15
