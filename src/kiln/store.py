"""The local store: downloads by sha256, products of build stages by stage digest, and what this machine locked.

Everything enters under a temporary name on the same file system, is checked and synced, and is then renamed: what
stands under its final name is whole. Several processes may share one store.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from kiln.artifact import Artifact, is_sha256
from kiln.errors import KilnError
from kiln.project import Project
from kiln.tables import SAFE_LOADER

CHUNK = 1 << 16
"""Bytes read at once: few enough that a slow transfer can be interrupted soon."""


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, 64 lower-case hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256(value: object) -> str:
    """``value`` if it is a sha256; raises ValueError else."""
    if not isinstance(value, str) or not is_sha256(value):
        raise ValueError(value)
    return value


class Store:
    """One store below ``root``; ``first_fetch`` is the project's file of checksums locked at the first fetch."""

    def __init__(self, root: Path, first_fetch: Path | None = None) -> None:
        self.root = root
        self.first_fetch = first_fetch

    @classmethod
    def of(cls, project: Project) -> Store:
        """The project's store, with the project's own locks."""
        return cls(project.store, project.images / "locks" / "first-fetch.yml")

    # Blobs

    def blob_path(self, sha256: str) -> Path:
        """Where the content with this digest stands once it is there."""
        return self.root / "blobs" / sha256[:2] / sha256

    def blob(self, sha256: str) -> Path | None:
        """The content with this digest, if the store holds it."""
        path = self.blob_path(sha256)
        return path if path.is_file() else None

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A name for a download in progress, on the store's file system; gone afterwards, whatever happens."""
        folder = self.root / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def add(self, path: Path, sha256: str | None = None) -> str:
        """Moves ``path``, a file on the store's file system, into the store; returns its digest.

        Raises KilnError when the content is not what ``sha256`` says; the store is then as before.
        """
        found = file_sha256(path)
        if sha256 is not None and found != sha256:
            raise KilnError(
                f"has sha256 {found}, not {sha256}",
                where=str(path),
                fix="the source changed or the transfer was damaged: fetch again, and correct the table if it stays",
            )
        target = self.blob_path(found)
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.chmod(0o444)
        path.replace(target)
        return found

    def remove_stale(self) -> None:
        """Removes what fetches and builds of dead processes left."""
        for folder in (self.root / "incoming", self.root / "products" / ".new"):
            for path in folder.glob("*-*"):
                pid = path.name.partition("-")[0]
                if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)

    # Locks

    def locked_sha256(self, artifact: Artifact) -> str | None:
        """The artifact's checksum: the table's, or the one locked when it first arrived; none before it did."""
        if artifact.sha256:
            return artifact.sha256
        if artifact.origin == "host":
            return self.machine_lock(artifact.key)
        return self.first_fetch_lock(artifact.key)

    def lookup(self, artifact: Artifact) -> Path | None:
        """The artifact's file, if its checksum is known and the content there."""
        sha256 = self.locked_sha256(artifact)
        return self.blob(sha256) if sha256 else None

    def machine_lock(self, name: str) -> str | None:
        """A digest that this machine locked under ``name``; none before it did."""
        return self.machine_locks().get(name)

    def set_machine_lock(self, name: str, digest: str) -> None:
        """Locks ``digest`` under ``name`` on this machine."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._exclusive("locks"):
            locks = self.machine_locks() | {name: digest}
            self._replace(self.root / "locks.json", json.dumps(locks, indent=1, sort_keys=True) + "\n")

    def machine_locks(self) -> dict[str, str]:
        """Everything that this machine locked: name to digest."""
        path = self.root / "locks.json"
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        try:
            locks = json.loads(text)
            return {str(name): str(digest) for name, digest in locks.items()}
        except (ValueError, AttributeError):
            raise KilnError(
                "is damaged", where=str(path), fix="remove it; the machine's locks are then made anew"
            ) from None

    def first_fetch_lock(self, key: str) -> str | None:
        """The checksum that was locked when ``key`` was first fetched."""
        return self._first_fetch_locks().get(key)

    def set_first_fetch_lock(self, key: str, sha256: str) -> None:
        """Locks a first checksum in the project; raises KilnError when another one is locked already."""
        if self.first_fetch is None:
            raise KilnError(f"{key} has no sha256 and there is no project to lock it in", fix="give it a sha256")
        self.root.mkdir(parents=True, exist_ok=True)
        with self._exclusive("first-fetch"):
            locks = self._first_fetch_locks()
            if locks.get(key, sha256) != sha256:
                raise KilnError(
                    f"{key} changed: it was {locks[key]} when first fetched and is {sha256} now",
                    where=str(self.first_fetch),
                    fix="find out why; remove the line to accept the change",
                )
            locks[key] = sha256
            self.first_fetch.parent.mkdir(parents=True, exist_ok=True)
            head = (
                "# Checksums of artifacts marked lock: first-fetch, as they first arrived; by kiln artifacts fetch.\n"
            )
            self._replace(self.first_fetch, head + yaml.safe_dump(dict(sorted(locks.items())), width=1000))

    def _first_fetch_locks(self) -> dict[str, str]:
        if self.first_fetch is None or not self.first_fetch.is_file():
            return {}
        try:
            locks = SAFE_LOADER(self.first_fetch.read_bytes()).get_single_data() or {}
            return {str(key): _sha256(sha256) for key, sha256 in locks.items()}
        except (yaml.YAMLError, ValueError, AttributeError):
            raise KilnError(
                "must hold a mapping of artifacts to sha256, each of 64 lower-case hex digits",
                where=str(self.first_fetch),
                fix="restore it from version control",
            ) from None

    @contextmanager
    def _exclusive(self, name: str) -> Iterator[None]:
        with (self.root / f".{name}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    # Products of build stages

    def product(self, digest: str) -> Path | None:
        """The folder that the build stage with this digest made, if it is whole."""
        path = self.root / "products" / digest
        return path if path.is_dir() else None

    def new_product(self) -> Path:
        """An empty folder for a build stage to write into."""
        path = self.root / "products" / ".new" / f"{os.getpid()}-{uuid.uuid4().hex}"
        path.mkdir(parents=True)
        return path

    def keep_product(self, folder: Path, digest: str) -> Path:
        """Takes a finished product in: lists its checksums in SHA256SUMS, syncs, renames."""
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            raise KilnError("the build stage wrote nothing", where=str(folder), fix="correct its role")
        sums = "".join(f"{file_sha256(path)}  {path.relative_to(folder)}\n" for path in files)
        (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
        os.sync()
        target = self.root / "products" / digest
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(folder)  # another process made the same
        return target
