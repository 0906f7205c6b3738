"""What the tables no longer lead to goes; what they lead to, finished images and other stores' stages stay."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bake_project import Row, make_plan, remove_images, seed_store, write_project
from kiln import gc
from kiln.bake import bake
from kiln.engine import STAGES, Engine, stage_tags
from kiln.losses_baseline import baseline
from kiln.plan import Plan
from kiln.progress import choose_reporter
from kiln.store import Store

pytestmark = pytest.mark.engine

FILE = """
- name: Write
  ansible.builtin.copy: {{content: "{text}", dest: {path}, mode: "0644"}}
"""


@dataclass
class Baked:
    """A finished image on two stages, and a product beside them."""

    plan: Plan
    store: Store
    tag: str

    def digest(self, name: str) -> str:
        return next(stage.digest for stage in self.plan.stages if stage.name == name)

    def found(self, *keep: str) -> dict[str, list[str]]:
        """Kind to names of what is found when only ``keep`` is led to."""
        kinds: dict[str, list[str]] = {}
        for item in gc.find(self.store, {self.digest(name) for name in keep}, set()):
            kinds.setdefault(item.kind, []).append(item.name)
        return kinds


@pytest.fixture
def baked(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Baked]:
    store = seed_store(tmp_path / "store", tmp_path_factory.getbasetemp() / "seed")
    nonce = uuid.uuid4().hex
    tag = f"kiln-test:{nonce}"
    rows = (
        Row("first", FILE.format(text=nonce, path="/etc/first")),
        Row("maker", FILE.format(text=nonce, path="/run/kiln/out/made"), kind="build", parent="first"),
        Row("last", FILE.format(text=nonce, path="/etc/last"), parent="first", products=("maker",), tag=tag),
    )
    project = write_project(tmp_path / "project", store.root, rows)
    plan = make_plan(rows, project, store)
    bake(plan, project, store, reporter=choose_reporter(as_json=True))
    yield Baked(plan, store, tag)
    remove_images(store)
    subprocess.run(["docker", "rmi", "--force", tag], check=False, capture_output=True)


def test_what_is_led_to_stays(baked: Baked) -> None:
    assert baked.found("bootstrap", "first", "maker", "last") == {}


def test_what_nothing_leads_to_goes_and_the_finished_image_stays(baked: Baked) -> None:
    assert {kind: len(names) for kind, names in baked.found("bootstrap").items()} == {"stage": 2, "product": 1}
    rubbish = gc.find(baked.store, {baked.digest("bootstrap")}, set())
    gone = gc.remove(rubbish, Engine())
    assert len(gone) == 3
    assert gc.as_text(gone, "removed").splitlines()[0] == "removed 2 stages"
    left = stage_tags()
    assert not {baked.digest("first"), baked.digest("last")} & set(left)
    assert baked.store.product(baked.digest("maker")) is None
    run = subprocess.run(["docker", "run", "--rm", baked.tag, "cat", "/etc/last"], capture_output=True, check=False)
    assert run.returncode == 0


def test_a_stage_of_another_store_is_not_ours(baked: Baked) -> None:
    other = f"{STAGES}:{uuid.uuid4().hex * 2}"
    subprocess.run(["docker", "tag", baked.tag, other], check=True)
    try:
        assert other.partition(":")[2] not in baked.found().get("stage", [])
    finally:
        subprocess.run(["docker", "rmi", other], check=True, capture_output=True)


def test_a_stage_in_use_stays(baked: Baked) -> None:
    container = subprocess.run(
        ["docker", "create", f"{STAGES}:{baked.digest('first')}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(["docker", "rmi", "--force", baked.tag], check=True, capture_output=True)
    try:
        rubbish = gc.find(baked.store, {baked.digest("bootstrap")}, set())
        gone = {item.name for item in gc.remove(rubbish, Engine())}
        assert baked.digest("last") in gone
        inspected = subprocess.run(["docker", "inspect", container], capture_output=True, check=False)
        assert inspected.returncode == 0
    finally:
        subprocess.run(["docker", "rm", container], check=True, capture_output=True)


def test_the_baseline_of_an_image_that_is_gone_goes(baked: Baked) -> None:
    baseline(baked.tag, baked.store, [])
    everything = [stage.name for stage in baked.plan.stages]
    assert baked.found(*everything) == {}
    subprocess.run(["docker", "rmi", "--force", baked.tag], check=True, capture_output=True)
    assert baked.found(*everything) == {}, "it is a stage's image still"
    gc.remove(gc.find(baked.store, {baked.digest("bootstrap")}, set()), Engine())
    rubbish = gc.find(baked.store, {baked.digest("bootstrap")}, set())
    assert [item.kind for item in rubbish] == ["baseline"] * 2
    gc.remove(rubbish, Engine())
    assert not list((baked.store.root / "baselines").iterdir())


def test_downloads_lists_and_old_logs_that_nothing_names_go(baked: Baked) -> None:
    store = baked.store
    incoming = store.root / "file"
    incoming.write_text("content", encoding="utf-8")
    sha256 = store.add(incoming)
    (store.root / "apt" / ("f" * 64)).mkdir()
    old = store.root / "logs" / "old.log"
    old.write_text("x", encoding="utf-8")
    os.utime(old, (time.time() - 40 * 86400,) * 2)
    everything = {stage.digest for stage in baked.plan.stages}
    assert {item.name for item in gc.find(store, everything, {sha256})} == {"f" * 64, "old.log"}
    rubbish = gc.find(store, everything, set())
    assert {item.kind for item in rubbish} == {"download", "package list", "log"}
    gc.remove(rubbish, Engine())
    assert store.blob(sha256) is None
    assert not old.exists()
    assert gc.find(store, everything, set()) == []
