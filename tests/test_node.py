"""A node gets what its roles read, even where its store is gone; and its end removes nothing that is not its own."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiln.store import Store
from stage_container import CHECKOUT, STORE, baked_plan, named

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

KILN = str(Path(sys.executable).with_name("kiln"))


@pytest.fixture
def poorer_store(tmp_path: Path) -> Store:
    """The store without the digits."""
    store = Store(tmp_path / "store")
    (store.root / "products").mkdir(parents=True)
    for name in ("apt", "blobs", "locks.json"):
        (store.root / name).symlink_to(STORE.root / name)
    digits = named(baked_plan("cpu"), "digits-build").digest
    for product in (STORE.root / "products").glob("[0-9a-f]*"):
        if product.name != digits:
            (store.root / "products" / product.name).symlink_to(product)
    assert store.product(digits) is None
    return store


@pytest.fixture
def name() -> Iterator[str]:
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    yield name
    subprocess.run(["docker", "rm", "--force", "--volumes", name], check=True, capture_output=True)


def test_a_node_start_bakes_the_products_that_its_roles_read(poorer_store: Store, name: str) -> None:
    command = [KILN, f"--root={CHECKOUT}", f"--store={poorer_store.root}", "node", "start", "cpu", name]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "digits-build" in done.stdout
    said = subprocess.run(["docker", "inspect", name], check=True, capture_output=True, text=True)
    (mounts,) = (entry["Mounts"] for entry in json.loads(said.stdout))
    (digits,) = (Path(mount["Source"]) for mount in mounts if mount["Destination"] == "/run/kiln/products/digits-build")
    assert list(digits.glob("train-images*"))


def test_an_image_that_is_not_baked_is_named(tmp_path: Path, name: str) -> None:
    command = [KILN, f"--root={CHECKOUT}", f"--store={tmp_path / 'empty'}", "node", "start", "cpu", name]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not baked; run kiln bake first" in done.stderr


def node(*words: str | Path, store: Path) -> subprocess.CompletedProcess[str]:
    command = [KILN, f"--root={CHECKOUT}", f"--store={store}", "node", *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["/other", "../other", ".*", "a", "", "[a-z]*"])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    (tmp_path / "store").mkdir()
    other.mkdir()
    for words in (["stop", name], ["start", "cpu", name]):
        done = node(*words, store=tmp_path / "store")
        assert done.returncode == 2, done.stdout
        assert "is no name of a container" in done.stderr
    assert other.is_dir()


def test_the_end_of_a_node_removes_no_other_folder(tmp_path: Path, name: str) -> None:
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.mkdir()
    (mine / "thesis").touch()
    link.symlink_to(mine)
    for work in (mine, link, mine / "thesis"):
        for words in (["stop", name], ["start", "cpu", name]):
            done = node(*words, f"--work={work}", store=STORE.root)
            assert done.returncode == 2, done.stdout
            assert str(work) in done.stderr
    assert (mine / "thesis").is_file()


def test_the_end_of_a_node_removes_no_other_container(name: str) -> None:
    tag = named(baked_plan("cpu"), "seal").reference
    subprocess.run(["docker", "run", "--detach", "--name", name, tag, "sleep", "60"], check=True, capture_output=True)
    done = node("stop", name, store=STORE.root)
    assert done.returncode == 2, done.stdout
    assert "none of kiln node start's" in done.stderr
    # A dot in a name stands for itself.
    assert node("stop", f"{name[:-1]}.", store=STORE.root).returncode == 0
    assert subprocess.run(["docker", "inspect", name], check=False, capture_output=True).returncode == 0


def test_a_node_and_its_folder_end_together(tmp_path: Path, name: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for _ in range(2):
        done = node("start", "cpu", name, f"--work={work}", store=STORE.root)
        assert done.returncode == 0, done.stderr
        assert "already" in node("start", "cpu", name, f"--work={work}", store=STORE.root).stderr
        assert node("stop", name, f"--work={work}", store=STORE.root).stdout == f"{name} is gone\n"
        assert not work.exists()
    assert node("stop", name, f"--work={work}", store=STORE.root).stdout == f"there is no node {name}\n"
