"""An engine that cannot be used, for whatever reason, is one sentence with the way out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from file_server import closed_port
from kiln.engine import Engine, cached_stages
from kiln.errors import KilnError
from kiln.matrix import Matrix
from kiln.project import find_project

PROJECT = find_project(Path(__file__).resolve().parent.parent)

ASKS: list[Callable[[], object]] = [
    cached_stages,
    Engine().images,
    Engine().check,
    Engine().root,
    Engine().gateway,
    lambda: Engine().image_exists("0" * 64),
    lambda: Engine().containers("kiln"),
    lambda: Engine().tag("0" * 64, "name:tag"),
]
NAMES = ["cached stages", "images", "check", "root", "gateway", "image exists", "containers", "tag"]

AS_NOBODY = """
import os, sys
from kiln import engine
from kiln.errors import KilnError
import docker
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for ask in (engine.cached_stages, engine.Engine().check):
    try:
        ask()
    except KilnError as error:
        print(error)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose name is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="kiln-") as folder:
        yield Path(folder)


@pytest.fixture
def answering(place: Path) -> Iterator[Callable[[bytes], str]]:
    """Makes an engine that gives the same answer to everything."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(place / "engine.sock"))
    listener.listen()

    def start(answer: bytes) -> str:
        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return f"unix://{place}/engine.sock"

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def refusal(ask: Callable[[], object]) -> str:
    with pytest.raises(KilnError) as caught:
        ask()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("ask", ASKS, ids=NAMES)
def test_an_engine_that_is_not_there(place: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]) -> None:
    host = f"unix://{place}/none.sock"
    monkeypatch.setenv("DOCKER_HOST", host)
    assert refusal(ask) == (
        f"{host}: no Docker engine answers (No such file or directory); "
        "start it (systemctl start docker), or point DOCKER_HOST at one"
    )


@pytest.mark.parametrize("ask", ASKS, ids=NAMES)
def test_a_machine_without_an_engine(monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]) -> None:
    host = f"tcp://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("DOCKER_HOST", host)
    assert refusal(ask).startswith(f"{host}: no Docker engine answers (Connection refused); start it")


def test_an_engine_that_died(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(place / "dead.sock"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/dead.sock")
    for ask in (cached_stages, Engine().check):
        assert "no Docker engine answers (Connection refused)" in refusal(ask)


@pytest.mark.parametrize("host", ["nonsense", "npipe:////./pipe/docker", "tcp://host:port", "ftp://host:1"])
def test_a_host_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    for ask in (cached_stages, Engine().check):
        assert refusal(ask).startswith(f"{host}: no Docker engine answers (")


def test_a_socket_without_permission(place: Path, tmp_path: Path) -> None:
    assert os.geteuid() == 0
    place.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place / "engine.sock"))
        listener.listen()
        (place / "engine.sock").chmod(0o660)
        host = f"unix://{place}/engine.sock"
        run = subprocess.run(
            [sys.executable, "-c", AS_NOBODY],
            env={"PATH": "/usr/bin:/bin", "DOCKER_HOST": host},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert run.stderr == ""
    sentence = (
        f"{host}: no permission to use the Docker engine; "
        "run as root, or join the group that owns the socket (usually docker) and log in again"
    )
    assert run.stdout.splitlines() == [sentence] * 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "no Docker engine answers ("),
        (b"", "no Docker engine answers ("),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", "no Docker engine answers ("),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "no Docker engine answers (its answer is no JSON)"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", "the Docker engine answers 500 to /images/json"),
    ],
    ids=["another protocol", "hangs up", "cut", "no JSON", "500"],
)
def test_something_that_is_no_engine(
    answering: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch, answer: bytes, says: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", answering(answer))
    assert says in refusal(cached_stages)
    assert "Docker engine" in refusal(Engine().check)


@pytest.mark.engine
def test_an_engine_that_refuses(tmp_path: Path) -> None:
    for ask in (lambda: Engine().tag("0" * 64, "name:tag"), lambda: Engine().run_idle("kiln/none:0", "kiln-none")):
        assert "the Docker engine refuses: " in refusal(ask)


class Api:
    """As much of an engine as a container's start takes."""

    def __init__(self, runtimes: dict[str, Any]) -> None:
        self.runtimes = runtimes
        self.made: dict[str, Any] = {}

    def info(self) -> dict[str, Any]:
        return {"Runtimes": self.runtimes}

    def containers(self, **_: Any) -> list[dict[str, Any]]:
        return []

    def create_host_config(self, **options: Any) -> dict[str, Any]:
        return options

    def create_container(self, *_: Any, **options: Any) -> dict[str, str]:
        self.made = options
        return {"Id": "id"}

    def start(self, name: str) -> None:
        pass


@pytest.mark.parametrize(
    ("driver", "runtimes", "asked"),
    [(True, ["runc", "nvidia"], True), (False, ["runc", "nvidia"], False), (True, ["runc"], False)],
)
def test_a_machine_with_gpus_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: bool, runtimes: list[str], asked: bool
) -> None:
    monkeypatch.setattr("kiln.engine.DRIVER_DEVICE", tmp_path / "nvidiactl")
    if driver:
        (tmp_path / "nvidiactl").touch()
    engine, api = Engine(), Api({name: {} for name in runtimes})
    engine.__dict__["_api"] = api
    engine.run_idle("image", "name")
    requests = api.made["host_config"]["device_requests"]
    assert bool(requests) == asked
    assert not asked or (requests[0]["Count"], requests[0]["Capabilities"]) == (-1, [["gpu"]])


@pytest.mark.engine
def test_a_container_that_many_remove_at_once_goes() -> None:
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    release = Matrix(PROJECT, "registry").releases()[-1]
    for _ in range(3):
        command = ["docker", "run", "--detach", f"--name={name}", f"deeplearning:{release}-cpu", "sleep", "infinity"]
        subprocess.run(command, check=True, capture_output=True)
        (container,) = Engine().containers(name)
        with ThreadPoolExecutor(8) as pool:
            for removal in [pool.submit(Engine().remove_container, container) for _ in range(8)]:
                removal.result()
        assert Engine().containers(name) == []
