"""What an image holds before anybody works with it: what its nodes are compared with."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiln.engine import Engine
from kiln.errors import KilnError
from kiln.losses_place import Container, Place
from kiln.store import Store


def _image_id(reference: str) -> str:
    run = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{.Id}}", reference], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise KilnError(f"there is no image {reference} to compare with", fix="bake it, or pull it")
    return run.stdout.strip().removeprefix("sha256:")


@contextmanager
def _started(image: str) -> Iterator[Place]:
    """A container of the image that does nothing, and is gone afterwards."""
    engine = Engine()
    name = f"kiln-baseline-{uuid.uuid4().hex[:12]}"
    try:
        engine.run_idle(image, name)
        yield Place.of(image, Container(name))
    finally:
        for container in engine.containers(f"{name}$"):
            engine.remove_container(container)


def baseline(image: str, store: Store, workspaces: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The manifest of an image's files and its facts; made at the first call, which takes about 10 s, then kept."""
    folder = store.root / "baselines"
    folder.mkdir(parents=True, exist_ok=True)
    identity = _image_id(image)
    manifest, facts = folder / f"{identity}.manifest", folder / f"{identity}.json"
    if not manifest.is_file() or not facts.is_file():
        with _started(image) as place:
            with store.temporary() as temporary:
                place.manifest(temporary, content=True)
                temporary.replace(manifest)
            with store.temporary() as temporary:
                temporary.write_text(json.dumps(place.ask(["facts", *workspaces])), encoding="utf-8")
                temporary.replace(facts)
    return manifest, json.loads(facts.read_text(encoding="utf-8"))
