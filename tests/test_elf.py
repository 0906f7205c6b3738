"""The loader on paper: what it reads of a file, and where it finds what the file needs."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elf_maker import AARCH64, I386, lay_out, make_cache, make_elf
from kiln.elf import BadElfError, Elf, read_elf
from kiln.elf_cache import keep, keep_layer, kept_layer
from kiln.elf_loader import Linker, read_cache
from kiln.elf_tree import Bad, Folder, Link, Tree, read_archive, read_folder

EVERYTHING = make_elf(
    needed=("libm.so.6", "libc.so.6"),
    soname="libx.so.1",
    runpath="$ORIGIN/../lib:/opt/lib",
    requires={"libc.so.6": {"GLIBC_2.14": False, "GLIBC_9": True}, "libm.so.6": {"GLIBC_2.2": False}},
    provides=("libx.so.1", "X_1", "X_2"),
    interpreter="/lib64/ld-linux-x86-64.so.2",
    no_default=True,
)
"""An ELF file with all that is read."""

Find = Callable[..., list[str]]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    """Loads every file of a root file system on paper; returns what is missing, a sentence each."""

    def found(files: dict[str, bytes | str]) -> list[str]:
        root = lay_out(tmp_path / "root", files)
        return [str(miss) for miss in Linker(Tree([read_folder(root)])).misses()]

    return found


# What is read of a file


def test_everything_is_read() -> None:
    assert read_elf(io.BytesIO(EVERYTHING)) == Elf(
        bits=64,
        machine="X86_64",
        interpreter="/lib64/ld-linux-x86-64.so.2",
        soname="libx.so.1",
        needed=("libm.so.6", "libc.so.6"),
        runpath="$ORIGIN/../lib:/opt/lib",
        requires={"libc.so.6": ("GLIBC_2.14",), "libm.so.6": ("GLIBC_2.2",)},
        provides=("libx.so.1", "X_1", "X_2"),
        no_default=True,
    )


def test_a_32_bit_file_is_read() -> None:
    elf = read_elf(io.BytesIO(make_elf(needed=("libc.so.6",), rpath="/x", bits=32, machine=I386)))
    assert elf == Elf(bits=32, machine="386", needed=("libc.so.6",), rpath="/x")


def test_this_machines_own_interpreter_is_read() -> None:
    with Path(sys.executable).open("rb") as stream:
        elf = read_elf(stream)
    assert elf
    assert elf.interpreter
    assert "libc.so.6" in elf.needed
    assert any(version.startswith("GLIBC_2") for version in elf.requires["libc.so.6"])


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n", make_elf(kind=1), make_elf(kind=4)], ids=range(5))
def test_what_is_never_loaded_is_none(content: bytes) -> None:
    assert read_elf(io.BytesIO(content)) is None


@pytest.mark.parametrize("size", [4, 15, 40, 63, 100, len(EVERYTHING) - 1])
def test_a_truncated_file_is_told(size: int) -> None:
    with pytest.raises(BadElfError, match="truncated"):
        read_elf(io.BytesIO(EVERYTHING[:size]))


@settings(max_examples=1500, deadline=None)
@given(
    st.lists(st.tuples(st.integers(4, len(EVERYTHING) - 1), st.binary(min_size=1, max_size=8)), max_size=6), st.data()
)
def test_a_mangled_file_is_read_or_told(changes: list[tuple[int, bytes]], data: st.DataObject) -> None:
    content = bytearray(EVERYTHING)
    for offset, written in changes:
        content[offset : offset + len(written)] = written
    size = data.draw(st.integers(4, len(content)))
    with suppress(BadElfError):
        elf = read_elf(io.BytesIO(bytes(content[:size])))
        # What is read can be kept.
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(elf), type=Elf | None) == elf


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_behind_the_magic_is_read_or_told(rest: bytes) -> None:
    with suppress(BadElfError):
        read_elf(io.BytesIO(b"\x7fELF\x02\x01\x01" + rest))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_a_mangled_cache_is_passed_over(rest: bytes, old: bool) -> None:
    begin = b"ld.so-1.7.0\0" if old else b"glibc-ld.so.cache1.1"
    assert isinstance(read_cache(begin + rest), dict)


# Where the loader looks

LIBRARY = make_elf(soname="libx.so.1")
NEEDS = make_elf(needed=("libx.so.1",))


@pytest.mark.parametrize(
    "files",
    [
        {"/usr/lib/libx.so.1": LIBRARY, "/a/b.so": NEEDS},
        {"/usr/lib/x86_64-linux-gnu/libx.so.1": LIBRARY, "/a/b.so": NEEDS},
        {"/a/libx.so.1": LIBRARY, "/a/b.so": make_elf(needed=("libx.so.1",), runpath="$ORIGIN")},
        {"/lib7/libx.so.1": LIBRARY, "/a/b.so": make_elf(needed=("libx.so.1",), rpath="/none:${ORIGIN}/../lib7")},
        {
            "/a/lib/x86_64-linux-gnu/libx.so.1": LIBRARY,
            "/a/b.so": make_elf(needed=("libx.so.1",), rpath="$ORIGIN/$LIB"),
        },
        {"/a/real.so": LIBRARY, "/usr/lib/libx.so.1": "/a/real.so", "/a/b.so": NEEDS},
        {"/a/real.so": LIBRARY, "/usr/lib/libx.so.1": "../../a/real.so", "/a/b.so": NEEDS},
        {"/usr/lib/libx.so.1": LIBRARY, "/lib": "usr/lib", "/a/b.so": NEEDS},
        {"/opt/libx.so.1": LIBRARY, "/etc/ld.so.cache": make_cache({"libx.so.1": "/opt/libx.so.1"}), "/a/b.so": NEEDS},
        {
            "/opt/libx.so.1": LIBRARY,
            "/etc/ld.so.cache": make_cache({"libx.so.1": "/opt/libx.so.1"}, old=True),
            "/a/b.so": NEEDS,
        },
        {"/opt/libx.so.1": LIBRARY, "/a/b.so": make_elf(needed=("/opt/libx.so.1",))},
    ],
    ids=range(11),
)
def test_a_library_is_found(find: Find, files: dict[str, bytes | str]) -> None:
    assert find(files) == []


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"/a/libx.so.1": LIBRARY, "/a/b.so": NEEDS}, "/a/b.so needs libx.so.1: no such library"),
        # ld.so reads what ldconfig made of its configuration, never the configuration.
        (
            {"/opt/libx.so.1": LIBRARY, "/etc/ld.so.conf": b"/opt\n", "/a/b.so": NEEDS},
            "/a/b.so needs libx.so.1: no such library",
        ),
        (
            {"/etc/ld.so.cache": make_cache({"libx.so.1": "/opt/libx.so.1"}), "/a/b.so": NEEDS},
            "/etc/ld.so.cache names /opt/libx.so.1, where no such library is",
        ),
        (
            {"/etc/ld.so.cache": make_cache({"libx.so.2": "/opt/libx.so.2"}), "/a/b.so": NEEDS},
            "looks; libx.so.2 is",
        ),
        ({"/usr/lib/libx.so.1": "nowhere", "/a/b.so": NEEDS}, "needs libx.so.1"),
        ({"/usr/lib/libx.so.1": "libx.so.1", "/a/b.so": NEEDS}, "needs libx.so.1"),
        ({"/usr/lib/libx.so.1": b"INPUT(libx.so.2)\n", "/a/b.so": NEEDS}, "/usr/lib/libx.so.1 is no library"),
        ({"/usr/lib/libx.so.1": LIBRARY[:90], "/a/b.so": NEEDS}, "/usr/lib/libx.so.1 is no library (it is truncated"),
        (
            {"/usr/lib/libx.so.1": LIBRARY, "/a/b.so": make_elf(needed=("libx.so.1",), no_default=True)},
            "needs libx.so.1",
        ),
        # A run path switches the older kind off.
        (
            {"/a/libx.so.1": LIBRARY, "/a/b.so": make_elf(needed=("libx.so.1",), rpath="$ORIGIN", runpath="/none")},
            "needs libx.so.1",
        ),
        # The current folder is nobody's promise.
        ({"/libx.so.1": LIBRARY, "/a/b.so": make_elf(needed=("libx.so.1",), runpath=":.:")}, "needs libx.so.1"),
        ({"/a/b.so": make_elf(interpreter="/lib64/ld.so")}, "/a/b.so needs /lib64/ld.so: this dynamic linker"),
    ],
    ids=range(12),
)
def test_a_missing_library_is_told(find: Find, files: dict[str, bytes | str], says: str) -> None:
    assert any(says in miss for miss in find(files)), find(files)


def test_a_link_never_leads_out_of_the_image(find: Find, tmp_path: Path) -> None:
    outside = lay_out(tmp_path / "outside", {"/libx.so.1": LIBRARY}) / "libx.so.1"
    up = "../" * 40
    assert find({"/usr/lib/libx.so.1": str(outside), "/a/b.so": NEEDS}) != []
    (tmp_path / "root/usr/lib/libx.so.1").unlink()
    assert find({"/usr/lib/libx.so.1": f"{up}{outside}"}) != []
    # The same link inside: the root's parent is the root.
    (tmp_path / "root/usr/lib/libx.so.1").unlink()
    assert find({"/usr/lib/libx.so.1": f"{up}real/libx.so.1", "/real/libx.so.1": LIBRARY}) == []


def test_an_older_run_path_also_serves_what_is_loaded_for_it(find: Find) -> None:
    plugin = {"/a/lib/libmid.so": make_elf(needed=("libx.so.1",)), "/a/lib/libx.so.1": LIBRARY}
    dynamic = {"/lib/ld.so": make_elf()}
    older = make_elf(needed=("libmid.so",), interpreter="/lib/ld.so", rpath="$ORIGIN/lib")
    newer = make_elf(needed=("libmid.so",), interpreter="/lib/ld.so", runpath="$ORIGIN/lib")
    assert find({**plugin, **dynamic, "/a/b": older}) == []
    assert find({"/a/b": newer}) == ["/a/lib/libmid.so needs libx.so.1: no such library is where the loader looks"]


def test_what_is_loaded_already_is_not_searched_again(find: Find) -> None:
    files = {
        "/a/b.so": make_elf(needed=("libx.so.1", "libmid.so"), runpath="$ORIGIN/lib"),
        "/a/lib/libmid.so": make_elf(needed=("libx.so.1",)),
        "/a/lib/libx.so.1": LIBRARY,
    }
    assert find(files) == []


def test_a_library_that_breaks_another_file_is_not_excused_by_a_third(find: Find) -> None:
    files = {
        "/a/lib/libmid.so": make_elf(needed=("libx.so.1",)),
        "/a/lib/libx.so.1": LIBRARY,
        "/a/well.so": make_elf(needed=("libmid.so",), rpath="$ORIGIN/lib"),
        "/a/ill.so": make_elf(needed=("libmid.so",), runpath="$ORIGIN/lib"),
    }
    assert find(files) == ["/a/lib/libmid.so needs libx.so.1: no such library is where the loader looks"]


def test_files_for_another_machine_are_passed_over(find: Find) -> None:
    other = {"/a/x/libx.so.1": make_elf(soname="libx.so.1", bits=32, machine=I386)}
    native = {f"/usr/lib/lib{number}.so": make_elf() for number in range(4)}
    needs = make_elf(needed=("libx.so.1",), runpath="$ORIGIN/x:$ORIGIN/y")
    foreign = {"/a/arm.so": make_elf(needed=("libnone.so",), machine=AARCH64)}
    assert find({**other, **native, **foreign, "/a/b.so": needs}) == [
        "/a/b.so needs libx.so.1: no such library is where the loader looks"
    ]
    assert find({"/a/y/libx.so.1": LIBRARY}) == []


@pytest.mark.parametrize(
    ("provides", "weak", "missing"),
    [(("X_1", "X_2"), False, False), (("X_1",), False, True), (("X_1",), True, False), ((), False, False)],
    ids=["offered", "not offered", "weak", "without any versions, which ld.so takes"],
)
def test_symbol_versions(find: Find, provides: tuple[str, ...], weak: bool, missing: bool) -> None:
    files = {
        "/usr/lib/libx.so.1": make_elf(soname="libx.so.1", provides=provides),
        "/a/b.so": make_elf(needed=("libx.so.1",), requires={"libx.so.1": {"X_1": False, "X_2": weak}}),
    }
    told = ["/a/b.so needs libx.so.1 with X_2: /usr/lib/libx.so.1 does not offer it"]
    assert find(files) == (told if missing else [])


def test_a_damaged_file_is_told_though_nothing_needs_it(find: Find) -> None:
    assert find({"/a/b.so": EVERYTHING[:700]}) == [
        "/a/b.so: it is truncated: it ends at byte 700 instead of " + str(len(EVERYTHING))
    ]


# Layers


def test_upper_layers_hide_what_is_below() -> None:
    elf = Elf(64, "X86_64")
    lower = {
        "/": Folder(elves={"gone": elf, "kept": elf}),
        "/opaque": Folder(elves={"old": elf}),
        "/opaque/deep": Folder(elves={"old": elf}),
        "/removed/deep": Folder(elves={"old": elf}),
        "/was-folder": Folder(elves={"old": elf}),
    }
    upper = {
        "/": Folder(gone=["gone", "removed"], plain=["was-folder"]),
        "/opaque": Folder(opaque=True, links={"new": "../kept"}),
        "/kept": Folder(plain=["now-folder"]),
    }
    tree = Tree([lower, upper])
    assert sorted(path for path, _ in tree.files()) == ["/kept/now-folder", "/opaque/new", "/was-folder"]
    assert tree.find("/opaque/old") is None
    assert tree.find("/removed/deep/old") is None
    found = tree.find("/opaque/new/now-folder")
    assert found
    assert found[0] == "/kept/now-folder"


def test_a_folder_and_its_archive_are_the_same(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path / "root",
        {
            "/usr/lib/libx.so.1": EVERYTHING,
            "/usr/lib/libx.so": "libx.so.1",
            "/lib": "usr/lib",
            "/a/cut.so": EVERYTHING[:99],
            "/a/text": b"text",
            "/etc/ld.so.cache": make_cache({"libx.so.1": "/usr/lib/libx.so.1"}),
            "/proc/1/exe": EVERYTHING,
            "/dev/x": EVERYTHING,
        },
    )
    os.link(root / "usr/lib/libx.so.1", root / "a/hard.so")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(root, arcname=".")
    packed.seek(0)
    one, other = Tree([read_folder(root)]), Tree([read_archive(packed)])
    assert dict(one.files()) == dict(other.files())
    files = dict(one.files())
    assert sorted(files) == [
        "/a/cut.so",
        "/a/hard.so",
        "/a/text",
        "/etc/ld.so.cache",
        "/lib",
        "/usr/lib/libx.so",
        "/usr/lib/libx.so.1",
    ]
    assert isinstance(files["/a/cut.so"], Bad)
    assert files["/lib"] == Link("usr/lib")
    assert files["/a/hard.so"] == files["/usr/lib/libx.so.1"] == read_elf(io.BytesIO(EVERYTHING))


def test_a_kept_layer_is_the_same_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "root", {"/a/x.so": EVERYTHING, "/a/y": "x.so", "/etc/ld.so.cache": make_cache({})})
    (root / "a" / os.fsdecode(b"\xff.so")).write_bytes(EVERYTHING)
    layer = read_folder(root)
    path = tmp_path / "store" / "layer"
    assert kept_layer(path) is None
    keep_layer(path, layer)
    assert kept_layer(path) == layer
    assert [entry.name for entry in path.parent.iterdir()] == ["layer"]
    keep(path, path.read_bytes()[:-3])
    assert kept_layer(path) is None
