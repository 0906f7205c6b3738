"""Makes the smallest ELF files, loader's caches and file systems that the loader's rules can be tried on."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

X86_64, I386, AARCH64 = 62, 3, 183
"""e_machine of the System V ABI's supplements."""


class _Strings:
    def __init__(self) -> None:
        self.content = b"\0"

    def add(self, text: str) -> int:
        index = len(self.content)
        self.content += text.encode() + b"\0"
        return index


def _requires(strings: _Strings, requires: Mapping[str, Mapping[str, bool]]) -> bytes:
    """DT_VERNEED's table: library to version to whether it is weak."""
    table = b""
    for place, (library, versions) in enumerate(requires.items(), 1):
        entries = b"".join(
            struct.pack("<IHHII", 0, 2 if weak else 0, 2, strings.add(name), 16 if number < len(versions) else 0)
            for number, (name, weak) in enumerate(versions.items(), 1)
        )
        following = 16 + len(entries) if place < len(requires) else 0
        table += struct.pack("<HHIII", 1, len(versions), strings.add(library), 16, following) + entries
    return table


def _provides(strings: _Strings, provides: tuple[str, ...]) -> bytes:
    """DT_VERDEF's table."""
    return b"".join(
        struct.pack("<HHHHIII", 1, 0, number, 1, 0, 20, 28 if number < len(provides) else 0)
        + struct.pack("<II", strings.add(name), 0)
        for number, name in enumerate(provides, 1)
    )


def make_elf(
    *,
    needed: tuple[str, ...] = (),
    soname: str | None = None,
    rpath: str | None = None,
    runpath: str | None = None,
    requires: Mapping[str, Mapping[str, bool]] | None = None,
    provides: tuple[str, ...] = (),
    interpreter: str | None = None,
    no_default: bool = False,
    bits: int = 64,
    machine: int = X86_64,
    kind: int = 3,
) -> bytes:
    """One file, without section headers; addresses are offsets in the file."""
    wide = bits == 64
    strings = _Strings()
    tags = [(1, strings.add(name)) for name in needed]
    tags += [(tag, strings.add(text)) for tag, text in ((14, soname), (15, rpath), (29, runpath)) if text is not None]
    verneed, verdef = _requires(strings, requires or {}), _provides(strings, provides)
    head, entry = (64, 56) if wide else (52, 32)
    begin = head + 3 * entry
    name = (interpreter or "").encode() + b"\0"
    offsets, content = [], b""
    for part in (strings.content, verneed, verdef, name):
        content += b"\0" * (-(begin + len(content)) % 8)
        offsets.append(begin + len(content))
        content += part
    content += b"\0" * (-(begin + len(content)) % 8)
    tags += [(5, offsets[0]), (10, len(strings.content))]
    tags += [(0x6FFFFFFE, offsets[1]), (0x6FFFFFFF, len(requires or {}))] if requires else []
    tags += [(0x6FFFFFFC, offsets[2]), (0x6FFFFFFD, len(provides))] if provides else []
    tags += [(0x6FFFFFFB, 0x800)] if no_default else []
    dynamic = b"".join(struct.pack("<qQ" if wide else "<iI", *tag) for tag in [*tags, (0, 0)])
    at = begin + len(content)
    size = at + len(dynamic)
    headers = b"".join(
        struct.pack("<IIQQQQQQ", kind_, 4, offset, offset, offset, length, length, 8)
        if wide
        else struct.pack("<IIIIIIII", kind_, offset, offset, offset, length, length, 4, 4)
        for kind_, offset, length in (
            (1, 0, size),
            (2, at, len(dynamic)),
            (3 if interpreter else 0, offsets[3], len(name)),
        )
    )
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    header = struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", kind, machine, 1, 0, head, 0, 0, head, entry, 3, 0, 0, 0
    )
    return ident + header + headers + content + dynamic


def make_cache(libraries: Mapping[str, str], *, old: bool = False) -> bytes:
    """An ld.so.cache of names and paths; with ``old``, behind the table that it had before glibc 2.32."""
    strings, entries = b"", b""
    begin = 48 + 24 * len(libraries)
    for name, path in libraries.items():
        offset = begin + len(strings)
        strings += name.encode() + b"\0" + path.encode() + b"\0"
        entries += struct.pack("<iIIIQ", 0x303, offset, offset + len(name) + 1, 0, 0)
    cache = b"glibc-ld.so.cache1.1" + struct.pack("<II", len(libraries), len(strings)) + bytes(20) + entries + strings
    return b"ld.so-1.7.0\0" + struct.pack("<I", 1) + bytes(12) + bytes(4) + cache if old else cache


def lay_out(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Writes files (bytes) and links (their target) below ``root``."""
    for path, content in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        else:
            place.symlink_to(content)
    return root
