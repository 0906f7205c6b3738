"""Loads programs and libraries as ld.so would, on paper, and tells what would stop it.

Source of the order in which places are searched: ld.so(8); of what a library's versions must be: the Linux Standard
Base 5.0, Symbol Versioning; of the cache's layout: glibc's sysdeps/generic/dl-cache.h.
"""

from __future__ import annotations

import posixpath
import struct
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from kiln.elf import Elf
from kiln.elf_tree import LOADER_CACHE, Bad, Plain, Tree

_OLD_CACHE = b"ld.so-1.7.0"
_NEW_CACHE = b"glibc-ld.so.cache1.1"

_TUPLES = {"X86_64": "x86_64-linux-gnu", "386": "i386-linux-gnu", "AARCH64": "aarch64-linux-gnu"}
"""Debian's multiarch tuple of a machine, whose folder its glibc searches first: Debian's Multiarch/Tuples."""


@dataclass(frozen=True, order=True)
class Miss:
    """One thing that would stop ld.so."""

    file: str
    """Path of the file that needs it."""
    library: str
    """Empty where the file itself is damaged."""
    version: str = ""
    """Symbol version that the library lacks; empty where the library itself is missing."""
    why: str = ""

    def __str__(self) -> str:
        if not self.library:
            return f"{self.file}: {self.why}"
        return f"{self.file} needs {self.library}{f' with {self.version}' if self.version else ''}: {self.why}"


@dataclass
class Loaded:
    """A file in a process being made."""

    path: str
    """Without links."""
    origin: str
    """Folder it was found in, which $ORIGIN stands for."""
    elf: Elf
    loader: Loaded | None
    """What needed it first."""
    names: set[str] = field(default_factory=set)


def read_cache(content: bytes) -> dict[str, list[str]]:
    """Name of a library to its paths, in the order of the cache; empty for a cache that ld.so would not take."""
    if content.startswith(_OLD_CACHE):
        # Before glibc 2.32 both layouts stand in the file, one after the other.
        (count,) = struct.unpack_from("<I", content, 12) if len(content) >= 16 else (0,)
        content = content[(16 + count * 12 + 7) // 8 * 8 :]
    if not content.startswith(_NEW_CACHE) or len(content) < 48:
        return {}
    found: dict[str, list[str]] = {}
    (count,) = struct.unpack_from("<I", content, 20)
    for number in range(min(count, (len(content) - 48) // 24)):
        _, name, path = struct.unpack_from("<iII", content, 48 + number * 24)
        found.setdefault(_string(content, name), []).append(_string(content, path))
    return found


def _string(content: bytes, offset: int) -> str:
    end = content.find(b"\0", offset)
    return content[offset : end if end >= 0 else offset].decode("utf-8", "backslashreplace")


class Linker:
    """ld.so inside one root file system."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.elves = {path: node for path, node in tree.files() if isinstance(node, Elf)}
        self.bad = {path: node for path, node in tree.files() if isinstance(node, Bad)}
        self._known: dict[tuple[tuple[str, ...], bool, str, tuple[int, str, bool]], str | None] = {}

    @cached_property
    def native(self) -> tuple[int, str, bool]:
        """The ABI of the system: that of most files."""
        counted = Counter(elf.abi for elf in self.elves.values())
        return counted.most_common(1)[0][0] if counted else (64, "X86_64", False)

    @cached_property
    def judged(self) -> dict[str, Elf]:
        """Path to file, of the system's own ABI; others are never loaded beside it."""
        return {path: elf for path, elf in sorted(self.elves.items()) if elf.abi == self.native}

    @cached_property
    def cache(self) -> dict[str, list[str]]:
        """What ldconfig noted last."""
        found = self.tree.find(LOADER_CACHE)
        return read_cache(found[1].content) if found and isinstance(found[1], Plain) else {}

    @cached_property
    def default(self) -> tuple[str, ...]:
        """Folders that are searched last."""
        multiarch = [
            f"{folder}/{_TUPLES[self.native[1]]}" for folder in ("/lib", "/usr/lib") if self.native[1] in _TUPLES
        ]
        return (*multiarch, *(("/lib64", "/usr/lib64") if self.native[0] == 64 else ()), "/lib", "/usr/lib")

    def misses(self, only: Iterable[str] | None = None) -> list[Miss]:
        """What would stop the loading of each file (of ``only``), each thing once.

        A library that does not load alone, but loads as a dependency of another file, is as its makers meant it.
        """
        chosen = self.judged if only is None else {path: self.judged[path] for path in only if path in self.judged}
        failing: dict[str, set[Miss]] = {}
        well: dict[str, list[set[tuple[str, str]]]] = {}
        processes = []
        for path, elf in chosen.items():
            process, missed = self.load(path, elf)
            if missed:
                failing[path] = missed
            processes.append((path, process, {(miss.file, miss.library) for miss in missed}))
        for root, process, missing in processes:
            for loaded in process:
                if loaded in failing and loaded != root:
                    well.setdefault(loaded, []).append(missing)
        found: set[Miss] = set()
        for path, missed in failing.items():
            meant = self.elves[path].interpreter is None and any(
                not {(miss.file, miss.library) for miss in missed} & missing for missing in well.get(path, [])
            )
            if not meant:
                found |= missed
        bad = {Miss(path, "", why=node.why) for path, node in self.bad.items()} if only is None else set()
        return sorted(found | bad)

    def load(self, path: str, elf: Elf) -> tuple[set[str], set[Miss]]:
        """Makes a process of one file, breadth first: the paths that are in it, and what is missing."""
        main = Loaded(path, posixpath.dirname(path), elf, None, {path, elf.soname or path})
        process = [main]
        by_name = dict.fromkeys(main.names, main)
        by_path = {path: main}
        missed: set[Miss] = set()
        if elf.interpreter is not None and not self._elf(elf.interpreter):
            missed.add(Miss(path, elf.interpreter, why="this dynamic linker is not there"))
        todo = deque(process)
        while todo:
            needing = todo.popleft()
            for name in needing.elf.needed:
                if name in by_name:
                    continue
                place = self._search(needing, name)
                found = self._elf(place) if place else None
                if place is None or found is None:
                    missed.add(Miss(needing.path, name, why=self._why(name, place)))
                    continue
                real, needed = found
                loaded = by_path.get(real)
                if loaded is None:
                    loaded = by_path[real] = Loaded(real, posixpath.dirname(place), needed, needing)
                    process.append(loaded)
                    todo.append(loaded)
                for known in (name, needed.soname):
                    if known:
                        by_name.setdefault(known, loaded)
        for loaded in process:
            missed |= _versions(loaded, by_name)
        return set(by_path), missed

    def _elf(self, place: str) -> tuple[str, Elf] | None:
        found = self.tree.find(place)
        return (found[0], found[1]) if found and isinstance(found[1], Elf) else None

    def _why(self, name: str, place: str | None) -> str:
        if place is None:
            if name in self.cache:
                return f"{LOADER_CACHE} names {self.cache[name][0]}, where no such library is"
            stem = name.partition(".so")[0]
            similar = ", ".join(sorted(other for other in self.cache if other.partition(".so")[0] == stem))
            return f"no such library is where the loader looks{f'; {similar} is' if similar else ''}"
        found = self.tree.find(place)
        if found is None:
            return f"{place} is not there"
        return f"{place} is no library ({found[1].why})" if isinstance(found[1], Bad) else f"{place} is no library"

    def _search(self, needing: Loaded, name: str) -> str | None:
        """Where ld.so finds ``name``, links not followed; none where it does not."""
        if "/" in name:
            return self._expand(name, needing.origin)
        own: list[str] = []
        if needing.elf.runpath is None:
            up: Loaded | None = needing
            while up is not None:
                if up.elf.runpath is None and up.elf.rpath is not None:
                    own += self._paths(up.elf.rpath, up.origin)
                up = up.loader
        else:
            own += self._paths(needing.elf.runpath, needing.origin)
        key = (tuple(own), needing.elf.no_default, name, needing.elf.abi)
        if key not in self._known:
            self._known[key] = self._look(*key)
        return self._known[key]

    def _look(self, own: tuple[str, ...], no_default: bool, name: str, abi: tuple[int, str, bool]) -> str | None:
        places = [f"{folder}/{name}" for folder in own]
        if not no_default:
            places += [*self.cache.get(name, []), *(f"{folder}/{name}" for folder in self.default)]
        for place in places:
            found = self.tree.find(place)
            # A library for another machine is passed over; anything else that is no library stops the search.
            if found and not isinstance(found[1], dict) and not (isinstance(found[1], Elf) and found[1].abi != abi):
                return place
        return None

    def _paths(self, value: str, origin: str) -> list[str]:
        # An empty or relative entry means the current folder, which nobody can rely on.
        return [path for path in (self._expand(entry, origin) for entry in value.split(":")) if path.startswith("/")]

    def _expand(self, value: str, origin: str) -> str:
        library = f"lib/{_TUPLES[self.native[1]]}" if self.native[1] in _TUPLES else "lib"
        for word, meant in (("ORIGIN", origin), ("LIB", library), ("PLATFORM", self.native[1].lower())):
            value = value.replace(f"${{{word}}}", meant).replace(f"${word}", meant)
        return value


def _versions(needing: Loaded, by_name: dict[str, Loaded]) -> set[Miss]:
    """The symbol versions that ``needing`` requires of the libraries in its process, and that they lack."""
    missed = set()
    for name, versions in needing.elf.requires.items():
        library = by_name.get(name)
        # Of one that has no versions at all ld.so takes any symbol.
        if library is None or not library.elf.provides:
            continue
        for version in versions:
            if version not in library.elf.provides:
                missed.add(Miss(needing.path, name, version, f"{library.path} does not offer it"))
    return missed
