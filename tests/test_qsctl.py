"""qsctl on the finished image against a double of the object store: what the guide says, and what may go wrong."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiln import guide_object_store
from stage_container import Target, baked_plan, started
from tabled import HOME, USER

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

HOST, BUCKET, PORT = "qingstor.test", "mydata", 8080
BREAKING, SILENT = 8081, 8082
AT_ONCE = "connection_retries: 0\n"
"""qsctl waits longer before each retry."""
ACCESS, SECRET = "ACCESSKEYFORTHISTEST", "secret" * 6 + "keys"
SERVER = Path(guide_object_store.__file__)


class Node(Target):
    """A node with the object store's doubles on its own loopback."""

    def qsctl(
        self, words: str, *, secret: str = SECRET, port: int = PORT, more: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Runs qsctl as a user does: in a login shell, with the keys of ~/.qingstor/config.yaml."""
        config = f"access_key_id: {ACCESS}\nsecret_access_key: {secret}\nhost: {HOST}\nport: {port}\nprotocol: http\n"
        config += more
        script = f"cat >{HOME}/.qingstor/config.yaml; rm -rf {HOME}/data; install -d -o {USER} {HOME}/data"
        self.shell(script, stdin=config.encode())
        command = ["docker", "exec", f"--user={USER}", f"--workdir={HOME}", self.name, "bash", "-lc", f"qsctl {words}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    (image,) = baked_plan("cpu").finals
    with started(image, tmp_path_factory.mktemp("qsctl")) as target:
        made = Node(target.name, target.folder, target.interpreter)
        names = " ".join(f"{name}.{HOST}" for name in (BUCKET, "pek3a", "nothere", f"{BUCKET}.pek3a"))
        made.shell(f"echo 127.0.0.1 {names} >>/etc/hosts; mkdir -p /srv/objects/deep/deeper")
        made.shell("cd /srv/objects; echo one >one.txt; head -c 3000000 /dev/urandom >deep/large; : >deep/deeper/empty")
        made.shell("cat >/srv/server.py", stdin=SERVER.read_bytes())
        for port, more in ((PORT, ""), (BREAKING, "break")):
            words = shlex.join([str(port), HOST, BUCKET, "/srv/objects", ACCESS, SECRET])
            made.shell(f"setsid python3 /srv/server.py {words} {more} >/srv/log.{port} 2>&1 &")
        for port in (PORT, BREAKING):
            made.shell(
                f"for n in {{1..50}}; do (: >/dev/tcp/127.0.0.1/{port}) 2>/dev/null && exit; sleep 0.1; done; exit 1"
            )
        yield made


def assert_sentence(done: subprocess.CompletedProcess[str], words: str) -> None:
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert words in said, said
    assert "Traceback" not in said
    assert SECRET not in said


def test_the_guides_command_copies_the_tree(node: Node) -> None:
    done = node.qsctl(f"cp -r qs://{BUCKET}/ data/")
    assert done.returncode == 0, done.stdout + done.stderr
    same = node.shell(f"diff -r /srv/objects {HOME}/data && stat -c %U {HOME}/data/deep/large")
    assert same.split() == [USER]


def test_one_object(node: Node) -> None:
    done = node.qsctl(f"cp qs://{BUCKET}/one.txt data/one.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.shell(f"cat {HOME}/data/one.txt") == "one\n"


def test_the_list(node: Node) -> None:
    done = node.qsctl(f"ls qs://{BUCKET}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one.txt" in done.stdout


def test_wrong_credentials(node: Node) -> None:
    assert_sentence(
        node.qsctl(f"cp -r qs://{BUCKET}/ data/", secret="wrong" * 8), "permission to access bucket <mydata>"
    )


def test_missing_bucket(node: Node) -> None:
    assert_sentence(node.qsctl("cp -r qs://nothere/ data/"), "check if bucket <nothere> exists")


def test_an_object_that_is_not_there(node: Node) -> None:
    assert_sentence(node.qsctl(f"cp qs://{BUCKET}/none.txt data/none.txt"), "none.txt")


def test_nobody_answers(node: Node) -> None:
    begun = time.monotonic()
    assert_sentence(node.qsctl(f"cp -r qs://{BUCKET}/ data/", port=SILENT, more=AT_ONCE), "it cannot be reached")
    assert time.monotonic() - begun < 30


def test_a_connection_that_breaks_halfway(node: Node) -> None:
    assert_sentence(node.qsctl(f"cp -r qs://{BUCKET}/ data/", port=BREAKING, more=AT_ONCE), "broke off")
    assert "large" not in node.shell(f"find {HOME}/data -name large"), "half an object stands under its name"


def test_a_configuration_that_is_no_yaml(node: Node) -> None:
    assert_sentence(node.qsctl(f"ls qs://{BUCKET}", more="'\n"), "format error")


def test_without_keys(node: Node) -> None:
    node.qsctl("version")
    node.shell(f"echo host: {HOST} >{HOME}/.qingstor/config.yaml")
    command = ["docker", "exec", f"--user={USER}", node.name, "bash", "-lc", f"qsctl ls qs://{BUCKET}"]
    assert_sentence(subprocess.run(command, capture_output=True, text=True, check=False), "access_key_id")
