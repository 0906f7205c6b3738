"""What was read of layers and wheels, kept by their digests."""

from __future__ import annotations

import hashlib
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec

from kiln.elf_tree import Layer
from kiln.errors import KilnError
from kiln.store import Store

READERS = 2
"""Processes that read at once: more only wait for the disk."""

T = TypeVar("T")


@cache
def _folder() -> str:
    """Results are kept by the code that makes them: other code reads other things."""
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("elf.py", "elf_tree.py"))
    return hashlib.sha256(code).hexdigest()[:16]


def cached_path(store: Store, kind: str, digest: str) -> Path:
    """Where a result is kept: of a layer by its digest, of a wheel by its sha256."""
    return store.root / "elf" / _folder() / kind / digest


def keep(path: Path, content: bytes) -> None:
    """Writes a result; whoever reads it meanwhile sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def kept_layer(path: Path) -> Layer | None:
    """A layer read before; none where there is none, or a damaged one."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Layer)
    except (OSError, msgspec.MsgspecError):
        return None


def keep_layer(path: Path, layer: Layer) -> None:
    """Keeps a layer for the next time."""
    keep(path, msgspec.msgpack.encode(layer))


def read_all(read: Callable[[T], Layer], sources: Sequence[T]) -> list[Layer]:
    """``read`` of each source, some at a time, in the order of ``sources``."""
    if len(sources) < 2:
        return [read(source) for source in sources]
    # Imported only here: what is kept already needs no processes.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(READERS, multiprocessing.get_context("fork"), initializer=_let_the_parent_decide) as pool:
        try:
            running = [pool.submit(read, source) for source in sources]
            return [future.result() for future in running]
        except BrokenProcessPool:
            raise KilnError("a process that reads files was killed", fix="free some memory, and run it again") from None
        except BaseException:
            # Nobody waits for what they are reading.
            for reader in set(multiprocessing.active_children()) - others:
                reader.terminate()
            raise


def _let_the_parent_decide() -> None:
    """A reader dies with its pool: Ctrl-C reaches every process of a terminal, and only one may speak of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
