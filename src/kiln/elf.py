"""The dynamic section of an ELF file: what it needs to load, and what it offers to others.

Read from the program headers alone, as ld.so does: section headers may be stripped. pyelftools knows the layouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

MAGIC = b"\x7fELF"

MOST_ENTRIES = 1 << 16
"""Entries of one table: an index into a version table has 15 bits, and no dynamic section comes near."""

_VER_WEAK = 2
"""VER_FLG_WEAK; Linux Standard Base 5.0, Symbol Versioning."""
_NODEFLIB = 0x800
"""DF_1_NODEFLIB of DT_FLAGS_1, as in the Linux <elf.h>."""


class BadElfError(Exception):
    """The file begins as ELF but is truncated or garbage; the text says what is wrong with it."""


class Elf(msgspec.Struct, frozen=True, omit_defaults=True):
    """One program or shared library."""

    bits: int
    """32 or 64."""
    machine: str
    """Name of e_machine without its prefix, e.g. X86_64."""
    big_endian: bool = False
    interpreter: str | None = None
    """The dynamic linker that the kernel starts for it: it is a program (or the C library, which is both)."""
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: str | None = None
    runpath: str | None = None
    requires: dict[str, tuple[str, ...]] = {}
    """Library to the versions of its symbols without which ld.so refuses; weak ones, which it forgives, left out."""
    provides: tuple[str, ...] = ()
    """Versions of its own symbols, its own name among them; empty where its symbols have none."""
    no_default: bool = False
    """DF_1_NODEFLIB: neither ld.so.cache nor the default directories are searched for what it needs."""

    @property
    def abi(self) -> tuple[int, str, bool]:
        """What two files must share to be loaded into one process."""
        return (self.bits, self.machine, self.big_endian)


def read_elf(stream: IO[bytes]) -> Elf | None:
    """What a seekable file says of itself; none for what is never loaded: no ELF file, an object file, a core dump.

    Raises BadElfError for one that is truncated or garbage.
    """
    stream.seek(0)
    if stream.read(len(MAGIC)) != MAGIC:
        return None
    # Imported at the first file that is not cached: it costs more than a plan.
    from elftools.common.exceptions import ELFError
    from elftools.construct.core import ConstructError
    from elftools.elf.elffile import ELFFile

    try:
        file = ELFFile(stream)
        if file["e_type"] in ("ET_REL", "ET_CORE"):
            return None
        return _Reader(file).read()
    except (ELFError, ConstructError) as error:
        raise BadElfError(f"it is truncated or garbage: {error}") from None
    except (OSError, ValueError, OverflowError, LookupError, MemoryError, TypeError, AttributeError) as error:
        # pyelftools takes every offset of the file at its word.
        raise BadElfError(f"it is truncated or garbage: {type(error).__name__}") from None


class _Reader:
    """One file being read; every string and table is looked for inside the file only."""

    def __init__(self, file: ELFFile) -> None:
        self.file = file
        if file["e_type"] not in ("ET_EXEC", "ET_DYN"):
            raise BadElfError(f"its header names type {file['e_type']}")
        size = file.structs.Elf_Phdr.sizeof()
        if file["e_phnum"] and file["e_phentsize"] < size:
            raise BadElfError(f"its program headers have {file['e_phentsize']} bytes, less than {size}")
        self.segments = [
            self._parse("Elf_Phdr", file["e_phoff"] + number * file["e_phentsize"]) for number in range(file["e_phnum"])
        ]

    def read(self) -> Elf:
        loaded = [segment for segment in self.segments if segment["p_type"] == "PT_LOAD"]
        end = max((segment["p_offset"] + segment["p_filesz"] for segment in loaded), default=0)
        if end > self.file.stream_len:
            raise BadElfError(f"it is truncated: it ends at byte {self.file.stream_len} instead of {end}")
        machine = self.file["e_machine"]
        return Elf(
            bits=self.file.elfclass,
            machine=machine.removeprefix("EM_") if isinstance(machine, str) else str(machine),
            big_endian=not self.file.little_endian,
            interpreter=self._interpreter(),
            soname=self._optional("DT_SONAME"),
            needed=tuple(self._string(index) for index in self.tags.get("DT_NEEDED", [])),
            rpath=self._optional("DT_RPATH"),
            runpath=self._optional("DT_RUNPATH"),
            requires=self._requires(),
            provides=self._provides(),
            no_default=bool(self.tags.get("DT_FLAGS_1", [0])[-1] & _NODEFLIB),
        )

    def _parse(self, layout: str, offset: int) -> Any:
        from elftools.common.utils import struct_parse

        return struct_parse(getattr(self.file.structs, layout), self.file.stream, stream_pos=offset)

    @cached_property
    def tags(self) -> dict[str | int, list[int]]:
        """Tag of the dynamic section to its values in order; empty for a static program."""
        segment = next((segment for segment in self.segments if segment["p_type"] == "PT_DYNAMIC"), None)
        found: dict[str | int, list[int]] = {}
        if segment is None:
            return found
        size = self.file.structs.Elf_Dyn.sizeof()
        for number in range(min(segment["p_filesz"] // size, MOST_ENTRIES)):
            entry = self._parse("Elf_Dyn", segment["p_offset"] + number * size)
            if entry["d_tag"] == "DT_NULL":
                return found
            found.setdefault(entry["d_tag"], []).append(entry["d_val"])
        raise BadElfError("its dynamic section has no end")

    def _offset(self, address: int, what: str) -> int:
        """Where the content of a virtual address stands in the file."""
        for segment in self.segments:
            if segment["p_type"] == "PT_LOAD" and 0 <= address - segment["p_vaddr"] < segment["p_filesz"]:
                return int(address - segment["p_vaddr"] + segment["p_offset"])
        raise BadElfError(f"its {what} stands at address {address:#x}, which no segment holds")

    @cached_property
    def _strings(self) -> bytes:
        """The dynamic string table."""
        if "DT_STRTAB" not in self.tags or "DT_STRSZ" not in self.tags:
            raise BadElfError("its dynamic section names no string table")
        size = self.tags["DT_STRSZ"][-1]
        begin = self._offset(self.tags["DT_STRTAB"][-1], "string table")
        if begin + size > self.file.stream_len:
            raise BadElfError(f"it is truncated: its string table ends at byte {begin + size}")
        self.file.stream.seek(begin)
        return self.file.stream.read(size)

    def _string(self, index: int) -> str:
        end = self._strings.find(b"\0", index) if index < len(self._strings) else -1
        if end < 0:
            raise BadElfError(f"its string {index} lies outside the string table")
        return _text(self._strings[index:end])

    def _optional(self, tag: str) -> str | None:
        return self._string(self.tags[tag][-1]) if tag in self.tags else None

    def _interpreter(self) -> str | None:
        segment = next((segment for segment in self.segments if segment["p_type"] == "PT_INTERP"), None)
        if segment is None:
            return None
        self.file.stream.seek(segment["p_offset"])
        # PATH_MAX; the name ends with a NUL before that.
        return _text(self.file.stream.read(min(segment["p_filesz"], 4096)).partition(b"\0")[0])

    def _chain(self, layout: str, offset: int, count: int, following: str) -> Iterator[tuple[int, Any]]:
        """(offset, entry) of each of ``count`` entries, each of which says how far the next one is."""
        if count > MOST_ENTRIES:
            raise BadElfError(f"a version table of it has {count} entries")
        for _ in range(count):
            entry = self._parse(layout, offset)
            yield offset, entry
            if not entry[following]:
                return
            offset += entry[following]

    def _table(self, tag: str, number: str, layout: str, following: str) -> Iterator[tuple[int, Any]]:
        if tag in self.tags:
            offset = self._offset(self.tags[tag][-1], "version table")
            yield from self._chain(layout, offset, self.tags.get(number, [0])[-1], following)

    def _requires(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        entries = 0
        for offset, library in self._table("DT_VERNEED", "DT_VERNEEDNUM", "Elf_Verneed", "vn_next"):
            versions = found.setdefault(self._string(library["vn_file"]), [])
            chain = self._chain("Elf_Vernaux", offset + library["vn_aux"], library["vn_cnt"], "vna_next")
            for _, version in chain:
                entries += 1
                if entries > MOST_ENTRIES:
                    raise BadElfError("its table of required versions has no end")
                if not version["vna_flags"] & _VER_WEAK:
                    versions.append(self._string(version["vna_name"]))
        return {library: tuple(versions) for library, versions in found.items()}

    def _provides(self) -> tuple[str, ...]:
        found = []
        for offset, version in self._table("DT_VERDEF", "DT_VERDEFNUM", "Elf_Verdef", "vd_next"):
            if version["vd_cnt"]:
                # The first of its names is the version; the others are those it inherits from.
                found.append(self._string(self._parse("Elf_Verdaux", offset + version["vd_aux"])["vda_name"]))
        return tuple(found)


def _text(name: bytes) -> str:
    """Names are bytes; one that is no UTF-8 must stay printable and storable."""
    return name.decode("utf-8", "backslashreplace")
