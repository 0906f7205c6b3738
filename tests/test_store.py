"""The store: only whole content under a final name, whatever is killed, shared or changed by hand."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kiln.artifact import Artifact
from kiln.errors import KilnError
from kiln.store import Store, file_sha256

DIGEST = hashlib.sha256(b"content").hexdigest()

ADD = """
import sys
from pathlib import Path
from kiln.store import Store
store = Store(Path(sys.argv[1]))
sys.stdin.readline()
for _ in range(30):
    with store.temporary() as path:
        path.write_bytes(b"x" * 300_000)
        print(store.add(path))
"""

LOCK = """
import sys
from pathlib import Path
from kiln.store import Store
store = Store(Path(sys.argv[1]), Path(sys.argv[1]) / "project" / "first-fetch.yml")
sys.stdin.readline()
for number in range(20):
    store.set_machine_lock(f"{sys.argv[2]} {number}", "d")
    store.set_first_fetch_lock(f"{sys.argv[2]} {number}", "0" * 64)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", tmp_path / "images" / "locks" / "first-fetch.yml")


def artifact(sha256: str | None = None, path: str = "http://host/file") -> Artifact:
    return Artifact(file="file", sha256=sha256, origin="url", path=path, group="group", source="a test")


def put(store: Store, content: bytes, sha256: str | None = None) -> str:
    with store.temporary() as path:
        path.write_bytes(content)
        return store.add(path, sha256)


def files(store: Store) -> set[str]:
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()}


def together(script: str, *lines: list[str]) -> list[str]:
    """What several processes of ``script`` print, which begin at the same moment."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for words in lines
    ]
    with ThreadPoolExecutor(len(started)) as pool:
        said = list(pool.map(lambda process: process.communicate("go\n", timeout=30)[0], started))
    assert [process.returncode for process in started] == [0] * len(started)
    return said


def test_content_stands_under_its_digest_and_cannot_be_written(store: Store) -> None:
    assert put(store, b"content", DIGEST) == DIGEST
    path = store.blob(DIGEST)
    assert path is not None
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == 0o444
    assert files(store) == {f"blobs/{DIGEST[:2]}/{DIGEST}"}


def test_other_content_than_promised_never_enters(store: Store) -> None:
    with pytest.raises(KilnError, match=f"not {DIGEST}"):
        put(store, b"other", DIGEST)
    assert files(store) == set()


def test_two_processes_add_the_same_content_at_once(store: Store) -> None:
    said = together(ADD, [str(store.root)], [str(store.root)])
    digest = hashlib.sha256(b"x" * 300_000).hexdigest()
    assert set("".join(said).split()) == {digest}
    assert files(store) == {f"blobs/{digest[:2]}/{digest}"}
    assert file_sha256(store.blob_path(digest)) == digest


def test_only_what_dead_processes_left_is_removed(store: Store) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    incoming, new = store.root / "incoming", store.root / "products" / ".new"
    for owner in (dead.pid, os.getpid()):
        incoming.mkdir(parents=True, exist_ok=True)
        (incoming / f"{owner}-aa").write_bytes(b"half")
        (new / f"{owner}-bb").mkdir(parents=True)
        (new / f"{owner}-bb" / "half").write_bytes(b"half")
    store.remove_stale()
    assert files(store) == {f"incoming/{os.getpid()}-aa", f"products/.new/{os.getpid()}-bb/half"}


# Locks


def test_a_table_s_checksum_goes_before_a_locked_one(store: Store) -> None:
    store.set_first_fetch_lock("url http://host/file", DIGEST)
    assert store.locked_sha256(artifact()) == DIGEST
    assert store.locked_sha256(artifact("1" * 64)) == "1" * 64


def test_a_first_checksum_is_locked_once_and_a_change_refused(store: Store) -> None:
    assert store.first_fetch is not None
    store.set_first_fetch_lock("url http://host/file", DIGEST)
    written = store.first_fetch.read_text()
    store.set_first_fetch_lock("url http://host/file", DIGEST)
    with pytest.raises(KilnError, match=f"changed: it was {DIGEST} when first fetched and is {'2' * 64} now"):
        store.set_first_fetch_lock("url http://host/file", "2" * 64)
    assert store.first_fetch.read_text() == written
    assert written.count(DIGEST) == 1


def test_without_a_project_nothing_is_locked_at_first_fetch(tmp_path: Path) -> None:
    with pytest.raises(KilnError, match="give it a sha256"):
        Store(tmp_path).set_first_fetch_lock("url http://host/file", DIGEST)


@pytest.mark.parametrize(
    "text",
    ["[", "- a list", "a: 1", "a: not a digest", f"a: {DIGEST.upper()}", "\0"],
    ids=["broken", "list", "number", "words", "capitals", "binary"],
)
def test_a_first_fetch_file_that_was_spoiled_by_hand_is_one_sentence(store: Store, text: str) -> None:
    assert store.first_fetch is not None
    store.first_fetch.parent.mkdir(parents=True)
    store.first_fetch.write_text(text)
    with pytest.raises(KilnError, match=r"first-fetch\.yml: must hold a mapping") as caught:
        store.lookup(artifact())
    assert caught.value.fix == "restore it from version control"


def test_a_first_fetch_file_whose_lines_were_all_removed_locks_nothing(store: Store) -> None:
    assert store.first_fetch is not None
    store.first_fetch.parent.mkdir(parents=True)
    store.first_fetch.write_text("# a comment\n")
    assert store.locked_sha256(artifact()) is None


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_damaged_locks_of_the_machine_are_one_sentence(store: Store, content: bytes) -> None:
    store.root.mkdir()
    (store.root / "locks.json").write_bytes(content)
    with pytest.raises(KilnError, match=r"locks\.json: is damaged; remove it"):
        store.machine_lock("anything")


def test_locks_of_processes_at_once_are_all_kept(store: Store) -> None:
    store = Store(store.root, store.root / "project" / "first-fetch.yml")
    together(LOCK, *([str(store.root), name] for name in "abc"))
    names = {f"{name} {number}" for name in "abc" for number in range(20)}
    assert set(store.machine_locks()) == names
    assert {name for name in names if store.first_fetch_lock(name)} == names
    assert not list(store.root.glob(".locks.json.*"))


def test_a_lock_that_cannot_be_written_leaves_nothing_beside_it(store: Store) -> None:
    store.root.mkdir()
    (store.root / "locks.json").mkdir()
    with pytest.raises(OSError, match=r"locks\.json"):
        Store._replace(store.root / "locks.json", "{}")
    assert files(store) == set()


# Products


def test_a_product_is_kept_whole_with_its_checksums(store: Store) -> None:
    folder = store.new_product()
    (folder / "below").mkdir()
    (folder / "below" / "a.tar").write_bytes(b"content")
    (folder / "b.tar").write_bytes(b"other")
    (folder / "link").symlink_to("b.tar")
    assert store.product("stage") is None
    kept = store.keep_product(folder, "stage")
    assert store.product("stage") == kept
    checked = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=kept, capture_output=True, text=True)
    assert checked.returncode == 0
    assert checked.stdout == "b.tar: OK\nbelow/a.tar: OK\n"
    assert not folder.exists()


def test_a_product_without_a_file_is_refused(store: Store) -> None:
    with pytest.raises(KilnError, match="wrote nothing"):
        store.keep_product(store.new_product(), "stage")
    assert store.product("stage") is None


def test_of_two_same_products_the_first_stays(store: Store) -> None:
    folders = [store.new_product() for _ in range(2)]
    for folder in folders:
        (folder / "file").write_bytes(folder.name.encode())
    with ThreadPoolExecutor() as pool:
        kept = list(pool.map(lambda folder: store.keep_product(folder, "stage"), folders))
    assert kept[0] == kept[1]
    first = (kept[0] / "file").read_bytes().decode()
    assert first in {folder.name for folder in folders}
    assert not any(folder.exists() for folder in folders)
    later = store.new_product()
    (later / "file").write_bytes(b"later")
    store.keep_product(later, "stage")
    assert (kept[0] / "file").read_bytes().decode() == first
