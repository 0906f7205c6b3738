"""The commands that the platform runs on a node: what they do, what they leave alone, and what their exit codes say."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import yaml

from kiln.platform import Cluster, Node, cluster, remove_volumes
from stage_container import PROJECT
from tabled import DATA, HOME, USER

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

IMAGE = "deeplearning:1.2-cpu"
ERRORS = yaml.safe_load((PROJECT.images / "appcenter.yml").read_text(encoding="utf-8"))["errors"]


class Shell:
    """A root shell on a node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def __call__(self, script: str, *, user: str = "root") -> subprocess.CompletedProcess[str]:
        command = ["docker", "exec", f"--user={user}", self.node.container, "bash", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Runs a lifecycle command as the agent does: without the image's environment."""
        return self(f"exec env -i /opt/dl/bin/{name}")

    def says(self, script: str) -> str:
        done = self(script)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    name = ""
    try:
        with cluster({}) as one:
            name = one.name
            yield one
    finally:
        remove_volumes(name)


@pytest.fixture(scope="module")
def boot(made: Cluster) -> Callable[[str], Shell]:
    def booted(volume_mode: str) -> Shell:
        node = made.boot(made.add(IMAGE), volume_mode=volume_mode)
        made.publish()
        made.await_configuration(node)
        return Shell(node)

    return booted


@pytest.fixture(scope="module")
def node(boot: Callable[[str], Shell]) -> Shell:
    return boot("")


@pytest.fixture
def fresh(node: Shell) -> Shell:
    """The node with an empty volume of root's, as the platform hands it over."""
    node(f"find {DATA} -mindepth 1 -delete; chown root:root {DATA}; chmod 755 {DATA}; systemctl start ssh")
    return node


def snapshot(node: Shell) -> str:
    """Everything of the volume that a command could change, times of change included."""
    return node.says(
        f"find {DATA} -printf '%p %y %U:%G %m %s %T@ %C@\\n' | sort; getfattr -Rd {DATA} 2>/dev/null; true"
    )


@pytest.mark.parametrize("command", ["init", "upgrade"])
def test_the_volume_becomes_the_users(fresh: Shell, command: str) -> None:
    assert fresh.says(f"stat -c %U {DATA}") == "root"
    assert fresh.run(command).returncode == 0
    assert fresh.says(f"stat -c %U:%G {DATA}") == f"{USER}:{USER}"
    assert fresh(f"echo mine >{DATA}/file", user=USER).returncode == 0


@pytest.mark.parametrize("command", ["init", "upgrade", "start", "stop", "health-check", "health-action", "hosts"])
def test_a_second_run_changes_nothing(fresh: Shell, command: str) -> None:
    fresh.says(f"echo one >{DATA}/one; ln -s one {DATA}/link; mkdir {DATA}/folder")
    assert fresh.run(command).returncode == 0
    before = snapshot(fresh), fresh.says(f"cat /etc/hosts; ls -ln {HOME}/.qingstor")
    again = fresh.run(command)
    assert (again.returncode, again.stdout) == (0, "")
    assert (snapshot(fresh), fresh.says(f"cat /etc/hosts; ls -ln {HOME}/.qingstor")) == before


@pytest.mark.parametrize("command", ["init", "upgrade"])
def test_what_users_put_there_belongs_to_whom_it_belonged(fresh: Shell, command: str) -> None:
    # A volume of release 1.0 holds a Miniconda of root's.
    fresh.says(
        f"mkdir -p {DATA}/miniconda2/bin; touch {DATA}/miniconda2/bin/python; "
        f"install -o 1234 -g 99 -m 640 /dev/null {DATA}/x; "
        f"touch '{DATA}/a name\n in two lines'; ln -s /etc/passwd {DATA}/link; chown -h 77 {DATA}/link"
    )
    before = fresh.says(f"find {DATA} -mindepth 1 -printf '%p %U:%G %m %T@ %C@\\n' | sort; stat -c %u /etc/passwd")
    assert fresh.run(command).returncode == 0
    after = fresh.says(f"find {DATA} -mindepth 1 -printf '%p %U:%G %m %T@ %C@\\n' | sort; stat -c %u /etc/passwd")
    assert after == before
    assert fresh.says(f"stat -c %U {DATA}") == USER


@pytest.mark.parametrize("command", ["init", "upgrade"])
def test_interrupted_at_any_moment_it_can_be_repeated(fresh: Shell, command: str) -> None:
    for delay in (0, 0.002, 0.005, 0.01, 0.02, 0.05):
        fresh(f"chown root:root {DATA}; rm -rf {HOME}/.qingstor/none")
        fresh(f"setsid env -i /opt/dl/bin/{command} & sleep {delay}; kill -KILL -- -$!; wait")
        assert fresh.run(command).returncode == 0
        assert fresh.says(f"stat -c %U {DATA}; stat -c '%U %a' {HOME}/.qingstor/config.yaml").splitlines() == [
            USER,
            f"{USER} 600",
        ]


def test_start_revives_what_is_down(fresh: Shell) -> None:
    fresh.says("systemctl stop ssh")
    assert fresh.run("health-check").returncode == 12
    assert fresh.run("start").returncode == 0
    assert fresh.run("health-check").returncode == 0


def test_stop_ends_what_uses_the_volume_and_nothing_else(fresh: Shell) -> None:
    fresh.says(f"setsid sleep 301 >{DATA}/open 2>&1 & cd {DATA} && setsid sleep 302 >/dev/null 2>&1 &")
    fresh.says("cd / && setsid sleep 303 >/dev/null 2>&1 &")
    assert fresh.run("stop").returncode == 0
    running = fresh.says("pgrep -a sleep || true")
    assert "301" not in running
    assert "302" not in running
    assert "303" in running
    fresh("pkill -f 'sleep 303'")


def test_stop_does_not_wait_for_ever(fresh: Shell) -> None:
    fresh.says(f"trap '' TERM; setsid sleep 304 >{DATA}/open 2>&1 &")
    begun = time.monotonic()
    done = fresh.run("stop")
    assert done.returncode == 0
    assert "sleep 304" in done.stderr
    assert f"still uses {DATA}" in done.stderr
    assert 10 < time.monotonic() - begun < 60
    fresh("pkill -KILL -f 'sleep 304'")


def test_qsctl_accepts_the_file_of_a_cluster_without_qingstor(fresh: Shell) -> None:
    assert fresh.run("init").returncode == 0
    assert fresh.says(f"stat -c '%U %a' {HOME}/.qingstor/config.yaml") == f"{USER} 600"
    done = fresh("timeout 20 bash -lc 'qsctl ls qs://mydata'", user=USER)
    assert "format error" not in done.stdout + done.stderr, "qsctl 1.x refuses an empty file"
    assert "cannot be reached" in done.stderr, "it did not come so far as to ask the object store"


def test_the_template_is_rendered_again_with_owner_and_mode(made: Cluster, fresh: Shell) -> None:
    """confd of the earlier packages gave the credentials to root and to everybody at each change."""
    for key in ("A" * 20, "B" * 20):
        made.env = {"QingStor": "true", "access_key": key, "secret_key": "s" * 40}
        made.publish()
        for _ in range(150):
            if key in fresh.says(f"cat {HOME}/.qingstor/config.yaml"):
                break
            time.sleep(0.2)
        assert key in fresh.says(f"cat {HOME}/.qingstor/config.yaml")
        assert fresh.says(f"stat -c '%U:%G %a' {HOME}/.qingstor/config.yaml") == f"{USER}:{USER} 600"


def test_no_volume(boot: Callable[[str], Shell]) -> None:
    node = boot("none")
    for command in ("init", "upgrade", "start", "health-check"):
        done = node.run(command)
        assert (done.returncode, f"no volume is mounted at {DATA}" in done.stderr) == (10, True), command
    assert node.run("stop").returncode == 0, "a node without a volume must still be stopped"


def test_a_volume_that_cannot_be_written_to(boot: Callable[[str], Shell]) -> None:
    node = boot("readonly")
    for command in ("init", "upgrade", "start", "health-check"):
        done = node.run(command)
        assert (done.returncode, "cannot be written to" in done.stderr) == (11, True), command


def test_ssh_that_cannot_be_started(fresh: Shell) -> None:
    fresh.says("systemctl stop ssh; systemctl mask ssh")
    try:
        assert fresh.run("health-check").returncode == 12
        assert fresh.run("health-action").returncode != 0
    finally:
        fresh.says("systemctl unmask ssh; systemctl start ssh")


def test_a_gpu_that_is_gone(fresh: Shell) -> None:
    fresh.says("echo 1 >/etc/deeplearning/gpus")
    try:
        assert fresh.run("health-check").returncode == 13
    finally:
        fresh.says("echo 0 >/etc/deeplearning/gpus")


def test_an_image_without_its_settings(fresh: Shell) -> None:
    fresh.says("mv /etc/deeplearning/node.conf /root")
    try:
        for command in ("init", "start", "stop", "upgrade", "health-check", "health-action"):
            assert fresh.run(command).returncode == 14, command
    finally:
        fresh.says("mv /root/node.conf /etc/deeplearning")


def test_an_unknown_name_is_refused(fresh: Shell) -> None:
    fresh.says("ln -sf ../lib/lifecycle /opt/dl/bin/destroy")
    done = fresh.run("destroy")
    assert done.returncode == 2
    assert "health-action" in done.stderr
    fresh.says("rm /opt/dl/bin/destroy")


def test_every_code_has_its_text() -> None:
    assert ERRORS.keys() == {10, 11, 12, 13, 14}
    assert all(text.keys() == {"en", "zh-cn"} for text in ERRORS.values())
