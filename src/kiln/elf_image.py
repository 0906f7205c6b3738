"""The file systems of images and containers, read from the engine's layers and kept by the layers' digests."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kiln.elf_cache import cached_path, keep_layer, kept_layer, read_all
from kiln.elf_tree import Layer, read_archive, read_folder
from kiln.engine import engine_host
from kiln.errors import KilnError
from kiln.store import Store

Kind = Literal["image", "container"]


@dataclass(frozen=True)
class Place:
    """One layer: where the engine keeps it, and the digest of its content where that cannot change."""

    folder: Path
    digest: str | None


def read_layers(store: Store, name: str, kind: Kind) -> list[Layer]:
    """The file system of an image, or of a container with all that changed in it; raises KilnError without one."""
    described = _inspect(name, kind)
    places = _places(described, kind)
    if places is not None:
        return _read_places(store, places)
    path = cached_path(store, "images", described["Id"].removeprefix("sha256:"))
    layer = kept_layer(path) if kind == "image" else None
    if layer is None:
        layer = _export(name, kind)
        if kind == "image":
            keep_layer(path, layer)
    return [layer]


def _inspect(name: str, kind: Kind) -> dict[str, Any]:
    run = subprocess.run(["docker", "inspect", "--type", kind, "--", name], capture_output=True, text=True, check=False)
    if run.returncode:
        raise KilnError(f"there is no {kind} {name}", fix="bake it, or name one of docker images")
    found: dict[str, Any] = json.loads(run.stdout)[0]
    return found


def _places(described: dict[str, Any], kind: Kind) -> list[Place] | None:
    """The layers, lowest first; none where the engine keeps them otherwise, elsewhere or out of reach."""
    if described["GraphDriver"]["Name"] != "overlay2" or not engine_host().startswith("unix://"):
        return None
    image = described if kind == "image" else _inspect(described["Image"], "image")
    folders = _folders(image)
    digests = [digest.removeprefix("sha256:") for digest in image["RootFS"]["Layers"]]
    if len(folders) != len(digests):
        return None
    known = dict(zip(folders, digests, strict=True))
    places = [Place(folder, known.get(folder)) for folder in _folders(described)]
    readable = all(os.access(place.folder, os.R_OK | os.X_OK) for place in places)
    return places if readable and _whole() else None


def _folders(described: dict[str, Any]) -> list[Path]:
    data = described["GraphDriver"]["Data"]
    lower = data["LowerDir"].split(":")[::-1] if data.get("LowerDir") else []
    return [Path(folder) for folder in (*lower, data["UpperDir"])]


def _whole() -> bool:
    """Whether a layer's folder holds all of the layer: overlayfs can keep names and modes alone of what was renamed."""
    run = subprocess.run(
        ["docker", "info", "--format", "{{json .DriverStatus}}"], capture_output=True, text=True, check=False
    )
    return run.returncode == 0 and ["Native Overlay Diff", "true"] in (json.loads(run.stdout) or [])


def _read_places(store: Store, places: Sequence[Place]) -> list[Layer]:
    paths = [cached_path(store, "layers", place.digest) if place.digest else None for place in places]
    layers = [kept_layer(path) if path else None for path in paths]
    missing = [number for number, layer in enumerate(layers) if layer is None]
    folders = [places[number].folder for number in missing]
    for number, layer in zip(missing, read_all(read_folder, folders), strict=True):
        layers[number] = layer
        path = paths[number]
        if path is not None:
            keep_layer(path, layer)
    return [layer for layer in layers if layer is not None]


def _export(name: str, kind: Kind) -> Layer:
    """Reads what ``docker export`` tells, while it tells it."""
    container = name
    if kind == "image":
        container = f"kiln-elf-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        _docker("create", "--name", container, name, "true")
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            assert run.stdout is not None
            layer = read_archive(run.stdout)
            # tar's end is known before the stream's.
            while run.stdout.read(1 << 20):
                pass
        if run.returncode:
            raise KilnError(f"the Docker engine cannot export {name}", fix="look at the engine's log")
        return layer
    finally:
        if kind == "image":
            _docker("rm", "--force", container)


def _docker(*words: str) -> None:
    run = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    if run.returncode:
        raise KilnError(f"docker {words[0]} fails ({run.stderr.strip()})", fix="look at the engine's log")
