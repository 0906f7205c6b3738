"""A double of the QingStor object store for one bucket: what qsctl asks of it to list and to copy.

Run on its own: ``guide_object_store.py PORT HOST BUCKET FOLDER ACCESS_KEY SECRET_KEY [BREAK]``. It checks the signature
of every request (source: the store's API documentation, "signature"), and, with BREAK, ends each object halfway.
Standard library only: tests run it in a node's container, too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ZONE = "pek3a"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    host = bucket = folder = access_key = secret_key = ""
    breaks = False

    def do_HEAD(self) -> None:
        """A bucket's zone by its host name, or the bucket itself."""
        name = (self.headers["Host"] or "").partition(":")[0]
        if name == f"{self.bucket}.{self.host}":
            self.answer(307, headers={"Location": f"http://{self.bucket}.{ZONE}.{self.host}/"})
        elif name == f"{ZONE}.{self.host}" and self.signed():
            self.answer(200 if self.path == f"/{self.bucket}" else 404)
        else:
            self.answer(404)

    def do_GET(self) -> None:
        """The list of keys, or one object."""
        if not self.signed():
            return
        parts = urlsplit(self.path)
        if parts.path == f"/{self.bucket}":
            prefix = parse_qs(parts.query).get("prefix", [""])[0]
            keys = [key for key in self.keys() if key.startswith(prefix)]
            facts = {"created": "2018-08-01T00:00:00.000Z", "modified": 0, "mime_type": "text/plain", "etag": ""}
            listed = [{"key": key, "size": self.place(key).stat().st_size, **facts} for key in keys]
            self.answer(200, json.dumps({"keys": listed, "common_prefixes": [], "next_marker": ""}).encode())
            return
        key = unquote(parts.path.removeprefix(f"/{self.bucket}/"))
        if key not in self.keys():
            self.answer(404, b'{"message": "The object you are accessing does not exist."}')
            return
        content = self.place(key).read_bytes()
        if self.breaks:
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(content) + 1000))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self.answer(200, content)

    def signed(self) -> bool:
        """Whether the signature is the key's; answers 403 otherwise."""
        named = sorted(name.lower() for name in self.headers if name.lower().startswith("x-qs-"))
        text = "\n".join(
            [
                self.command,
                self.headers.get("Content-MD5", ""),
                self.headers.get("Content-Type", ""),
                self.headers.get("Date", ""),
                "".join(f"{name}:{self.headers[name]}\n" for name in named) + urlsplit(self.path).path,
            ]
        )
        digest = hmac.new(self.secret_key.encode(), text.encode(), hashlib.sha256).digest()
        if self.headers.get("Authorization") == f"QS {self.access_key}:{base64.b64encode(digest).decode()}":
            return True
        self.answer(403, b'{"code": "permission_denied", "message": "You do not have the permission."}')
        return False

    def keys(self) -> list[str]:
        """The keys of all objects."""
        return sorted(str(path.relative_to(self.folder)) for path in Path(self.folder).rglob("*") if path.is_file())

    def place(self, key: str) -> Path:
        """An object's file."""
        return Path(self.folder) / key

    def answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Sends a whole answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def filled(address: str, bucket: str) -> Iterator[str]:
    """Serves a bucket that holds ``one.txt`` and ``deep/two.txt``; yields a script that leads a node's user to it."""
    host, access_key, secret_key = "qingstor.test", "ACCESSKEYFORTHISDOUBLE", "secret" * 7
    with tempfile.TemporaryDirectory(prefix="kiln-object-store-") as folder:
        for name in ("one.txt", "deep/two.txt"):
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{name}\n", encoding="utf-8")
        facts = {"host": host, "bucket": bucket, "folder": folder, "access_key": access_key, "secret_key": secret_key}
        server = ThreadingHTTPServer((address, 0), type("Handler", (Handler,), {**facts, "log_message": _silent}))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        names = " ".join(f"{name}.{host}" for name in (bucket, ZONE, f"{bucket}.{ZONE}"))
        config = f"access_key_id: {access_key}\nsecret_access_key: {secret_key}\n"
        config += f"host: {host}\nport: {server.server_port}\nprotocol: http\n"
        try:
            yield f"echo {address} {names} >>/etc/hosts && printf '%s' '{config}' >\"$HOME/.qingstor/config.yaml\""
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _silent(self: Handler, *words: object) -> None:
    """What it answers qsctl tells itself."""


if __name__ == "__main__":
    port, Handler.host, Handler.bucket, Handler.folder, Handler.access_key, Handler.secret_key, *more = sys.argv[1:]
    Handler.breaks = bool(more)
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
