"""Reads a package, a folder or an archive, ours or not, without trusting it."""

from __future__ import annotations

import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from kiln.errors import KilnError

MOST_BYTES = 4 * 1024 * 1024
"""Of one file, and of all files: a package is a few hundred kB at most."""
MOST_MEMBERS = 1000
_FIX = "name a folder, or a .tar.gz, .tar or .zip archive, that holds config.json"
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)


def read_package(path: Path) -> dict[str, bytes]:
    """Path inside the package to content; raises KilnError when ``path`` cannot be read as a package at all.

    A package may lie in one folder inside the archive.
    """
    files: dict[str, bytes] = {}
    total = 0
    try:
        for number, (name, content) in enumerate(_members(path)):
            total += len(content)
            if number >= MOST_MEMBERS or total > MOST_BYTES:
                raise KilnError(
                    f"holds more than {MOST_MEMBERS} files or {MOST_BYTES >> 20} MiB", where=str(path), fix=_FIX
                )
            files[name] = content
    except (*_BROKEN, RuntimeError) as error:  # RuntimeError: an encrypted member of a .zip
        raise KilnError(f"is no archive that can be read ({error})", where=str(path), fix=_FIX) from None
    except OSError as error:
        raise KilnError(
            f"cannot be read ({error.strerror or error})", where=str(error.filename or path), fix=_FIX
        ) from None
    return _without_folder(files)


def _without_folder(files: dict[str, bytes]) -> dict[str, bytes]:
    """``files`` relative to where config.json, or failing that the topology, lies."""
    for wanted in ("config.json", "cluster.json.mustache"):
        folders = [PurePosixPath(name).parent for name in files if PurePosixPath(name).name == wanted]
        if folders:
            folder = min(folders, key=lambda found: (len(found.parts), str(found)))
            return {
                str(PurePosixPath(name).relative_to(folder)): content
                for name, content in files.items()
                if PurePosixPath(name).is_relative_to(folder)
            }
    return files


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        yield from _folder(path)
        return
    # A device has no end, and a pipe keeps waiting.
    if not stat.S_ISREG(path.stat().st_mode):
        raise KilnError("is neither a folder nor a file", where=str(path), fix=_FIX)
    with path.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise KilnError(f"is larger than {MOST_BYTES >> 20} MiB", where=str(path), fix=_FIX)
    if zipfile.is_zipfile(io.BytesIO(content)):
        yield from _zip(content)
    else:
        yield from _tar(content)


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            if file.is_file():
                with file.open("rb") as stream:
                    yield file.relative_to(path).as_posix(), stream.read(MOST_BYTES + 1)


def _zip(content: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as stream:
                    yield _clean(member.filename), stream.read(MOST_BYTES + 1)


def _tar(content: bytes) -> Iterator[tuple[str, bytes]]:
    # As a stream: it is unpacked once, and no further than it is read.
    with tarfile.open(fileobj=io.BytesIO(content), mode="r|*") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield _clean(member.name), stream.read(MOST_BYTES + 1)


def _clean(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")))
