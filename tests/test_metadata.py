"""The double of metad: self by the client's address, formats, long poll, versions, management."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest
import yaml

from kiln.errors import KilnError
from kiln.metadata import Metadata, serving

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Served:
    """A running server and clients of it."""

    def __init__(self) -> None:
        self.metadata = Metadata()
        self.port, self.management = free_port(), free_port()

    def ask(
        self, path: str, *, accept: str = "application/json", client: str = HOST, method: str = "GET", body: str = ""
    ) -> tuple[int, str, int]:
        """Status, body and version of an answer."""
        port = self.management if path.startswith("/v1") else self.port
        connection = HTTPConnection(HOST, port, timeout=20, source_address=(client, 0))
        connection.request(method, path, body=body or None, headers={"Accept": accept})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text, int(answer.headers["X-Metad-Version"])


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    with serving(one.metadata, HOST, port=one.port, management=one.management):
        one.metadata.put("/clusters/c", {"hosts": {"a": {"ip": HOST}, "b": {"ip": "127.0.0.2"}}, "env": {"key": "v"}})
        for name, address in (("a", HOST), ("b", "127.0.0.2")):
            links = {"host": f"/clusters/c/hosts/{name}", "hosts": "/clusters/c/hosts", "env": "/clusters/c/env"}
            one.metadata.change("PUT", "mapping", address, links)
        yield one


def test_self_is_what_the_clients_address_says(served: Served) -> None:
    assert json.loads(served.ask("/self/host")[1]) == {"ip": HOST}
    assert json.loads(served.ask("/self/host", client="127.0.0.2")[1]) == {"ip": "127.0.0.2"}
    assert served.ask("/self", client="127.0.0.3")[0] == 404


def test_formats(served: Served) -> None:
    assert served.ask("/self/env/key", accept="text/plain")[1] == "v"
    assert served.ask("/self/hosts", accept="")[1] == f"/a/ip\t{HOST}\n/b/ip\t127.0.0.2\n"
    assert yaml.safe_load(served.ask("/self/env", accept="application/yaml")[1]) == {"key": "v"}


def test_a_long_poll_is_answered_by_a_change(served: Served) -> None:
    _, _, version = served.ask("/self")
    answers: list[tuple[int, str, int]] = []
    waiting = threading.Thread(target=lambda: answers.append(served.ask(f"/self/env?wait=true&prev_version={version}")))
    waiting.start()
    time.sleep(0.3)
    assert answers == []
    served.metadata.put("/clusters/c/env", {"key": "other"})
    waiting.join(10)
    assert [(status, json.loads(text)) for status, text, _ in answers] == [(200, {"key": "other"})]
    assert answers[0][2] > version


def test_a_poll_from_an_older_version_is_answered_at_once(served: Served) -> None:
    assert served.ask("/self?wait=true&prev_version=1")[0] == 200
    assert served.ask("/self?wait=true&prev_version=x")[0] == 400


def test_management(served: Served) -> None:
    assert served.ask("/v1/data/clusters/c/env", method="PUT", body='{"more": "1"}')[0] == 200
    assert json.loads(served.ask("/self/env")[1]) == {"key": "v", "more": "1"}
    served.ask("/v1/data/clusters/c/env", method="POST", body='{"only": "2"}')
    assert json.loads(served.ask("/v1/data/clusters/c/env")[1]) == {"only": "2"}
    served.ask("/v1/data/clusters/c/env", method="DELETE")
    assert served.ask("/self/env")[0] == 404
    served.ask(f"/v1/mapping/{HOST}", method="DELETE")
    assert served.ask("/self")[0] == 404
    assert served.ask("/v1/data", method="PUT", body="no json")[0] == 400
    assert served.ask("/v1/other")[0] == 404


def test_a_taken_port_is_one_sentence() -> None:
    port = free_port()
    with (
        serving(Metadata(), HOST, port=port),
        pytest.raises(KilnError, match="cannot listen there"),
        serving(Metadata(), HOST, port=port),
    ):
        pass
