"""The manifest of a data tree: whatever changes between two is found and named, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import socket
import stat
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln.node_tools import data_manifest
from kiln.node_tools.data_manifest import ManifestError
from tabled import PYTHON_PATH

PROGRAM = Path(data_manifest.__file__)
IMAGE = "deeplearning:1.1-cpu"
GIB = 1 << 30
ACL = "system.posix_acl_access"


def acl(permissions: int) -> bytes:
    """An ACL that gives user 1000 ``permissions``, as the kernel stores it: linux/posix_acl_xattr.h."""
    owner, user, group, mask, other, nobody = 1, 2, 4, 16, 32, 0xFFFFFFFF
    entries = [(owner, 6, nobody), (user, permissions, 1000), (group, 4, nobody), (mask, 7, nobody), (other, 4, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def fill(tree: Path) -> None:
    """Everything that a data volume may hold, small."""
    tree.mkdir()
    (tree / "empty").mkdir()
    (tree / "sub" / "below").mkdir(parents=True)
    (tree / "sub.d").mkdir()
    (tree / "sub-x").write_text("sorts between sub and what sub holds, if done wrongly")
    for name in ("a", "sub/b", "sub/below/c", "sub.d/d"):
        (tree / name).write_text(f"content of {name}")
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o4755)
    (tree / "shared").mkdir()
    (tree / "shared").chmod(0o1777)
    (tree / "link").symlink_to("sub/b")
    (tree / "dangling").symlink_to("/no/such\nplace")
    (tree / "first").write_text("two names")
    (tree / "sub" / "second").hardlink_to(tree / "first")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tree / "socket"))
    (tree / "noted").write_text("has attributes")
    os.setxattr(tree / "noted", "user.origin", b"camera 1\0\xff")
    os.setxattr(tree / "noted", ACL, acl(6))
    with (tree / "sparse").open("wb") as stream:
        for at in (0, 1 << 20, 1 << 21):
            stream.seek(at)
            stream.write(b"data")
        stream.truncate(1 << 22)
    (tree / "big").write_bytes(os.urandom(3 << 20))
    os.utime(tree / "a", ns=(0, 1_500_000_000_123_456_789))
    for odd in (b"new\nline", b"not \xff\xfe UTF-8", b"n" * 255, "文件".encode(), b"100%", b'q"\\', b" ", b"-rf"):
        Path(os.fsdecode(os.fsencode(tree) + b"/" + odd)).write_bytes(odd)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    fill(made)
    return made


def make(tree: Path, manifest: Path, **options: Any) -> Path:
    with manifest.open("wb") as stream:
        data_manifest.make(os.fsencode(tree), stream.write, **options)
    return manifest


def entries(manifest: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in manifest.read_bytes().splitlines()[1:-1]]
    return {line["path"]: line for line in lines}


def differences(before: Path, after: Path) -> dict[str, str]:
    """Path to what differs, as it is told to people."""
    old, new = data_manifest.Manifest(str(before)), data_manifest.Manifest(str(after))
    try:
        return {
            path: data_manifest.sentence((kind, path, fields))
            for kind, path, fields in data_manifest.differences(old, new)
        }
    finally:
        old.close()
        new.close()


def same_times(path: Path, change: Callable[[], object]) -> None:
    """Makes a change that ``path``'s mtime does not tell."""
    status = path.stat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def overwrite(path: Path, at: int, data: bytes) -> None:
    def change() -> None:
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(data)

    same_times(path, change)


def break_link(tree: Path) -> None:
    def change() -> None:
        copy = tree / "copy"
        shutil.copy2(tree / "first", copy)
        copy.replace(tree / "first")

    same_times(tree, change)


def replace_link(tree: Path) -> None:
    status = (tree / "link").lstat()

    def change() -> None:
        (tree / "link").unlink()
        (tree / "link").symlink_to("sub/c")
        os.utime(tree / "link", ns=(0, status.st_mtime_ns), follow_symlinks=False)

    same_times(tree, change)


def retype(tree: Path) -> None:
    def change() -> None:
        (tree / "fifo").unlink()
        (tree / "fifo").touch()

    same_times(tree, change)


TAMPERING: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "one byte": (lambda tree: overwrite(tree / "a", 3, b"X"), {"a": "content ("}),
    "one byte of a big file": (lambda tree: overwrite(tree / "big", 3 << 19, b"XYZ"), {"big": "content ("}),
    "one nanosecond": (
        lambda tree: os.utime(tree / "a", ns=(0, 1_500_000_000_123_456_790)),
        {"a": "mtime 1500000000123456789 ns (+1 ns)"},
    ),
    "a directory's mtime": (lambda tree: os.utime(tree / "empty", ns=(0, 1)), {"empty": "mtime"}),
    "a symlink's mtime": (lambda tree: os.utime(tree / "link", ns=(0, 1), follow_symlinks=False), {"link": "mtime"}),
    "one xattr": (
        lambda tree: os.setxattr(tree / "noted", "user.origin", b"camera 2\0\xff"),
        {"noted": "xattr user.origin ("},
    ),
    "an xattr gone": (lambda tree: os.removexattr(tree / "noted", "user.origin"), {"noted": "-> none)"}),
    "an ACL": (lambda tree: os.setxattr(tree / "noted", ACL, acl(4)), {"noted": "ACL access ("}),
    "the owner": (lambda tree: os.chown(tree / "a", 1234, -1), {"a": f"owner ({os.getuid()} -> 1234)"}),
    "the group": (lambda tree: os.chown(tree / "a", -1, 1234), {"a": "group ("}),
    "the mode": (lambda tree: (tree / "a").chmod(0o640), {"a": "mode ("}),
    "set-uid": (lambda tree: (tree / "script").chmod(0o755), {"script": "mode (4755 -> 0755)"}),
    "sticky": (lambda tree: (tree / "shared").chmod(0o777), {"shared": "mode (1777 -> 0777)"}),
    "a hole filled": (lambda tree: overwrite(tree / "sparse", 1 << 16, bytes(1 << 16)), {"sparse": "holes ("}),
    "a byte in a hole": (lambda tree: overwrite(tree / "sparse", 3 << 19, b"X"), {"sparse": "holes ("}),
    "a byte beside a hole": (lambda tree: overwrite(tree / "sparse", 1 << 20, b"D"), {"sparse": "content ("}),
    "a hard link": (break_link, {"first": "hard links (2 -> none)", "sub/second": ", hard link (first -> none)"}),
    "a symlink's target": (replace_link, {"link": "symlink target (sub/b -> sub/c)"}),
    "the type": (retype, {"fifo": "type (fifo -> file)"}),
    "a name": (
        lambda tree: same_times(tree, lambda: (tree / "a").rename(tree / "A")),
        {"A": "added", "a": "removed"},
    ),
    "a name in other bytes": (
        lambda tree: same_times(tree, lambda: (tree / "100%").rename(tree / "100%25")),
        {"100%25": "removed", "100%2525": "added"},
    ),
    "a removed file": (lambda tree: same_times(tree, (tree / "a").unlink), {"a": "removed  a (file)"}),
    "an added directory": (lambda tree: same_times(tree, (tree / "zzz").mkdir), {"zzz": "added    zzz (dir)"}),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_found_and_named_and_nothing_else_is(tree: Path, tmp_path: Path, what: str) -> None:
    before = make(tree, tmp_path / "before")
    assert differences(before, make(tree, tmp_path / "again")) == {}
    change, expected = TAMPERING[what]
    change(tree)
    found = differences(before, make(tree, tmp_path / "after"))
    assert set(found) == set(expected), found
    for path, words in expected.items():
        assert words in found[path]


def test_a_filled_hole_changes_the_extents_alone(tree: Path, tmp_path: Path) -> None:
    before = entries(make(tree, tmp_path / "before"))["sparse"]
    overwrite(tree / "sparse", 1 << 16, bytes(1 << 16))
    after = entries(make(tree, tmp_path / "after"))["sparse"]
    assert {key for key in before if before[key] != after[key]} == {"extents"}
    assert before["extents"] == [[0, 4096], [1 << 20, 4096], [1 << 21, 4096]]


def test_names_of_any_bytes_stand_in_their_order(tree: Path, tmp_path: Path) -> None:
    paths = list(entries(make(tree, tmp_path / "manifest")))
    found = [data_manifest.unquoted(path) for path in paths]
    expected = [b"."]
    expected += [os.fsencode(path.relative_to(tree)) for path in tree.rglob("*")]
    assert sorted(found) == sorted(expected)
    assert found == sorted(found, key=lambda path: b"" if path == b"." else path.replace(b"/", b"\0"))
    assert {"new%0Aline", "not %FF%FE UTF-8", "100%25", "q%22%5C", "n" * 255} <= set(paths)
    assert data_manifest.shown("%E6%96%87%E4%BB%B6") == "文件"
    assert data_manifest.shown("new%0Aline") == "new%0Aline"


def test_entries_say_what_the_system_says(tree: Path, tmp_path: Path) -> None:
    found = entries(make(tree, tmp_path / "manifest"))
    assert {found[name]["type"] for name in found} == {"file", "dir", "symlink", "fifo", "socket"}
    assert found["a"]["sha256"] == subprocess.check_output(["sha256sum", tree / "a"], text=True).split()[0]
    assert found["big"]["sha256"] == subprocess.check_output(["sha256sum", tree / "big"], text=True).split()[0]
    assert found["dangling"]["target"] == "/no/such%0Aplace"
    for name, entry in found.items():
        status = Path(os.fsdecode(os.fsencode(tree) + b"/" + data_manifest.unquoted(name))).lstat()
        assert entry["mtime_ns"] == status.st_mtime_ns
        assert int(entry["mode"], 8) == stat.S_IMODE(status.st_mode)
        assert (entry["uid"], entry["gid"]) == (status.st_uid, status.st_gid)
        assert entry.get("links", 1) == (1 if entry["type"] == "dir" else status.st_nlink)


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_the_number_of_processes_changes_no_byte(tree: Path, tmp_path: Path, jobs: int) -> None:
    for number in range(2000):
        (tree / "sub" / f"{number}").write_bytes(bytes([number % 251]) * number)
    assert make(tree, tmp_path / "one", jobs=jobs).read_bytes() == make(tree, tmp_path / "default").read_bytes()


def test_a_directory_that_is_listed_in_portions_is_whole(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (tree / "sub" / f"{number}").mkdir() if number % 7 == 0 else (tree / "sub" / f"{number}").touch()
    whole = make(tree, tmp_path / "whole").read_bytes()
    monkeypatch.setattr(data_manifest, "LISTED_BYTES", 1000)
    assert make(tree, tmp_path / "portions").read_bytes() == whole


def test_reading_leaves_no_trace(tree: Path, tmp_path: Path) -> None:
    os.utime(tree / "a", ns=(1, 1))
    here = Path.cwd()
    make(tree, tmp_path / "manifest")
    assert (tree / "a").stat().st_atime_ns == 1
    assert Path.cwd() == here


def test_what_is_excluded_is_out_and_said(tree: Path, tmp_path: Path) -> None:
    whole = make(tree, tmp_path / "whole")
    part = make(tree, tmp_path / "part", excluded=[b"sub", b"a"])
    assert {path for path in entries(whole) if path not in entries(part)} == {
        *("a", "sub", "sub/b", "sub/below", "sub/below/c", "sub/second")
    }
    with pytest.raises(ManifestError, match="made with different options"):
        differences(whole, part)


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.sampled_from([0, 1, 63, 64, 65, 128, 399, 400, 401, 465, 1100]), min_size=1, max_size=3),
    portion=st.sampled_from([data_manifest.LISTED_BYTES, 3000]),
    chance=st.randoms(use_true_random=True),
)
def test_a_wide_tree_is_whole_but_for_what_is_excluded(widths: list[int], portion: int, chance: random.Random) -> None:
    """Files, directories and fifos around the lengths in which names are listed and sent, any of them left out."""
    with tempfile.TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patch:
        tree = Path(made) / "tree"
        paths = []
        for folder, width in enumerate(widths):
            (tree / f"{folder}").mkdir(parents=True)
            paths.append(f"{folder}")
            for number in range(width):
                path = f"{folder}/{number:04}" + "x" * chance.choice([0, 0, 0, 200])
                paths.append(path)
                kind = chance.random() * (1 + folder)
                if kind < 1:
                    (tree / path).touch()
                elif kind < 2:
                    (tree / path).mkdir()
                    for below in range(chance.randrange(3)):
                        paths.append(f"{path}/{below}")
                        (tree / paths[-1]).touch()
                else:
                    os.mkfifo(tree / path)
        begin = chance.randrange(len(paths))
        left_out = set(paths[begin:][: chance.randrange(600)]) | set(chance.sample(paths, len(paths) // 5))
        patch.setattr(data_manifest, "LISTED_BYTES", portion)
        manifest = make(tree, Path(made) / "manifest", excluded=[path.encode() for path in left_out])
        whole = [path for path in paths if not any(str(up) in left_out for up in (Path(path), *Path(path).parents))]
        assert list(entries(manifest)) == [".", *sorted(whole, key=lambda path: path.replace("/", "\0"))]


@pytest.mark.alone
def test_a_sparse_file_of_4_gib_takes_no_time(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as stream:
        stream.truncate(4 * GIB)
        stream.seek(3 * GIB)
        stream.write(b"far out")
    started = time.monotonic()
    found = entries(make(tree, tmp_path / "manifest"))["sparse"]
    assert time.monotonic() - started < 2
    assert found["size"] == 4 * GIB
    assert found["extents"] == [[3 * GIB, 4096]]
    before = tmp_path / "manifest"
    overwrite(tree / "sparse", GIB, b"\1")
    assert set(differences(before, make(tree, tmp_path / "after"))) == {"sparse"}


def test_directories_deeper_than_any_path(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    name = "d" * 200
    inside = os.open(tree, os.O_RDONLY)
    try:
        for _ in range(40):
            os.mkdir(name, dir_fd=inside)
            below = os.open(name, os.O_RDONLY, dir_fd=inside)
            os.close(inside)
            inside = below
        os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
        found = entries(make(tree, tmp_path / "manifest"))
    finally:
        os.close(inside)
    bottom = "/".join([name] * 40) + "/bottom"
    assert len(bottom) > os.pathconf("/", "PC_PATH_MAX")
    assert found[bottom]["size"] == 0
    assert len(found) == 42


@pytest.fixture
def container(tree: Path) -> Iterator[str]:
    """A container that sees the tree's folder where it is, and cannot write there."""
    mount = f"{tree.parent}:{tree.parent}:ro"
    name = f"kiln-test-manifest-{os.getpid()}"
    words = ["docker", "run", "--rm", "--detach", "--name", name, "--network", "none", "--volume", mount]
    subprocess.run([*words, IMAGE, "sleep", "infinity"], check=True, capture_output=True)
    yield name
    subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)


@pytest.mark.engine
def test_every_python_of_a_node_makes_the_same_bytes(tree: Path, tmp_path: Path, container: str) -> None:
    expected = make(tree, tmp_path / "manifest").read_bytes()
    for python in ("/usr/bin/python3", f"{PYTHON_PATH}/2.7/bin/python2.7", f"{PYTHON_PATH}/3.6/bin/python3.6"):
        command = ["docker", "exec", "--interactive", container, python, "-", "make", str(tree)]
        made = subprocess.run(command, input=PROGRAM.read_bytes(), capture_output=True, check=False)
        assert made.returncode == 0, made.stderr
        assert made.stdout == expected, python
        command = [*command[:5], "-", "compare", str(tmp_path / "manifest"), str(tmp_path / "manifest")]
        compared = subprocess.run(command, input=PROGRAM.read_bytes(), capture_output=True, check=False)
        assert (compared.returncode, compared.stdout) == (0, b"equal: %d entries\n" % (expected.count(b"\n") - 2))


def _as_nobody(tree: Path, manifest: Path) -> None:
    with manifest.open("wb") as stream:
        os.chdir(tree)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        data_manifest.make(b".", stream.write)


def test_what_cannot_be_read_is_an_entry(tree: Path, tmp_path: Path) -> None:
    (tree / "a").chmod(0)
    (tree / "sub").chmod(0o700)
    process = multiprocessing.get_context("fork").Process(target=_as_nobody, args=(tree, tmp_path / "manifest"))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    found = entries(tmp_path / "manifest")
    assert {path for path in found if "error" in found[path]} == {"a", "sub"}
    assert found["a"]["error"] == found["sub"]["error"] == "Permission denied"
    assert found["a"]["size"] == 12
    assert json.loads((tmp_path / "manifest").read_bytes().splitlines()[-1])["errors"] == 2
    # Two that both could not be read prove nothing.
    with pytest.raises(ManifestError, match="nothing is proven"):
        data_manifest.compare(str(tmp_path / "manifest"), str(tmp_path / "manifest"), lambda text: None)


def test_one_that_nobody_reads_on_ends_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(4):
        (tree / f"{number}").write_bytes(bytes(64 << 20))
    for number in range(9000):
        (tree / f"a{number}").touch()
    with subprocess.Popen(
        [sys.executable, PROGRAM, "make", tree], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as run:
        assert run.stdout
        assert run.stderr
        run.stdout.readline()
        run.stdout.close()
        assert b"Broken pipe" in run.stderr.read()
        assert run.wait(10) == 2
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


def signed(*lines: bytes) -> bytes:
    """A manifest of these lines, whole by its last one."""
    data = b"".join(lines)
    end = {"entries": len(lines) - 1, "errors": 0, "sha256": hashlib.sha256(data).hexdigest()}
    return data + json.dumps(end, separators=(",", ":")).encode() + b"\n"


def test_a_manifest_that_is_not_whole_is_refused(tree: Path, tmp_path: Path) -> None:
    whole = make(tree, tmp_path / "whole")
    data = whole.read_bytes()
    lines = data.splitlines(keepends=True)
    broken = tmp_path / "broken"
    for cut, says in [
        (b"", "no manifest"),
        (b"something else\n", "no manifest"),
        (lines[0], "cut off"),
        (b"".join(lines[:-1]), "cut off after"),
        (data[:-1], "cut off"),
        (data[:-20], "cut off|no manifest"),
        (data[: len(data) // 2], "cut off"),
        (b"".join(lines[:5] + lines[6:]), "damaged"),
        (data.replace(b'"uid":', b'"uid": ', 1), "damaged"),
        (data.replace(b'"version":1', b'"version":2'), "version 2"),
        (b'{"format":"kiln-data-manifest"}', "version None"),
        (data[: data.rindex(b"{")] + b'{"entries":1}\n', "cut off"),
        (signed(lines[0], b"{}\n"), "an entry has no path"),
    ]:
        broken.write_bytes(cut)
        with pytest.raises(ManifestError, match=says):
            data_manifest.compare(str(whole), str(broken), lambda text: None)
    with pytest.raises(ManifestError, match="No such file"):
        data_manifest.compare(str(whole), str(tmp_path / "none"), lambda text: None)


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *words], capture_output=True, text=True, check=False)


def test_the_program_by_itself(tree: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    assert run("make", tree, "-o", before).returncode == 0
    made = run("make", tree)
    assert made.stdout == before.read_text()
    assert run("compare", before, before).stdout.startswith("equal: ")
    overwrite(tree / "a", 0, b"C")
    assert run("make", tree, "-o", after).returncode == 0
    compared = run("compare", before, after)
    assert compared.returncode == 1
    assert compared.stdout.splitlines()[1].startswith("1 differences; ")
    told = json.loads(run("compare", "--json", before, after).stdout)
    assert told["equal"] is False
    assert [(entry["path"], [field["field"] for field in entry["fields"]]) for entry in told["differences"]] == [
        ("a", ["sha256"])
    ]
    nothing = run("make", tmp_path / "nothing")
    assert nothing.returncode == 2
    assert len(nothing.stderr.splitlines()) == 1
    backwards = run("make", tree, "--jobs=-1")
    assert (backwards.returncode, backwards.stderr.count("\n")) == (2, 1)
    full = run("make", tree, "-o", "/dev/full")
    assert full.returncode == 2
    assert "No space left" in full.stderr


def test_a_manifest_below_its_own_tree_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(tree)
    for inside in (tree / "manifest", tmp_path / "way" / "sub" / "manifest"):
        refused = run("make", tree, "-o", inside)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.endswith(f"is below {tree}: write it elsewhere\n")
        assert not inside.exists()
        command = [str(Path(sys.executable).with_name("kiln")), "data", "manifest", str(tree), "-o", str(inside)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "write it elsewhere; name" in refused.stderr
    with (tree / "manifest").open("wb") as stream:
        command = [sys.executable, str(PROGRAM), "make", str(tree)]
        assert subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, check=False).returncode == 2
    assert (tree / "manifest").read_bytes() == b""
    assert run("make", tree, "--exclude=sub", "-o", tree / "sub" / "manifest").returncode == 0


def test_kiln_data(tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from kiln.data_command import data; data()"]
    made = subprocess.run([*command, "manifest", tree], capture_output=True, check=True)
    assert made.stdout == make(tree, tmp_path / "before").read_bytes()
    subprocess.run([*command, "manifest", tree, "-o", tmp_path / "after"], check=True)
    same = subprocess.run(
        [*command, "compare", tmp_path / "before", tmp_path / "after"], capture_output=True, text=True
    )
    assert (same.returncode, same.stdout.partition(":")[0]) == (0, "equal")
    (tree / "a").chmod(0o600)
    subprocess.run([*command, "manifest", tree, "-o", tmp_path / "after"], check=True)
    other = subprocess.run(
        [*command, "compare", tmp_path / "before", tmp_path / "after"], capture_output=True, text=True
    )
    assert other.returncode == 1
    assert "a: mode" in other.stdout


@pytest.mark.alone
@pytest.mark.long
def test_it_is_at_least_as_fast_as_find_and_sha256sum(tmp_path: Path) -> None:
    """100,000 files of 100 to 4,080 bytes: of smaller ones it is not, as benchmarks/README.md tells."""
    tree = tmp_path / "tree"
    for folder in range(500):
        (tree / f"{folder}").mkdir(parents=True)
        for name in range(200):
            (tree / f"{folder}" / f"{name}").write_bytes(os.urandom(100 + name * 20))
    ratios = []
    for _ in range(9):
        started = time.monotonic()
        subprocess.run(["sh", "-c", f"find {tree} -type f -print0 | xargs -0 -P2 sha256sum >/dev/null"], check=True)
        between = time.monotonic()
        subprocess.run([sys.executable, PROGRAM, "make", tree, "-o", "/dev/null"], check=True)
        ratios.append((time.monotonic() - between) / (between - started))
    assert statistics.median(ratios) <= 1, ratios


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("folders", "files", "length"), [(10, 100_000, 10), (1, 1_000_000, 255)])
def test_a_million_entries_take_less_than_200_mib(tmp_path: Path, folders: int, files: int, length: int) -> None:
    tree = tmp_path / "tree"
    for number in range(folders):
        (tree / f"{number}").mkdir(parents=True)
        inside = os.open(tree / f"{number}", os.O_RDONLY)
        for name in range(files):
            os.mknod(f"{name}".zfill(length), dir_fd=inside)
        os.close(inside)
    with subprocess.Popen([sys.executable, PROGRAM, "make", tree, "-o", "/dev/null"]) as run:
        _, status, used = os.wait4(run.pid, 0)
    shutil.rmtree(tree)
    assert os.waitstatus_to_exitcode(status) == 0
    assert used.ru_maxrss < 200 << 10  # KiB, of the largest of its processes
