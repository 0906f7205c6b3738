"""Answers for a host during a bake: a build stage's product over HTTP, on the bridge that containers see."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str, hosts: Mapping[str, Path]) -> None:
        self.hosts = hosts
        super().__init__((address, 0), _Handler)


class _Handler(SimpleHTTPRequestHandler):
    """A proxy for its own hosts only: ``GET http://host/path`` reads ``path`` of that host's folder."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def translate_path(self, path: str) -> str:
        asked = urlsplit(path)
        root = self.server.hosts.get(asked.hostname or "")
        if root is None:
            return "/nonexistent"
        wanted = (root / unquote(asked.path).lstrip("/")).resolve()
        return str(wanted) if wanted.is_relative_to(root.resolve()) and wanted.is_file() else "/nonexistent"

    def log_message(self, *words: object) -> None:
        """Silent, refusals too: the stage's log has apt's own words."""


@contextmanager
def serving(address: str, hosts: Mapping[str, Path]) -> Iterator[str]:
    """Serves each host's folder on ``address`` until the block ends; yields the proxy's URL."""
    server = _Server(address, hosts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
