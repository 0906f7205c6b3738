"""A node gets what its roles read, even where the store that its image was baked with is gone."""

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
