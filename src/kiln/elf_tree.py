"""A root file system as the loader sees it: ELF files, links and folders, put together from an image's layers."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from kiln.elf import MAGIC, BadElfError, Elf, read_elf

OUTSIDE = frozenset({"/proc", "/sys", "/dev", "/run", "/var/lib/docker", "/var/lib/containerd"})
"""Made anew at every boot, or file systems of other systems."""

LOADER_CACHE = "/etc/ld.so.cache"

MOST_LINKS = 40
"""Links in one path before the kernel gives up: MAXSYMLINKS of Linux's <linux/namei.h>."""

IN_MEMORY = 256 << 20
"""Bytes; larger files out of an archive are read from an unnamed temporary file."""


class Link(msgspec.Struct, frozen=True, tag=True):
    """A symbolic link."""

    target: str


class Bad(msgspec.Struct, frozen=True, tag=True):
    """A file that begins as ELF, and what is wrong with it."""

    why: str


class Plain(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Any other file."""

    content: bytes = b""
    """Kept of the loader's cache only."""


PLAIN = Plain()

File = Elf | Link | Bad | Plain
Node = File | dict[str, "Node"]


class Folder(msgspec.Struct, array_like=True, omit_defaults=True):
    """What one layer has in one folder, by name; folders in it have entries of their own."""

    elves: dict[str, Elf] = {}
    links: dict[str, str] = {}
    bad: dict[str, str] = {}
    plain: list[str] = []
    kept: dict[str, bytes] = {}
    gone: list[str] = []
    """Of lower layers; removed here."""
    opaque: bool = False
    """Nothing of lower layers shows."""

    def put(self, name: str, file: File) -> None:
        """Adds one file."""
        if isinstance(file, Elf):
            self.elves[name] = file
        elif isinstance(file, Link):
            self.links[name] = file.target
        elif isinstance(file, Bad):
            self.bad[name] = file.why
        elif file.content:
            self.kept[name] = file.content
        else:
            self.plain.append(name)

    def files(self) -> Iterator[tuple[str, File]]:
        """Name and file of everything that is here."""
        yield from self.elves.items()
        for name in self.plain:
            yield name, PLAIN
        for name, target in self.links.items():
            yield name, Link(target)
        for name, why in self.bad.items():
            yield name, Bad(why)
        for name, content in self.kept.items():
            yield name, Plain(content)


Layer = dict[str, Folder]
"""Path of a folder (``/`` for the root) to what stands in it, outer folders first."""


def read_folder(root: Path, *, one_device: bool = False) -> Layer:
    """The layer below ``root``, as overlayfs keeps it: a device 0/0 hides a name, an attribute hides a whole folder.

    What vanishes while it is read, or may not be read, is passed over; with ``one_device`` also what is mounted below.
    Source: the kernel's overlayfs.rst.
    """
    layer: Layer = {}
    known: dict[tuple[int, int], File] = {}
    for place, folders, names in os.walk(root):
        folder = Path(place)
        path = posixpath.normpath("/" + _text(str(folder.relative_to(root))))
        folders[:] = [name for name in folders if posixpath.join(path, name) not in OUTSIDE]
        if one_device:
            folders[:] = [name for name in folders if not (folder / name).is_mount()]
        here = Folder(opaque=_opaque(folder))
        for name in [*folders, *names]:
            try:
                status = (folder / name).lstat()
                if stat.S_ISDIR(status.st_mode):
                    continue
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    here.gone.append(_text(name))
                    continue
                identity = (status.st_dev, status.st_ino)
                if identity not in known or status.st_nlink == 1:
                    known[identity] = _read(folder / name, posixpath.join(path, name), status)
                here.put(_text(name), known[identity])
            except (FileNotFoundError, PermissionError):
                continue
        layer[path] = here
    return layer


def _opaque(folder: Path) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _read(place: Path, path: str, status: os.stat_result) -> File:
    if stat.S_ISLNK(status.st_mode):
        return Link(_text(str(place.readlink())))
    if not stat.S_ISREG(status.st_mode) or status.st_size < len(MAGIC):
        return PLAIN
    with place.open("rb") as stream:
        return classify(stream, path)


def classify(stream: IO[bytes], path: str) -> File:
    """What the regular file at ``path`` is, from its content."""
    if path == LOADER_CACHE:
        return Plain(stream.read())
    try:
        return read_elf(stream) or PLAIN
    except BadElfError as error:
        return Bad(str(error))


def read_archive(stream: IO[bytes]) -> Layer:
    """A whole root file system as a tar archive that comes in once; nothing but one large file at a time is on disk."""
    import tarfile

    layer: Layer = {"/": Folder()}
    known: dict[str, File] = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            path = posixpath.normpath("/" + _text(member.name))
            if any(path == outside or path.startswith(f"{outside}/") for outside in OUTSIDE):
                continue
            if member.isdir():
                layer.setdefault(path, Folder())
                continue
            file: File = PLAIN
            if member.issym():
                file = Link(_text(member.linkname))
            elif member.islnk():
                file = known.get(posixpath.normpath("/" + _text(member.linkname)), PLAIN)
            elif member.isfile() and member.size >= len(MAGIC):
                content = archive.extractfile(member)
                if content is not None:
                    file = from_stream(content, path)
            known[path] = file
            layer.setdefault(posixpath.dirname(path), Folder()).put(posixpath.basename(path), file)
    return layer


def from_stream(stream: IO[bytes], path: str) -> File:
    """``classify`` of a file that can only be read forward."""
    begin = stream.read(len(MAGIC))
    if begin != MAGIC and path != LOADER_CACHE:
        return PLAIN
    import tempfile

    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as copy:
        copy.write(begin)
        while chunk := stream.read(1 << 20):
            copy.write(chunk)
        copy.seek(0)
        return classify(copy, path)


def _text(name: str) -> str:
    """A file's name so that it can be printed and stored, UTF-8 or not."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Tree:
    """Layers on top of each other, lowest first; every path is resolved inside."""

    def __init__(self, layers: Iterator[Layer] | list[Layer]) -> None:
        self.root: dict[str, Node] = {}
        for layer in layers:
            for path, folder in layer.items():
                self._merge(path, folder)

    def _merge(self, path: str, folder: Folder) -> None:
        here = self.root
        for name in path.split("/"):
            if name:
                below = here.get(name)
                if not isinstance(below, dict):
                    below = here[name] = {}
                here = below
        if folder.opaque:
            here.clear()
        for name in folder.gone:
            here.pop(name, None)
        here.update(folder.files())

    def find(self, path: str) -> tuple[str, Node] | None:
        """The path without links, and what stands there; none where nothing does, or links lead nowhere."""
        todo = path.split("/")[::-1]
        names: list[str] = []
        nodes: list[dict[str, Node]] = [self.root]
        links = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                # The root's parent is the root: nothing leads out.
                if names:
                    names.pop()
                    nodes.pop()
                continue
            node = nodes[-1].get(name)
            if isinstance(node, Link):
                links += 1
                if links > MOST_LINKS:
                    return None
                if node.target.startswith("/"):
                    names, nodes = [], [self.root]
                todo += node.target.split("/")[::-1]
            elif isinstance(node, dict):
                names.append(name)
                nodes.append(node)
            elif node is None or todo:
                return None
            else:
                return "/" + "/".join([*names, name]), node
        return "/" + "/".join(names), nodes[-1]

    def files(self) -> Iterator[tuple[str, File]]:
        """Path and content of every file, links not followed."""
        pending: list[tuple[str, dict[str, Node]]] = [("", self.root)]
        while pending:
            path, folder = pending.pop()
            for name, node in folder.items():
                if isinstance(node, dict):
                    pending.append((f"{path}/{name}", node))
                else:
                    yield f"{path}/{name}", node
