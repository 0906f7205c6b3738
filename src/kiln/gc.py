"""Removes what this store's bakes made and the tables no longer lead to; finished images are left alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from kiln.bootstrap import index_folder
from kiln.engine import STAGES, Engine, stage_tags
from kiln.store import Store

LOG_DAYS = 30
"""A stage's log is kept that long."""


@dataclass(frozen=True)
class Rubbish:
    """One thing that nothing leads to."""

    kind: str
    """stage, product, download, package list, baseline or log."""
    name: str
    size: int
    """Bytes in the store; 0 for a stage, whose layers may be shared with a finished image."""
    path: Path | None = None
    reference: str | None = None


def find(store: Store, stages: Collection[str], blobs: Collection[str]) -> list[Rubbish]:
    """Everything of ``store`` beyond the stages (by digest) and downloads (by sha256) given.

    Stages of other stores in the same engine are not this store's to remove.
    """
    return [
        *_stages(store, stages),
        *_folders(store.root / "products", "product", stages),
        *_downloads(store, blobs),
        *_folders(store.root / "apt", "package list", _locked_indexes(store)),
        *_baselines(store.root / "baselines"),
        *_logs(store.root / "logs"),
    ]


def remove(rubbish: Collection[Rubbish], engine: Engine) -> list[Rubbish]:
    """Removes it; returns what is gone. A stage that a container stands on stays."""
    gone = []
    for item in rubbish:
        if item.reference is not None:
            if not engine.remove_image(item.reference):
                continue
        elif item.path is not None and item.path.is_dir():
            shutil.rmtree(item.path)
        elif item.path is not None:
            item.path.unlink(missing_ok=True)
        gone.append(item)
    engine.remove_untagged()
    return gone


def as_text(rubbish: Collection[Rubbish], word: str) -> str:
    """One line for each kind: how many, how large."""
    lines = []
    for kind in dict.fromkeys(item.kind for item in rubbish):
        items = [item for item in rubbish if item.kind == kind]
        size = sum(item.size for item in items)
        plural = kind + "s" * (len(items) > 1)
        lines.append(f"{word} {len(items)} {plural}" + (f", {size / 1e6:.1f} MB" if size else ""))
    return "\n".join(lines) or "nothing to remove"


def _stages(store: Store, keep: Collection[str]) -> Iterator[Rubbish]:
    made = {path.stem for path in (store.root / "records").glob("*.json")}
    # The engine lists the newest first: a stage goes before the one it stands on.
    for digest in stage_tags():
        if digest in made and digest not in keep:
            yield Rubbish("stage", digest, 0, reference=f"{STAGES}:{digest}")


def _folders(root: Path, kind: str, keep: Collection[str]) -> Iterator[Rubbish]:
    for path in sorted(root.glob("[0-9a-f]*")):
        if path.name not in keep:
            yield Rubbish(kind, path.name, _size(path), path)


def _downloads(store: Store, keep: Collection[str]) -> Iterator[Rubbish]:
    for path in sorted((store.root / "blobs").glob("??/*")):
        if path.name not in keep:
            yield Rubbish("download", path.name, path.stat().st_size, path)


def _locked_indexes(store: Store) -> set[str]:
    return {index_folder(store, digest).name for digest in store.machine_locks().values()}


def _baselines(root: Path) -> Iterator[Rubbish]:
    """What nodes were compared with, of images that the engine no longer has."""
    there = {image["Id"].removeprefix("sha256:") for image in Engine().images()}
    for path in sorted(root.glob("*")):
        if path.stem not in there:
            yield Rubbish("baseline", path.name, path.stat().st_size, path)


def _logs(root: Path) -> Iterator[Rubbish]:
    for path in sorted(root.glob("*.log")):
        found = path.stat()
        if time.time() - found.st_mtime > LOG_DAYS * 86400:
            yield Rubbish("log", path.name, found.st_size, path)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
