"""A double of metad, the platform's metadata server: for rehearsals and tests, a declared substitution.

It speaks metad's contract as far as a node and a platform use it: ``/self`` by the client's address, long poll,
versions and three formats on one port, and the management of data and mapping on another.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from kiln.errors import KilnError

POLL_S = 60.0
"""A long poll is answered after this, changed or not."""

Tree = dict[str, Any]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _lookup(tree: Any, path: str) -> Any:
    """The subtree or leaf at ``path``; none where there is none."""
    for part in _parts(path):
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _merge(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
    return new


def flatten(tree: Any, path: str = "") -> dict[str, str]:
    """Path to value of every leaf."""
    if not isinstance(tree, dict):
        return {path: str(tree)}
    found: dict[str, str] = {}
    for key, below in sorted(tree.items()):
        found |= flatten(below, f"{path}/{key}")
    return found


class Metadata:
    """What the server holds: a tree of data, and for each client's address which parts of it are its ``self``."""

    def __init__(self) -> None:
        self._trees: dict[str, Tree] = {"data": {}, "mapping": {}}
        self._changed = threading.Condition()
        self.version = 1
        self._closed = False

    def change(self, method: str, kind: str, path: str, content: Any = None) -> None:
        """POST replaces, PUT merges, DELETE removes what stands at ``path`` of the ``data`` or the ``mapping``."""
        parts = _parts(path)
        with self._changed:
            holder: Tree = {"root": self._trees[kind]}
            place, name = holder, "root"
            for part in parts:
                if not isinstance(place.get(name), dict):
                    place[name] = {}
                place, name = place[name], part
            if method == "DELETE":
                place.pop(name, None)
            else:
                place[name] = _merge(place.get(name), content) if method == "PUT" else content
            self._trees[kind] = holder.get("root") or {}
            self.version += 1
            self._changed.notify_all()

    def put(self, path: str, content: Any) -> None:
        """Merges ``content`` into the data at ``path``."""
        self.change("PUT", "data", path, content)

    def get(self, kind: str, path: str) -> Any:
        """A copy of what stands at ``path``; none where nothing does."""
        with self._changed:
            return deepcopy(_lookup(self._trees[kind], path))

    def own(self, address: str, path: str) -> Any:
        """What ``/self/path`` is for the client at ``address``."""
        with self._changed:
            links = self._trees["mapping"].get(address)
            whole = self._resolve(links) if links is not None else None
            return deepcopy(_lookup(whole, path)) if whole is not None else None

    def _resolve(self, links: Any) -> Any:
        if isinstance(links, dict):
            found = {name: self._resolve(link) for name, link in links.items()}
            return {name: value for name, value in found.items() if value is not None}
        return _lookup(self._trees["data"], links)

    def wait(self, version: int) -> None:
        """Returns once the version is another than ``version``, or after POLL_S."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != version or self._closed, POLL_S)

    def close(self) -> None:
        """Answers every long poll at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A port that a rehearsal left a moment ago may still be in TIME_WAIT.
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler], metadata: Metadata) -> None:
        self.metadata = metadata
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A node that went down in the middle of a long poll is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Silent: values are secrets."""

    def answer(self, status: HTTPStatus, content: Any = None) -> None:
        kind, body = self._format(content) if status is HTTPStatus.OK else ("text/plain", status.phrase)
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Metad-Version", str(self.server.metadata.version))
        self.end_headers()
        self.wfile.write(data)

    def _format(self, content: Any) -> tuple[str, str]:
        wanted = self.headers.get("Accept", "")
        if "json" in wanted:
            return "application/json", json.dumps(content)
        if "yaml" in wanted:
            return "application/yaml", yaml.safe_dump(content)
        if isinstance(content, dict):
            return "text/plain", "".join(f"{key}\t{value}\n" for key, value in flatten(content).items())
        return "text/plain", str(content)


class _Nodes(_Handler):
    """The port that nodes see."""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        if query.get("wait") == ["true"]:
            previous = query.get("prev_version", ["0"])[0]
            if not previous.isdigit():
                return self.answer(HTTPStatus.BAD_REQUEST)
            self.server.metadata.wait(int(previous))
        first, *rest = [*_parts(unquote(asked.path)), ""]
        found = self.server.metadata.own(self.client_address[0], "/".join(rest)) if first == "self" else None
        return self.answer(HTTPStatus.NOT_FOUND if found is None else HTTPStatus.OK, found)


class _Management(_Handler):
    """The port of the platform: ``/v1/data`` and ``/v1/mapping``."""

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        version, kind, *rest = [*_parts(unquote(urlsplit(self.path).path)), "", ""]
        if version != "v1" or kind not in ("data", "mapping"):
            return self.answer(HTTPStatus.NOT_FOUND)
        path = "/".join(rest)
        if self.command == "GET":
            found = self.server.metadata.get(kind, path)
            return self.answer(HTTPStatus.NOT_FOUND if found is None else HTTPStatus.OK, found)
        content = None
        if self.command != "DELETE":
            try:
                content = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
            except ValueError:
                return self.answer(HTTPStatus.BAD_REQUEST)
        self.server.metadata.change(self.command, kind, path, content)
        return self.answer(HTTPStatus.OK, "OK")


@contextmanager
def serving(metadata: Metadata, address: str, *, port: int = 80, management: int | None = None) -> Iterator[None]:
    """Serves ``metadata`` on ``address`` until the block ends; the management port only where one is named.

    Raises KilnError when a port cannot be had.
    """
    wanted: Mapping[int | None, type[_Handler]] = {port: _Nodes, management: _Management}
    with ExitStack() as stack:
        for number, handler in wanted.items():
            if number is None:
                continue
            try:
                server = _Server((address, number), handler, metadata)
            except OSError as error:
                raise KilnError(
                    f"the metadata server cannot listen there ({error.strerror})",
                    where=f"{address}:{number}",
                    fix="run it as root, and free the port",
                ) from None
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        stack.callback(metadata.close)
        yield
