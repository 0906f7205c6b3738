"""What a stage's container is given: artifacts, products, and an apt that reaches this machine's mirrors."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from kiln import bootstrap
from kiln.artifact import Artifact, is_sha256
from kiln.errors import KilnError
from kiln.plan import Plan, Stage
from kiln.store import Store
from kiln.wheels import requirement_files

Mount = tuple[str, str, str]
"""(path on this machine, path in the container, ``ro`` or ``rw``)"""


class Supplies:
    """Gets a stage's inputs out of the store."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store
        self._taken: set[Path] = set()
        self._guard = threading.Lock()

    def mounts(self, stage: Stage, folder: Path, proxies: Mapping[str, str], stack: ExitStack) -> list[Mount]:
        """Lays out ``folder`` for the stage and returns what is to be mounted; ``stack`` frees it after the stage.

        ``proxies``: host name to the proxy that answers for it.
        """
        kiln = folder / "kiln"
        for name in ("artifacts", "products", "out"):
            (kiln / name).mkdir(parents=True)
        for group, artifact in stage.artifacts:
            (kiln / "artifacts" / group).mkdir(exist_ok=True)
            place_file(self.artifact(artifact), kiln / "artifacts" / group / artifact.file)
        for name, text in requirement_files(self.locked(stage).artifacts).items():
            (kiln / "artifacts" / name).write_text(text, encoding="utf-8")
        mounts = [(str(kiln), "/run/kiln", "ro")]
        for name, digest in stage.products:
            (kiln / "products" / name).mkdir()
            mounts.append((str(self.product(name, digest)), f"/run/kiln/products/{name}", "ro"))
        index = self.index(stage)
        sources = (index / "sources.list").read_text(encoding="utf-8")
        bootstrap.apt_configuration(kiln, sources, proxies=proxies)
        bootstrap.copy_lists(index, folder / "lists")
        mounts.append((str(folder / "lists"), "/var/lib/apt/lists", "rw"))
        mounts.append((str(stack.enter_context(self._archives(stage.name))), "/var/cache/apt/archives", "rw"))
        return mounts

    def locked(self, stage: Stage) -> Stage:
        """The stage with the checksums that its artifacts got at their first fetch."""
        locked = [
            (group, replace(artifact, sha256=self.store.locked_sha256(artifact))) for group, artifact in stage.artifacts
        ]
        return replace(stage, artifacts=tuple(locked))

    def served(self, stage: Stage) -> dict[str, Path]:
        """Host name to the folder that answers for it during the stage."""
        products = dict(stage.products)
        return {host: self.product(name, products[name]) / host for host, name in stage.serve}

    def index(self, stage: Stage) -> Path:
        """The locked apt index of the base that the stage stands on."""
        root = stage
        while root.parent:
            root = self.plan.by_digest[root.parent]
        planned = root.inputs.get(bootstrap.INDEX_INPUT, "")
        if is_sha256(planned):  # not the lock: another bake may have refreshed it since
            index = bootstrap.index_folder(self.store, planned)
            if not (index / "lists").is_dir():
                raise KilnError("the apt index that was planned with is gone", where=str(index), fix="run it again")
            return index
        base = bootstrap.Base.of(root.variables)
        tarball = self.tarball(root) if base.kind == "tarball" else None
        return bootstrap.index_folder(self.store, bootstrap.lock_index(self.store, base, tarball=tarball))

    def tarball(self, root: Stage) -> Path:
        """The archive that a tarball base is imported from."""
        if len(root.artifacts) != 1:
            raise KilnError(
                f"stage {root.name} has {len(root.artifacts)} artifacts, not one tarball",
                fix="name a group of one file as the channel's base",
            )
        return self.artifact(root.artifacts[0][1])

    def artifact(self, artifact: Artifact) -> Path:
        """The artifact's file in the store."""
        path = self.store.lookup(artifact)
        if path is None:
            raise KilnError("is not in the store", where=artifact.file, fix="run kiln bake --inputs")
        return path

    def product(self, name: str, digest: str) -> Path:
        """What a build stage made."""
        path = self.store.product(digest)
        if path is None:
            raise KilnError(f"the product of stage {name} is not in the store", fix="run kiln bake --inputs")
        return path

    @contextmanager
    def _archives(self, name: str) -> Iterator[Path]:
        """A folder of downloaded packages for stages called ``name``; apt locks it, so two at once get two."""
        with self._guard:
            number = 0
            folder = self.store.root / "archives" / name
            while folder in self._taken:
                number += 1
                folder = self.store.root / "archives" / f"{name}.{number}"
            self._taken.add(folder)
        (folder / "partial").mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        finally:
            with self._guard:
                self._taken.discard(folder)


def place_file(source: Path, target: Path) -> None:
    """``source`` under another name, without a copy where the file system allows it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
