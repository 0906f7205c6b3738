"""A file server of this process that can be told to misbehave."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["unavailable", "forbidden", "cut", "wrong", "hang", "endless", "until-closed"]
"""What happens to one request: 503, 403, half the file and a closed connection, other bytes of the same length, no
answer, a file that never ends, a whole file whose length is not told."""

HTML = "text/html"


@dataclass
class FileServer:
    """Serves ``files``, path to content, on this machine."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """Path to what happens to its next requests, one each; when they are used up it is served well."""
    pause_s: float = 0.0
    """Before each answer."""
    asked: Counter[str] = field(default_factory=Counter)
    """How often each path was asked for."""
    headers: list[Mapping[str, str]] = field(default_factory=list)
    """Of each request."""
    most_at_once: int = 0
    url: str = ""
    stopping: threading.Event = field(default_factory=threading.Event)
    _now: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def put(self, path: str, content: bytes) -> str:
        """Serves ``content`` at ``path``; returns its sha256."""
        self.files[path] = content
        return hashlib.sha256(content).hexdigest()

    def put_project(self, name: str, *files: str) -> dict[str, str]:
        """Serves the page of a project on a Python index, and its files; returns their sha256."""
        digests = {file: self.put(f"/files/{file}", f"content of {file}".encode()) for file in files}
        links = [f'<a href="/files/{file}#sha256={digest}">{file}</a>' for file, digest in digests.items()]
        self.put(f"/simple/{name}/", "<!DOCTYPE html><html><body>{}</body></html>".format("\n".join(links)).encode())
        return digests

    @property
    def index(self) -> str:
        """URL of the Python index."""
        return f"{self.url}/simple/"

    @contextmanager
    def counted(self, path: str) -> Iterator[Fault | None]:
        """Counts a request while it is answered; yields what shall happen to it."""
        with self._guard:
            self.asked[path] += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            faults = self.faults.get(path, [])
            fault = faults.pop(0) if faults else None
        try:
            yield fault
        finally:
            with self._guard:
                self._now -= 1


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, served: FileServer) -> None:
        self.served = served
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Silent: a client that was killed or gave up is what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        served = self.server.served
        served.headers.append(dict(self.headers.items()))
        with served.counted(self.path) as fault:
            time.sleep(served.pause_s)
            content = served.files.get(self.path)
            if fault == "hang":
                served.stopping.wait()
            elif content is None or fault in ("unavailable", "forbidden"):
                self.send_error({"unavailable": 503, "forbidden": 403}.get(fault or "", 404))
            else:
                self._answer(content, fault)

    def _answer(self, content: bytes, fault: Fault | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", HTML if self.path.endswith("/") else "application/octet-stream")
        if fault == "endless":
            self.send_header("Content-Length", str(1 << 40))
        elif fault != "until-closed":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "wrong":
            content = bytes(byte ^ 1 for byte in content)
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        while fault == "endless" and not self.server.served.stopping.wait(0.02):
            self.wfile.write(content)
        self.close_connection = fault is not None

    def log_message(self, *words: object) -> None:
        """Silent: ``asked`` tells."""


@contextmanager
def serving() -> Iterator[FileServer]:
    """A file server until the block ends."""
    served = FileServer()
    http = _Http(served)
    served.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.stopping.set()
        http.shutdown()
        http.server_close()
        thread.join()


def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
