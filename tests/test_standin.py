"""The server that answers for a host during a bake: its own hosts' files and nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from kiln.standin import serving


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the hosts serve; beside it a secret."""
    for host in ("one.example", "two.example"):
        below = tmp_path / host / "repos" / "x86_64"
        below.mkdir(parents=True)
        (below / "Packages").write_text(f"of {host}")
        (below / "a+b c.deb").write_bytes(b"package")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "one.example" / "way-out").symlink_to("../secret")
    (tmp_path / "one.example" / "way-in").symlink_to("repos/x86_64/Packages")
    return tmp_path


@pytest.fixture
def proxy(folder: Path) -> Iterator[str]:
    hosts = {name: folder / name for name in ("one.example", "two.example")}
    with serving("127.0.0.1", hosts) as url:
        yield url


def ask(proxy: str, url: str) -> requests.Response:
    return requests.get(url, proxies={"http": proxy}, timeout=5)


def raw(proxy: str, target: str) -> str:
    """The first line of the answer to ``GET target`` sent as it stands."""
    address = urlsplit(proxy)
    with socket.create_connection((address.hostname or "", address.port or 0), 5) as connection:
        connection.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        return connection.makefile(encoding="latin-1").readline().strip()


@pytest.mark.parametrize("host", ["one.example", "two.example", "ONE.example", "two.example:80"])
def test_each_host_has_its_own_files(proxy: str, host: str) -> None:
    answer = ask(proxy, f"http://{host}/repos/x86_64/Packages")
    assert answer.status_code == 200
    assert answer.text == f"of {host.lower().removesuffix(':80')}"


def test_names_are_unquoted_and_links_inside_followed(proxy: str) -> None:
    assert ask(proxy, "http://one.example/repos/x86_64/a%2Bb%20c.deb?query").content == b"package"
    assert ask(proxy, "http://one.example/way-in").text == "of one.example"


@pytest.mark.parametrize(
    "target",
    [
        "http://one.example/none",
        "http://three.example/repos/x86_64/Packages",
        "http://one.example/",
        "http://one.example/repos",
        "http://one.example/repos/",
        "http://one.example/../secret",
        "http://one.example/%2e%2e/secret",
        "http://one.example/..%2fsecret",
        "http://one.example/../two.example/repos/x86_64/Packages",
        "http://one.example/way-out",
        "http://one.example//etc/hostname",
        "/repos/x86_64/Packages",
        "/etc/hostname",
    ],
)
def test_nothing_else_is_answered(proxy: str, target: str) -> None:
    assert raw(proxy, target).split()[1] == "404"


def test_it_says_nothing(proxy: str, capfd: pytest.CaptureFixture[str]) -> None:
    ask(proxy, "http://one.example/way-in")
    ask(proxy, "http://one.example/none")
    assert capfd.readouterr() == ("", "")


def test_many_at_once_on_open_connections(proxy: str) -> None:
    with requests.Session() as session, ThreadPoolExecutor(8) as pool:
        session.proxies = {"http": proxy}
        urls = ["http://one.example/repos/x86_64/Packages", "http://two.example/repos/x86_64/Packages"] * 20
        answers = pool.map(lambda url: session.get(url, timeout=5).text, urls)
        assert list(answers) == ["of one.example", "of two.example"] * 20


def test_afterwards_nobody_answers(folder: Path) -> None:
    with serving("127.0.0.1", {"one.example": folder / "one.example"}) as url:
        assert raw(url, "http://one.example/way-in").split()[1] == "200"
    with pytest.raises(ConnectionRefusedError):
        raw(url, "http://one.example/way-in")


@pytest.mark.timeout(10)
def test_it_ends_while_a_client_holds_a_connection(folder: Path) -> None:
    with serving("127.0.0.1", {}) as url:
        address = urlsplit(url)
        client = socket.create_connection((address.hostname or "", address.port or 0), 5)
    client.close()
