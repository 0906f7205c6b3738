"""The interpreters that this machine has already, packed as artifacts of the registry channel."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kiln.errors import KilnError
from kiln.store import Store

UCS4 = 0x10FFFF
"""``sys.maxunicode`` of an interpreter whose wheels are cp27mu; UCS2 builds have 0xFFFF (PEP 261, PEP 513)."""

EPOCH = 1533081600
"""Modification time of every packed file, seconds since 1970 (2018-08-01): the same prefix packs to the same bytes."""

_OWN_PROGRAMS = ("python", "pydoc", "2to3")
"""What the names in bin/ start with that are the interpreter's, not an installed package's."""

_QUESTION = """
import json, sys
print(json.dumps({
    "version": "%d.%d.%d" % sys.version_info[:3],
    "final": sys.version_info[3] == "final",
    "maxunicode": sys.maxunicode,
    "prefix": sys.prefix,
    "base_prefix": getattr(sys, "base_prefix", getattr(sys, "real_prefix", sys.prefix)),
}))
"""


@dataclass(frozen=True)
class HostPython:
    """An interpreter that stands in a prefix of its own on this machine."""

    version: str
    prefix: Path


def find_host_python(version: str) -> HostPython | None:
    """The interpreter of exactly ``version`` among pyenv's and those on the PATH; none where this machine has no such.

    It must be UCS4 and have a prefix of its own: a distribution's, under /usr, cannot be carried elsewhere.
    """
    for program in _candidates(version):
        found = _examine(program)
        if found and found.version == version:
            return found
    return None


def can_pack(version: str, store: Store) -> bool:
    """Whether this machine's Python of exactly ``version`` is packed in ``store``, or could be."""
    locked = store.machine_lock(f"host {version} python-{version}.tar")
    return bool(locked and store.blob(locked)) or find_host_python(version) is not None


def pack_host_python(version: str, target: Path) -> None:
    """Writes the interpreter as a tar to ``target``; everything stands under ``python-VERSION/``.

    Left out is what its use leaves behind: byte code, installed packages and their programs. The same prefix gives the
    same bytes.
    Raises KilnError where this machine has no such interpreter, or its files cannot be read.
    """
    found = find_host_python(version)
    if found is None:
        raise KilnError(
            f"this machine has no Python {version} of its own (UCS4, outside /usr)",
            where="PATH and pyenv",
            fix=f"run pyenv install {version}, or let it be built from source",
        )
    try:
        with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
            for path in _files(found.prefix):
                _add(archive, path, f"python-{version}/{path.relative_to(found.prefix)}")
    except OSError as error:
        raise KilnError(
            f"Python {version} cannot be packed ({error.strerror})",
            where=str(error.filename or target),
            fix="make it readable",
        ) from None


def _candidates(version: str) -> Iterator[Path]:
    series = ".".join(version.split(".")[:2])
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [pyenv / "versions" / version / "bin", *map(Path, os.environ.get("PATH", "").split(os.pathsep))]
    for folder in folders:
        program = folder / f"python{series}"
        if folder.is_absolute() and program.is_file() and os.access(program, os.X_OK):
            yield program


def _examine(program: Path) -> HostPython | None:
    try:
        answer = subprocess.run(
            [str(program), "-I" if not program.name.endswith("2.7") else "-E", "-c", _QUESTION],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        facts = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None  # a shim without its version, or a broken interpreter: not one to carry
    prefix = Path(facts["prefix"])
    usable = facts["final"] and facts["maxunicode"] == UCS4 and facts["prefix"] == facts["base_prefix"]
    return HostPython(facts["version"], prefix) if usable and prefix not in (Path("/"), Path("/usr")) else None


def _files(prefix: Path) -> Iterator[Path]:
    """What the interpreter's own installation put there, in a fixed order."""
    yield from sorted(path for path in (prefix / "bin").iterdir() if path.name.startswith(_OWN_PROGRAMS))
    for top in ("include", "lib"):
        for folder, folders, names in os.walk(prefix / top):
            place = Path(folder)
            links = [name for name in folders if (place / name).is_symlink()]
            folders[:] = sorted(set(folders) - {"__pycache__", "site-packages", *links})
            yield place
            yield from (place / name for name in sorted([*names, *links]) if not name.endswith((".pyc", ".pyo")))


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    status = path.lstat()
    entry = tarfile.TarInfo(name)
    entry.mtime = EPOCH
    if path.is_symlink():
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        archive.addfile(entry)
    elif path.is_dir():
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
    else:
        content = path.read_bytes()
        entry.size, entry.mode = len(content), 0o755 if status.st_mode & 0o100 else 0o644
        archive.addfile(entry, io.BytesIO(content))
