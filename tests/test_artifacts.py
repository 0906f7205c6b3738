"""Downloads from a server that misbehaves: nothing wrong or half enters the store, and the next run goes on."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from file_server import Fault, FileServer, closed_port, serving
from kiln import artifacts, index
from kiln.artifact import Artifact
from kiln.artifacts import PlainProgress, fetch, missing, verify
from kiln.errors import KilnError
from kiln.index import Index
from kiln.store import Store

RUN = """
import sys
from pathlib import Path
from kiln.artifact import Artifact
from kiln.artifacts import fetch
from kiln.store import Store
store, *urls = sys.argv[1:]
fetch([Artifact(url.rpartition("/")[2], None, "url", url, "group", "a test") for url in urls],
      Store(Path(store), Path(store) / "project" / "first-fetch.yml"))
"""


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as served:
        yield served


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", tmp_path / "images" / "locks" / "first-fetch.yml")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become moments."""
    monkeypatch.setattr(artifacts, "PAUSE_S", 0.01)
    monkeypatch.setattr(artifacts, "READ_S", 0.5)
    monkeypatch.setattr(artifacts, "CONNECT_S", 0.5)
    monkeypatch.setattr(index, "PAUSE_S", 0.01)


def at(url: str, sha256: str | None = None, file: str | None = None) -> Artifact:
    return Artifact(file or url.rpartition("/")[2], sha256, "url", url, "group", "a test")


def offered(server: FileServer, *names: str) -> list[Artifact]:
    """Files on the server, their checksums known."""
    return [at(f"{server.url}/{name}", server.put(f"/{name}", name.encode() * 100)) for name in names]


def indexed(file: str, sha256: str) -> Artifact:
    return Artifact(file, sha256, "index", file.partition("-")[0], "group", "a test")


def blobs(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs").rglob("*") if path.is_file()}


def left(store: Store) -> list[Path]:
    return list((store.root / "incoming").iterdir())


def refusal(attempt: Callable[[], None]) -> KilnError:
    with pytest.raises(KilnError) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    return caught.value


# What goes well


def test_what_is_missing_is_fetched_and_only_that(server: FileServer, store: Store) -> None:
    first, second, third = offered(server, "a", "b", "c")
    fetch([second], store)
    fetch([first, second, third, first], store)
    assert missing([first, second, third], store) == []
    assert server.asked == {"/a": 1, "/b": 1, "/c": 1}
    assert left(store) == []


def test_a_file_of_two_groups_is_fetched_once(server: FileServer, store: Store) -> None:
    sha256 = server.put("/file", b"content")
    server.pause_s = 0.1
    groups = [Artifact("file", sha256, "url", f"{server.url}/file", name, "a test") for name in ("a", "b")]
    fetch(groups, store)
    assert missing(groups, store) == []
    assert server.asked == {"/file": 1}


def test_transfers_go_in_parallel_and_no_more_than_asked(server: FileServer, store: Store) -> None:
    server.pause_s = 0.2
    wanted = offered(server, *"abcdefgh")
    began = time.monotonic()
    fetch(wanted, store, workers=4)
    assert time.monotonic() - began < 8 * server.pause_s
    assert server.most_at_once == 4
    assert len(blobs(store)) == 8


def test_nothing_is_asked_when_nothing_is_missing(store: Store, tmp_path: Path) -> None:
    with store.temporary() as path:
        path.write_bytes(b"content")
        sha256 = store.add(path)
    fetch([at(f"http://127.0.0.1:{closed_port()}/file", sha256)], store)


def test_progress_is_told(server: FileServer, store: Store) -> None:
    said = io.StringIO()
    fetch(offered(server, "a", "b"), store, progress=PlainProgress(said))
    assert said.getvalue() == "fetching 2 files\nfetched 2 of 2 files, 0 MB\n"


def test_a_server_is_asked_for_the_file_as_it_stands(server: FileServer, store: Store) -> None:
    fetch(offered(server, "a.tar.gz"), store)
    assert [headers["Accept-Encoding"] for headers in server.headers] == ["identity"]


# What goes wrong on the way


@pytest.mark.parametrize("fault", ["unavailable", "cut", "hang"])
def test_a_failure_that_passes_is_outlived(server: FileServer, store: Store, fault: Fault) -> None:
    wanted = offered(server, "a", "b")
    server.faults["/a"] = [fault, fault]
    fetch(wanted, store, retries=2)
    assert server.asked == {"/a": 3, "/b": 1}
    assert missing(wanted, store) == []
    assert left(store) == []


@pytest.mark.parametrize(
    ("fault", "says"), [("unavailable", "HTTPError"), ("cut", "ChunkedEncodingError"), ("hang", "Timeout")]
)
def test_tries_are_bounded_and_the_next_run_goes_on_with_the_rest(
    server: FileServer, store: Store, fault: Fault, says: str
) -> None:
    wanted = offered(server, "a", "b", "c")
    server.faults["/b"] = [fault] * 3
    error = refusal(lambda: fetch(wanted, store, retries=2))
    assert error.what.startswith("b cannot be fetched (")
    assert says in error.what
    assert error.where == f"{server.url}/b"
    assert server.asked == {"/a": 1, "/b": 3, "/c": 1}
    assert missing(wanted, store) == [wanted[1]]
    assert left(store) == []
    fetch(wanted, store, retries=2)
    assert server.asked == {"/a": 1, "/b": 4, "/c": 1}
    assert missing(wanted, store) == []


@pytest.mark.parametrize("known", [True, False], ids=["known checksum", "first fetch"])
def test_half_a_file_is_never_taken(server: FileServer, store: Store, known: bool) -> None:
    sha256 = server.put("/a", b"content" * 100)
    wanted = [at(f"{server.url}/a", sha256 if known else None)]
    server.faults["/a"] = ["cut"] * 2
    refusal(lambda: fetch(wanted, store, retries=1))
    assert blobs(store) == set()
    assert store.first_fetch_lock(wanted[0].key) is None
    assert left(store) == []


def test_wrong_content_never_enters(server: FileServer, store: Store) -> None:
    wanted = offered(server, *"abcd")
    server.faults["/a"] = ["wrong"]
    server.pause_s = 0.05
    error = refusal(lambda: fetch(wanted, store, workers=1))
    found = hashlib.sha256(bytes(byte ^ 1 for byte in server.files["/a"])).hexdigest()
    assert error.what == f"a has sha256 {found}, not {wanted[0].sha256}"
    assert blobs(store) == {artifact.sha256 for artifact in wanted[1:]}, "the others are fetched all the same"
    assert left(store) == []


def test_a_refusal_is_not_asked_again(server: FileServer, store: Store) -> None:
    wanted = offered(server, "a")
    server.faults["/a"] = ["forbidden"]
    error = refusal(lambda: fetch([*wanted, at(f"{server.url}/gone", "0" * 64)], store))
    assert error.what in ("the server answers 403", "the server answers 404")
    assert server.asked == {"/a": 1, "/gone": 1}


def test_the_next_mirror_is_asked(server: FileServer, store: Store) -> None:
    sha256 = server.put("/second/pool/a", b"content")
    server.put("/third/pool/b", b"content b")
    wanted = [Artifact("a", sha256, "debian", "pool/a", "group", "a test")]
    fetch(wanted, store, mirrors=[f"{server.url}/first", f"{server.url}/second", f"http://127.0.0.1:{closed_port()}"])
    assert missing(wanted, store) == []
    assert server.asked == {"/first/pool/a": 1, "/second/pool/a": 1}


def test_a_file_that_no_mirror_has_is_not_asked_again(server: FileServer, store: Store) -> None:
    wanted = [Artifact("a", "0" * 64, "debian", "pool/a", "group", "a test")]
    error = refusal(lambda: fetch(wanted, store, mirrors=[f"{server.url}/first", f"{server.url}/second"]))
    assert error.what == "the server answers 404"
    assert server.asked == {"/first/pool/a": 1, "/second/pool/a": 1}


# Hosts out of reach


def test_every_artifact_of_an_unreachable_host_is_named_at_once(server: FileServer, store: Store) -> None:
    dark, none = f"127.0.0.1:{closed_port()}", "no-such-host.invalid"
    lost = [at(f"http://{dark}/x", "0" * 64), at(f"http://{dark}/y", "0" * 64), at(f"https://{none}/z", "0" * 64)]
    began = time.monotonic()
    error = refusal(lambda: fetch([*offered(server, "a"), *lost], store))
    assert time.monotonic() - began < 3
    assert error.what == f"out of reach: {dark} (x, y); {none} (z)"
    assert "choose another channel" in error.fix
    assert server.asked == {}


def test_files_of_one_name_are_told_by_their_paths(store: Store) -> None:
    dark = f"127.0.0.1:{closed_port()}"
    error = refusal(lambda: fetch([at(f"http://{dark}/{folder}/x", "0" * 64) for folder in ("cpu", "gpu")], store))
    assert error.what == f"out of reach: {dark} (cpu/x, gpu/x)"


def test_a_host_that_drops_what_is_sent_is_out_of_reach(store: Store) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        host = f"127.0.0.1:{full.getsockname()[1]}"
        waiting = []
        for _ in range(3):  # what the queue of a listener holds; the next is dropped
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(full.getsockname())
            waiting.append(client)
        try:
            error = refusal(lambda: fetch([at(f"http://{host}/{name}", "0" * 64) for name in "abc"], store))
        finally:
            for client in waiting:
                client.close()
    assert error.what == f"out of reach: {host} (a, b, c)"


def test_every_package_of_an_unreachable_index_is_named_at_once(store: Store) -> None:
    port = closed_port()
    lost = [indexed("numpy-1.whl", "0" * 64), indexed("six-1.whl", "1" * 64)]
    unreachable = Index(urls=[f"http://user:secret@127.0.0.1:{port}/simple/"])
    error = refusal(lambda: fetch(lost, store, index=unreachable))
    assert error.what == f"out of reach: 127.0.0.1:{port} (numpy-1.whl, six-1.whl)"


def test_a_mirror_that_does_not_answer_is_fine_while_another_does(server: FileServer, store: Store) -> None:
    sha256 = server.put("/pool/a", b"content")
    wanted = [Artifact("a", sha256, "debian", "pool/a", "group", "a test")]
    fetch(wanted, store, mirrors=[f"http://127.0.0.1:{closed_port()}", server.url])
    assert missing(wanted, store) == []


def test_behind_a_proxy_the_proxy_must_answer(
    server: FileServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = closed_port()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    wanted = [*offered(server, "a"), at("http://host.invalid/b", "0" * 64)]
    error = refusal(lambda: fetch(wanted, store))
    assert error.what == f"out of reach: host.invalid through proxy 127.0.0.1:{port} (b)"
    # With the server as the proxy: a proxy is asked for whole URLs.
    sha256 = server.put("http://host.invalid/b", b"content")
    monkeypatch.setenv("http_proxy", server.url)
    fetch([at("http://host.invalid/b", sha256)], store)
    assert blobs(store) == {sha256}


def test_no_proxy_alone_does_not_switch_the_probe_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "localhost")
    dark = f"127.0.0.1:{closed_port()}"
    assert "out of reach" in refusal(lambda: fetch([at(f"http://{dark}/x", "0" * 64)], store)).what


# Packages of an index


def test_packages_come_from_where_the_index_says(server: FileServer, store: Store) -> None:
    digests = server.put_project("six", "six-1.0-py3-none-any.whl", "six-1.0.tar.gz")
    wanted = [indexed(file, sha256) for file, sha256 in digests.items()]
    server.faults["/simple/six/"] = ["unavailable", "unavailable"]
    fetch(wanted, store, index=Index(urls=[server.index]))
    assert missing(wanted, store) == []
    assert server.asked["/simple/six/"] == 3


# Checksums locked at the first fetch


def test_a_first_checksum_is_locked_once_and_changed_content_refused(server: FileServer, store: Store) -> None:
    url = f"{server.url}/wheel"
    sha256 = server.put("/wheel", b"as it first came")
    fetch([at(url)], store)
    assert store.first_fetch is not None
    assert store.first_fetch.read_text().splitlines()[1:] == [f"url {url}: {sha256}"]
    other = Store(store.root.with_name("other"), store.first_fetch)
    server.put("/wheel", b"as it is now")
    error = refusal(lambda: fetch([at(url)], other))
    assert error.what.endswith(f", not {sha256}")
    assert blobs(other) == set()
    assert store.first_fetch.read_text().count(sha256) == 1
    store.first_fetch.write_text("# the line was removed\n")
    fetch([at(url)], other)
    assert len(blobs(other)) == 1


def test_a_first_fetch_needs_a_length(server: FileServer, store: Store) -> None:
    sha256 = server.put("/a", b"content")
    server.faults["/a"] = ["until-closed", "until-closed"]
    error = refusal(lambda: fetch([at(f"{server.url}/a")], store))
    assert error.what == "the server does not say how long it is, so a first fetch cannot be trusted"
    assert blobs(store) == set()
    fetch([at(f"{server.url}/a", sha256)], store)
    assert blobs(store) == {sha256}


# Ends from outside


def test_after_a_kill_nothing_is_taken_for_whole_and_the_next_run_completes(server: FileServer, tmp_path: Path) -> None:
    root = tmp_path / "store"
    for name in "abc":
        server.put(f"/{name}", name.encode() * 10_000)
    server.faults["/b"] = ["endless"]
    urls = [f"{server.url}/{name}" for name in "abc"]
    command = [sys.executable, "-c", RUN, str(root), *urls]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    store = Store(root, root / "project" / "first-fetch.yml")
    until = time.monotonic() + 20
    while len(blobs(store)) < 2 or not any(path.stat().st_size for path in left(store)):
        assert time.monotonic() < until, "nothing was half fetched"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert blobs(store) == {hashlib.sha256(server.files[f"/{name}"]).hexdigest() for name in "ac"}
    assert store.lookup(at(urls[1])) is None
    assert len(left(store)) == 1
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    assert server.asked == {"/a": 1, "/b": 2, "/c": 1}
    assert missing([at(url) for url in urls], store) == []
    assert left(store) == []


def test_an_interrupt_ends_a_fetch_soon_and_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    root = tmp_path / "store"
    server.put("/a", b"content" * 1000)
    server.faults["/a"] = ["endless"]
    command = ["env", "--default-signal=INT", sys.executable, "-c", RUN, str(root), f"{server.url}/a"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    store = Store(root)
    until = time.monotonic() + 20
    while not (store.root / "incoming").is_dir() or not left(store):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) != 0
    assert left(store) == []
    assert blobs(store) == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_sentence_and_nothing_half_stays(
    server: FileServer, small_disk: Path, tmp_path: Path
) -> None:
    assert os.geteuid() == 0
    store = Store(small_disk / "store", tmp_path / "first-fetch.yml")
    large = at(f"{server.url}/large", server.put("/large", b"x" * 400_000))
    error = refusal(lambda: fetch([large], store))
    assert error.what == "cannot be written (No space left on device)"
    assert error.where == str(store.root)
    assert error.fix.startswith("make room there")
    assert error.exit_code == 2
    assert blobs(store) == set()
    assert left(store) == []
    small = offered(server, "small")
    fetch(small, store)
    assert missing(small, store) == []


# Verification


def test_damaged_files_are_found_told_and_moved_aside(server: FileServer, store: Store) -> None:
    wanted = offered(server, "a", "b", "c")
    fetch(wanted[:2], store)
    path = store.lookup(wanted[0])
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(b"rotten")
    told: list[str] = []
    assert verify(wanted, store, told.append) == 1
    assert [line.partition(":")[0] for line in told] == ["a"]
    assert hashlib.sha256(b"rotten").hexdigest() in told[0]
    assert (store.root / "damaged" / path.name).read_bytes() == b"rotten"
    assert missing(wanted, store) == [wanted[0], wanted[2]]
    assert verify(wanted, store, told.append) == 0
    fetch(wanted, store)
    assert missing(wanted, store) == []
