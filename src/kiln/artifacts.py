"""Downloads: what is missing in the store is fetched in parallel, verified, and only then takes its place."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TextIO
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies, select_proxy

from kiln.artifact import Artifact
from kiln.bootstrap import host_mirrors
from kiln.errors import KilnError
from kiln.host_python import pack_host_python
from kiln.index import Index, new_session, shown
from kiln.store import CHUNK, Store, file_sha256

CONNECT_S = 5.0
"""A host that does not take a connection within this is out of reach."""

PORTS = {"http": 80, "https": 443}

READ_S = 60.0
"""A transfer that is silent for this long is given up and tried again."""

RETRIES = 3
"""Further tries per file after the first failed."""

PAUSE_S = 0.5
"""Before the second try; twice as long before each further one."""

WORKERS = 6


class Progress(Protocol):
    """Is told how a fetch goes, from any thread."""

    def begin(self, files: int) -> None:
        """So many files will be fetched."""

    def received(self, size: int) -> None:
        """So many bytes more arrived."""

    def done(self, file: str) -> None:
        """A file is in the store."""

    def end(self) -> None:
        """The fetch is over."""


@dataclass
class PlainProgress:
    """A line every few seconds, for logs."""

    stream: TextIO
    every_s: float = 5.0
    _files: int = 0
    _done: int = 0
    _bytes: int = 0
    _said: float = 0.0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, files: int) -> None:
        self._files = files
        self._said = time.monotonic()
        print(f"fetching {files} files", file=self.stream, flush=True)

    def received(self, size: int) -> None:
        with self._guard:
            self._bytes += size
            if time.monotonic() - self._said > self.every_s:
                self._said = time.monotonic()
                self._say()

    def done(self, file: str) -> None:
        with self._guard:
            self._done += 1

    def end(self) -> None:
        self._say()

    def _say(self) -> None:
        print(f"fetched {self._done} of {self._files} files, {self._bytes / 1e6:.0f} MB", file=self.stream, flush=True)


class BarProgress:
    """A live bar, for a terminal."""

    def __init__(self) -> None:
        from rich import progress

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[megabytes]:.0f} MB"),
            progress.TimeElapsedColumn(),
        )
        self._bytes = 0
        self._guard = threading.Lock()

    def begin(self, files: int) -> None:
        self._task = self._bar.add_task("fetching", total=files, megabytes=0.0)
        self._bar.start()

    def received(self, size: int) -> None:
        with self._guard:
            self._bytes += size
            self._bar.update(self._task, megabytes=self._bytes / 1e6)

    def done(self, file: str) -> None:
        self._bar.advance(self._task)

    def end(self) -> None:
        self._bar.stop()


def choose_progress(stream: TextIO) -> Progress:
    """A bar on a terminal, lines elsewhere."""
    return BarProgress() if stream.isatty() else PlainProgress(stream)


def missing(artifacts: Iterable[Artifact], store: Store) -> list[Artifact]:
    """Those that the store does not hold; a file that several groups name only once."""
    each = {(artifact.key, artifact.sha256): artifact for artifact in artifacts}
    return [artifact for artifact in each.values() if store.lookup(artifact) is None]


def fetch(
    artifacts: Iterable[Artifact],
    store: Store,
    *,
    progress: Progress | None = None,
    retries: int = RETRIES,
    workers: int = WORKERS,
    index: Index | None = None,
    mirrors: Sequence[str] | None = None,
) -> None:
    """Fetches what is missing; a second call goes on where the first one failed.

    Raises KilnError at once when a host is out of reach, naming every artifact that was to come from it; else, after
    all other files are done, for the first file that could not be had.
    """
    wanted = missing(artifacts, store)
    store.remove_stale()
    if not wanted:
        return
    Fetch(store, progress or choose_progress(sys.stderr), retries, index, mirrors).run(wanted, workers)


class Fetch:
    """One fetch of several files."""

    def __init__(
        self, store: Store, progress: Progress, retries: int, index: Index | None, mirrors: Sequence[str] | None
    ) -> None:
        self.store = store
        self.progress = progress
        self.retries = retries
        self.session = index.session if index else new_session()
        self.index = index or Index(self.session)
        self._mirrors = mirrors
        self._stop = threading.Event()

    def run(self, wanted: Sequence[Artifact], workers: int) -> None:
        """Fetches ``wanted`` with ``workers`` transfers at a time."""
        sources = self._sources(wanted)
        indexed = {artifact: self.index.urls for artifact in wanted if artifact.origin == "index"}
        self._probe(sources | indexed)
        self.progress.begin(len(wanted))
        failure: KilnError | None = None
        try:
            with ThreadPoolExecutor(workers) as pool:
                futures = {pool.submit(self._one, artifact, sources.get(artifact, [])) for artifact in wanted}
                try:
                    for future in as_completed(futures):
                        try:
                            future.result()
                        except KilnError as error:
                            failure = failure or error
                        except OSError as error:
                            # The disk is full or broken: no other file will fare better.
                            raise KilnError(
                                f"cannot be written ({error.strerror or error})",
                                where=str(error.filename or self.store.root),
                                fix="make room there, or choose another store with --store or KILN_STORE",
                            ) from None
                except BaseException:
                    self._stop.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
        finally:
            self.progress.end()
        if failure is not None:
            raise failure

    def _sources(self, wanted: Sequence[Artifact]) -> dict[Artifact, list[str]]:
        """Artifact to its URLs, best first, for those whose URL is known without asking an index."""
        sources: dict[Artifact, list[str]] = {}
        for artifact in wanted:
            if artifact.origin == "url":
                sources[artifact] = [artifact.path]
            elif artifact.origin == "debian":
                sources[artifact] = [f"{mirror}/{artifact.path}" for mirror in self._archives()]
        return sources

    def _archives(self) -> Sequence[str]:
        if self._mirrors is None:
            # Only the main archive has a pool of every source package: suites such as bookworm-security have their own.
            self._mirrors = list(
                dict.fromkeys(mirror for suite, mirror in host_mirrors().items() if "security" not in suite)
            )
        if not self._mirrors:
            raise KilnError(
                "this machine's apt has no mirror", where="apt-get indextargets", fix="add one and run apt-get update"
            )
        return self._mirrors

    def _probe(self, sources: dict[Artifact, list[str]]) -> None:
        """Refuses at once what comes only from hosts that do not answer."""
        hosts = sorted({_host(url) for urls in sources.values() for url in urls})
        with ThreadPoolExecutor(max(len(hosts), 1)) as pool:
            answers = dict(zip(hosts, pool.map(_answers, hosts), strict=True))
        lost: dict[str, list[str]] = {}
        for artifact, urls in sources.items():
            if urls and not any(answers[_host(url)] for url in urls):
                # Files of several releases may have one name; their paths differ.
                named = urlsplit(artifact.path).path.lstrip("/") if artifact.origin == "url" else artifact.file
                lost.setdefault(" and ".join(dict.fromkeys(map(_name, urls))), []).append(named)
        if lost:
            raise KilnError(
                "out of reach: "
                + "; ".join(f"{host} ({', '.join(sorted(files))})" for host, files in sorted(lost.items())),
                fix="fetch where these hosts answer and share the store, or choose another channel",
            )

    def _one(self, artifact: Artifact, urls: list[str]) -> None:
        for attempt in range(self.retries + 1):
            if self._stop.is_set():
                return
            try:
                self._transfer(artifact, urls)
            except _TryAgainError as error:
                if attempt == self.retries:
                    raise KilnError(
                        f"{artifact.file} cannot be fetched ({error})", where=artifact.path, fix="run it again later"
                    ) from None
                self._stop.wait(PAUSE_S * 2**attempt)
            else:
                self.progress.done(artifact.file)
                return

    def _transfer(self, artifact: Artifact, urls: list[str]) -> None:
        with self.store.temporary() as path:
            if artifact.origin == "host":
                pack_host_python(artifact.path, path)
                self.store.set_machine_lock(artifact.key, self.store.add(path))
                return
            last: Exception | None = None
            refusal: KilnError | None = None
            for url in urls or [self.index.url(artifact.path, artifact.file)]:
                try:
                    self._receive(url, path, known=self.store.locked_sha256(artifact) is not None)
                    break
                except KilnError as error:
                    refusal = error
                except (requests.RequestException, _TryAgainError) as error:
                    last = error
            else:
                if last is None and refusal is not None:
                    raise refusal
                raise _TryAgainError(_words(last))
            self._accept(artifact, path)

    def _receive(self, url: str, path: Path, *, known: bool) -> None:
        """Writes what ``url`` holds to ``path``; ``known``: its checksum will tell whether all of it arrived."""
        # As pip asks: a server must not pack an archive once more, whose checksum is that of the file as it stands.
        headers = {"Accept-Encoding": "identity"}
        with self.session.get(url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S)) as answer:
            if answer.status_code in (404, 410, 401, 403):
                raise KilnError(
                    f"the server answers {answer.status_code}", where=shown(url), fix="correct the address in its table"
                )
            answer.raise_for_status()
            if not known and not {"Content-Length", "Transfer-Encoding"} & set(answer.headers):
                raise KilnError(
                    "the server does not say how long it is, so a first fetch cannot be trusted",
                    where=shown(url),
                    fix="give it a sha256 in its table",
                )
            size = 0
            with path.open("wb") as stream:
                for chunk in answer.iter_content(CHUNK):
                    if self._stop.is_set():
                        raise _TryAgainError("stopped")
                    stream.write(chunk)
                    size += len(chunk)
                    self.progress.received(len(chunk))
            promised = answer.headers.get("Content-Length")
            if promised and "Content-Encoding" not in answer.headers and size != int(promised):
                raise _TryAgainError(f"{size} of {promised} bytes arrived")

    def _accept(self, artifact: Artifact, path: Path) -> None:
        expected = self.store.locked_sha256(artifact)
        found = file_sha256(path)
        if expected is None:
            self.store.set_first_fetch_lock(artifact.key, found)
        elif found != expected:
            raise KilnError(
                f"{artifact.file} has sha256 {found}, not {expected}",
                where=artifact.path,
                fix="the file was changed or damaged on its way: fetch again, and correct the table if it stays",
            )
        self.store.add(path, found)


class _TryAgainError(Exception):
    """A transfer failed in a way that may pass."""


def _words(error: Exception | None) -> str:
    return str(error) if isinstance(error, _TryAgainError) else type(error).__name__


def _host(url: str) -> tuple[str, int]:
    """Address and port that must take a connection for ``url``: its own, or those of its proxy."""
    proxy = select_proxy(url, get_environ_proxies(url))
    parts = urlsplit((proxy if "://" in proxy else f"http://{proxy}") if proxy else url)
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 443)


def _name(url: str) -> str:
    """The host of ``url`` for a person; with its proxy, where one answers for it."""
    host = urlsplit(shown(url)).netloc
    address, port = _host(url)
    return f"{host} through proxy {address}:{port}" if select_proxy(url, get_environ_proxies(url)) else host


def _answers(host: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(host, CONNECT_S):
            return True
    except OSError:
        return False


def verify(artifacts: Iterable[Artifact], store: Store, told: Callable[[str], None]) -> int:
    """Reads every stored artifact again; moves damaged ones aside, tells each, and returns how many there were."""
    damaged = 0
    for artifact in dict.fromkeys(artifacts):
        path = store.lookup(artifact)
        if path is None:
            continue
        found = file_sha256(path)
        if found != path.name:
            aside = store.root / "damaged"
            aside.mkdir(exist_ok=True)
            path.rename(aside / path.name)
            damaged += 1
            told(f"{artifact.file}: damaged (sha256 {found}, not {path.name}), moved to {aside}; fetch it again")
    return damaged
