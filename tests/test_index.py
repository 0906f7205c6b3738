"""The machine's Python index: pip's own settings lead to it, and the right file of a pin is chosen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from file_server import FileServer, closed_port, serving
from kiln import index as index_module
from kiln.components import PythonVersion
from kiln.errors import KilnError
from kiln.index import Index, shown
from kiln.pins import Pin, read_pins
from kiln.wheels import tags

PY2 = tags(PythonVersion("2.7", "cp27mu", "py2", "a test"))
PY3 = tags(PythonVersion("3.6", "cp36m", "py3", "a test"))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as served:
        yield served


@pytest.fixture
def index(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setattr(index_module, "PAUSE_S", 0.01)
    return Index(urls=[server.index])


# Which file


def test_only_a_wheel_of_the_interpreters_abi_is_chosen(server: FileServer, index: Index) -> None:
    digests = server.put_project(
        "numpy",
        "numpy-1.14.5-cp27-cp27m-manylinux1_x86_64.whl",
        "numpy-1.14.5-cp27-cp27mu-manylinux1_x86_64.whl",
        "numpy-1.14.5-cp27-cp27mu-manylinux1_i686.whl",
        "numpy-1.14.5-cp27-none-win_amd64.whl",
        "numpy-1.14.5-cp36-cp36m-macosx_10_6_intel.whl",
        "numpy-1.14.5-cp36-cp36m-manylinux1_x86_64.whl",
        "numpy-1.14.5-cp36-cp36m-manylinux2014_x86_64.whl",
        "numpy-1.14.5-cp37-cp37m-manylinux1_x86_64.whl",
        "numpy-1.14.5.zip",
        "numpy-1.14.6-cp36-cp36m-manylinux1_x86_64.whl",
    )
    for accepted, tag in ((PY2, "cp27-cp27mu"), (PY3, "cp36-cp36m")):
        file = f"numpy-1.14.5-{tag}-manylinux1_x86_64.whl"
        assert index.choose(Pin("numpy", "1.14.5"), accepted) == (file, digests[file])
    assert server.asked == {"/simple/numpy/": 1}


@pytest.mark.parametrize(
    ("offered", "two", "three"),
    [
        (["a-1-py3-none-any.whl", "a-1.tar.gz"], "a-1.tar.gz", "a-1-py3-none-any.whl"),
        (["a-1-py2.py3-none-any.whl", "a-1.tar.gz"], "a-1-py2.py3-none-any.whl", "a-1-py2.py3-none-any.whl"),
        (["a-1-cp27-cp27m-manylinux1_x86_64.whl", "a-1.tar.gz"], "a-1.tar.gz", "a-1.tar.gz"),
        (
            ["a-1-py2.py3-none-any.whl", "a-1-cp36-cp36m-manylinux1_x86_64.whl"],
            "a-1-py2.py3-none-any.whl",
            "a-1-cp36-cp36m-manylinux1_x86_64.whl",
        ),
        (
            ["a-1-1-py2.py3-none-any.whl", "a-1-py2.py3-none-any.whl", "a-1-10-py2.py3-none-any.whl"],
            "a-1-10-py2.py3-none-any.whl",
            "a-1-10-py2.py3-none-any.whl",
        ),
        (["a-1.zip", "a-1.tar.gz", "a-1.tar.bz2"], "a-1.tar.gz", "a-1.tar.gz"),
        (["a-1.zip", "a-1.tar.bz2"], "a-1.tar.bz2", "a-1.tar.bz2"),
        (["a-1.0.0.tar.gz", "a-1.dev0.tar.gz", "a-unknown.tar.gz"], "a-1.0.0.tar.gz", "a-1.0.0.tar.gz"),
        (["a-1-my tag-none-any.whl", "a-1-py2-none-any-x-y-z.whl", "a-1.tar.gz"], "a-1.tar.gz", "a-1.tar.gz"),
    ],
)
def test_the_best_file_is_chosen(server: FileServer, index: Index, offered: list[str], two: str, three: str) -> None:
    server.put_project("a", *offered)
    assert index.choose(Pin("A", "1"), PY2)[0] == two
    assert index.choose(Pin("A", "1"), PY3)[0] == three


@pytest.mark.parametrize("offered", ["a-2.tar.gz", "a-1-cp36-cp36m-win_amd64.whl", "a-1.exe", "a-1.tar.Z"])
def test_a_pin_without_a_file_is_named(server: FileServer, index: Index, offered: str) -> None:
    server.put_project("a", offered)
    with pytest.raises(KilnError, match="no file of a==1 for this interpreter; pin a version that has one"):
        index.choose(Pin("a", "1"), PY3)


def test_a_file_without_a_checksum_is_not_chosen(server: FileServer, index: Index) -> None:
    server.put("/simple/a/", b'<a href="/files/a-1.tar.gz">a-1.tar.gz</a>')
    with pytest.raises(KilnError, match="no file of a==1"):
        index.choose(Pin("a", "1"), PY3)


# Where


def test_every_index_is_asked_and_names_are_normal(server: FileServer) -> None:
    server.put_project("ruamel-yaml", "ruamel.yaml-1.tar.gz")
    server.put("/more/ruamel-yaml/", b'<a href="/files/x#sha256=00">ruamel.yaml-2.tar.gz</a>')
    both = Index(urls=[server.index, f"{server.url}/more/", f"{server.url}/none/"])
    assert both.url("ruamel.yaml", "ruamel.yaml-1.tar.gz").startswith(f"{server.url}/files/ruamel.yaml-1.tar.gz")
    assert both.url("Ruamel_YAML", "ruamel.yaml-2.tar.gz").startswith(f"{server.url}/files/x")
    assert server.asked == {"/simple/ruamel-yaml/": 1, "/more/ruamel-yaml/": 1, "/none/ruamel-yaml/": 1}


def test_a_file_that_is_gone_is_named(server: FileServer, index: Index) -> None:
    server.put_project("a", "a-2.tar.gz")
    with pytest.raises(KilnError, match=r"project a: the Python index no longer has a-1\.tar\.gz; use a mirror"):
        index.url("a", "a-1.tar.gz")


def test_a_project_that_no_index_has_is_named(server: FileServer) -> None:
    secret = server.index.replace("http://", "http://user:secret@")
    with pytest.raises(KilnError, match="has no project nothing; correct the name") as caught:
        Index(urls=[secret]).files("nothing")
    assert caught.value.where == server.index


def test_threads_ask_for_a_page_once(server: FileServer, index: Index) -> None:
    server.put_project("a", "a-1.tar.gz")
    server.pause_s = 0.1
    with ThreadPoolExecutor(4) as pool:
        assert len({str(found) for found in pool.map(index.files, ["a", "A", "a", "a"])}) == 1
    assert server.asked == {"/simple/a/": 1}


def test_a_failure_that_passes_is_outlived(server: FileServer, index: Index) -> None:
    server.put_project("a", "a-1.tar.gz")
    server.faults["/simple/a/"] = ["unavailable", "cut", "unavailable"]
    assert len(index.files("a")) == 1


def test_tries_are_bounded(server: FileServer, index: Index) -> None:
    server.put_project("a", "a-1.tar.gz")
    server.faults["/simple/a/"] = ["unavailable"] * 9
    with pytest.raises(KilnError, match=r"does not answer for a \(it answers 503\); check the network and pip's"):
        index.files("a")
    assert server.asked["/simple/a/"] == 1 + index_module.RETRIES


def test_a_refusal_is_final(server: FileServer, index: Index) -> None:
    server.put_project("a", "a-1.tar.gz")
    server.faults["/simple/a/"] = ["forbidden"]
    with pytest.raises(KilnError, match="it answers 403"):
        index.files("a")
    assert server.asked["/simple/a/"] == 1


def test_an_index_out_of_reach_is_named_without_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "PAUSE_S", 0.01)
    port = closed_port()
    with pytest.raises(KilnError, match=r"does not answer for a \(ConnectionError\)") as caught:
        Index(urls=[f"http://user:secret@127.0.0.1:{port}/simple/"]).files("a")
    assert caught.value.where == f"http://127.0.0.1:{port}/simple/"
    assert "secret" not in str(caught.value)


def test_a_url_is_shown_without_its_login() -> None:
    assert shown("https://me:secret@host:8/simple/?a#b") == "https://host:8/simple/?a#b"
    assert shown("https://host/simple/") == "https://host/simple/"


# pip's settings


def test_pips_settings_lead_to_the_indexes(tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = http://file/simple\nextra-index-url =\n    http://one/simple\n    file:///two\n"
        "    http://three/simple\n[install]\ncert = /its/own.pem\n"
    )
    ask = (
        "import json; from kiln.index import index_urls, new_session; "
        "print(json.dumps([index_urls(), new_session().verify]))"
    )

    def answer(**environment: str) -> str:
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(settings), **environment}
        command = [sys.executable, "-c", ask]
        return subprocess.run(command, env=clean, capture_output=True, text=True, check=True).stdout.strip()

    assert answer() == '[["http://file/simple", "http://one/simple", "http://three/simple"], "/its/own.pem"]'
    said = answer(PIP_INDEX_URL="http://environment/simple", PIP_EXTRA_INDEX_URL="", PIP_CERT="/other.pem")
    assert said == '[["http://environment/simple"], "/other.pem"]'


# Pins


def test_pins_are_read_by_group() -> None:
    text = "# about\n# group: a\nsix==1.11.0 # why\n\n# group: b\nPyYAML == 3.13\n# group: a\nmock==2.0.0.post1\n"
    assert read_pins(text, "file") == {
        "a": [Pin("six", "1.11.0"), Pin("mock", "2.0.0.post1")],
        "b": [Pin("PyYAML", "3.13")],
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("six", "'six' is no exact pin; write name==version"),
        ("six>=1", "'six>=1' is no exact pin"),
        ("==1", "'==1' is no exact pin"),
        ("six==", "'six==' is no exact pin"),
        ("mock===1", "'mock===1' names no version"),
        ("mock==1.*", "names no version"),
        ("mock==1; python_version < '3'", "names no version; write name==version, and nothing else"),
        ("Six==2", "Six is pinned twice"),
        ("# group: b\nsix==1\nSIX==1", "SIX is pinned twice"),
    ],
)
def test_a_line_that_is_no_pin_is_named(line: str, says: str) -> None:
    with pytest.raises(KilnError) as caught:
        read_pins(f"# group: a\nsix==1\n{line}\n", "requirements.txt")
    assert says in str(caught.value)
    assert caught.value.where == f"requirements.txt:{3 + line.count(chr(10))}"


def test_a_pin_needs_a_group() -> None:
    with pytest.raises(KilnError, match="file:2: 'six==1' stands in no group; write # group: NAME above it"):
        read_pins("# about\nsix==1\n", "file")
