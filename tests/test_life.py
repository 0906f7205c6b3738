"""What a package promises of a node: each promise kept on a sound node, and seen broken on a broken one."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from kiln.errors import KilnError, TerminatedError
from kiln.life import Life, Probes
from kiln.metadata import Metadata
from kiln.package import Files, Packages
from kiln.platform import LABEL, NODE_OWNER_LABEL, Cluster, Node, cluster, docker, remove_dead, remove_volumes
from kiln.release_ids import ReleaseIds
from kiln.trial import Topology, left
from stage_container import PROJECT
from tabled import DATA, GPU_MONITOR, HOME, USER

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

NODE = Node(7, "none", "none", "i-7", "none")
ACCESS, SECRET = "A" * 20, "s" * 40


def package(name: str) -> Files:
    ids = ReleaseIds(PROJECT.images / "release-ids.example.yml", PROJECT.root, "1.2", ("1.1",))
    return Packages(PROJECT, ids).make(name)


class Running:
    """One node with a GPU image's package, started as the platform starts it, with keys for QingStor."""

    def __init__(self, made: Cluster, probes: Probes) -> None:
        self.made, self.probes = made, probes

    @property
    def node(self) -> Node:
        return self.made.nodes[0]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    topology = Topology(package("cuda91-basic"), QingStor=True, access_key=ACCESS, secret_key=SECRET)
    name = ""
    try:
        with cluster(topology.services, **topology.settings) as made:
            name = made.name
            node = made.boot(made.add("deeplearning:1.2-cuda91"))
            made.publish()
            made.await_configuration(node)
            for service in made.order("init"):
                made.run(node, service)
            made.execute(node, f"echo kept | tee {DATA}/marker >{HOME}/marker")
            yield Running(made, Probes(topology, USER, HOME))
    finally:
        remove_volumes(name)


Probe = Callable[[Running], str]

PROBES: dict[str, Probe] = {
    "volume": lambda r: r.probes.volume(r.node),
    "names": lambda r: r.probes.names(r.made, r.node),
    "forgotten": lambda r: r.probes.forgotten(r.made, NODE),
    "ssh": lambda r: r.probes.ssh(r.made, r.node),
    "monitor": lambda r: r.probes.monitor(r.node),
    "healthy": lambda r: r.probes.healthy(r.made, r.node),
    "revived": lambda r: r.probes.revived(r.made, r.node),
    "unused": lambda r: r.probes.unused(r.node),
    "kept": lambda r: r.probes.kept(r.node),
    "keys": lambda r: r.probes.keys(r.node, ACCESS, SECRET, 0),
    "secrets": lambda r: r.probes.secrets(r.node, [ACCESS, SECRET]),
}


CONFIG = f"{HOME}/.qingstor/config.yaml"

BREAKS = [
    ("volume", f"chown root: {DATA}", f"chown {USER}: {DATA}", f"wanted {USER}'s"),
    (
        "names",
        "cp /etc/hosts /root/h; sed '/node1/s/^[0-9]*/9/' /root/h >/etc/hosts",
        "cat /root/h >/etc/hosts",
        "wanted {'node1'",
    ),
    ("forgotten", "cp /etc/hosts /root/h; echo 10.0.0.7 node7 >>/etc/hosts", "cat /root/h >/etc/hosts", "node7"),
    ("ssh", "systemctl stop ssh", "systemctl start ssh", "port 22"),
    (
        "monitor",
        f"cp {GPU_MONITOR} /root/m; echo 'import sys; sys.exit(1)' >{GPU_MONITOR}",
        f"cp /root/m {GPU_MONITOR}",
        "no JSON",
    ),
    (
        "monitor",
        f"cp {GPU_MONITOR} /root/m; echo 'print(\"{{}}\")' >{GPU_MONITOR}",
        f"cp /root/m {GPU_MONITOR}",
        "other keys",
    ),
    (
        "monitor",
        f"cp {GPU_MONITOR} /root/m; sed -i 's:^import errno:import time, errno; time.sleep(6):' {GPU_MONITOR}",
        f"cp /root/m {GPU_MONITOR}",
        "took",
    ),
    ("healthy", "systemctl stop ssh", "systemctl start ssh", "exit code 12"),
    ("healthy", "mv /etc/deeplearning/node.conf /root", "mv /root/node.conf /etc/deeplearning", "exit code 14"),
    ("revived", "systemctl mask --now ssh", "systemctl unmask ssh; systemctl start ssh", "the action ends with"),
    ("unused", f"sleep 60 >{DATA}/open & echo $! >/root/pid", "kill $(cat /root/pid)", "still open"),
    ("kept", f"mv {DATA}/marker /root", f"mv /root/marker {DATA}", "the markers say"),
    ("keys", f"chmod 644 {CONFIG}", f"chmod 600 {CONFIG}", f"{USER} 644"),
    ("keys", f"chown root {CONFIG}", f"chown {USER} {CONFIG}", "root 600"),
    ("keys", f"sed -i s/ss/tt/ {CONFIG}", f"sed -i s/tt/ss/ {CONFIG}", "other keys"),
    ("secrets", f"echo {SECRET} >/var/log/confd.out", "rm /var/log/confd.out", "/var/log/confd.out"),
    ("secrets", f"cp {CONFIG} {DATA}/copy", f"rm {DATA}/copy", f"{DATA}/copy"),
    ("secrets", f"echo {ACCESS} >/run/leak", "rm /run/leak", "/run/leak"),
    ("secrets", f"echo {ACCESS} >/opt/leak", "rm /opt/leak", "/opt/leak"),
    (
        "secrets",
        f"KEY={ACCESS} sleep 60 & echo $! >/root/pid; sleep 0.2",
        "kill $(cat /root/pid)",
        "/environ",
    ),
]


@pytest.mark.parametrize("name", PROBES)
def test_a_sound_node_keeps_every_promise(running: Running, name: str) -> None:
    assert PROBES[name](running) == ""


@pytest.mark.parametrize(
    ("name", "broken", "mended", "says"), BREAKS, ids=[f"{row[0]}: {row[1][:30]}" for row in BREAKS]
)
def test_a_broken_promise_is_seen(
    running: Running, monkeypatch: pytest.MonkeyPatch, name: str, broken: str, mended: str, says: str
) -> None:
    monkeypatch.setattr("kiln.life.WAIT_S", 1.0)
    running.made.execute(running.node, f"({broken}) >/dev/null 2>&1")
    try:
        said = PROBES[name](running)
    finally:
        running.made.execute(running.node, mended)
    assert said
    assert says in said
    assert SECRET not in said, "a finding must not print the keys"


def test_an_unhealthy_node_that_is_healthy_is_told(running: Running) -> None:
    assert running.probes.unhealthy(running.made, running.node) == "the health check says that it is healthy"


def test_keys_in_the_package_are_seen(running: Running) -> None:
    files = package("cpu")
    assert running.probes.in_package(files, [SECRET]) == ""
    assert "config.json" in running.probes.in_package({**files, "config.json": SECRET}, [SECRET])


def test_what_is_left_is_told(running: Running) -> None:
    assert running.made.name in left(running.made.name)


@pytest.mark.parametrize(("said", "order"), [("true", ["start", "init"]), ("false", ["init", "start"])])
def test_init_and_start_run_in_the_packages_order(monkeypatch: pytest.MonkeyPatch, said: str, order: list[str]) -> None:
    """Source: the platform's developer guide, "Init command will execute after start command if …"."""
    ran: list[str] = []
    monkeypatch.setattr(Cluster, "run", lambda self, node, service: ran.append(service))
    for step in ("add", "boot", "publish", "await_configuration"):
        monkeypatch.setattr(Cluster, step, lambda self, node=None, **more: replace(NODE, instance="i-8"))
    files = package("cpu")
    told = files["cluster.json.mustache"]
    flag = '"post_start_service": '
    assert flag in told
    files["cluster.json.mustache"] = told.replace(f"{flag}true", flag + said)
    life = Life("none", files, USER, HOME)
    made = Cluster("none", "none", "", Metadata(), life.topology.services, nodes=[NODE])
    life._create(made)
    life._add(made)
    assert ran == [*order, *order]


@pytest.mark.parametrize("role", ["", "dl_node"], ids=["no role", "role"])
def test_the_names_are_known_with_and_without_a_role(running: Running, role: str) -> None:
    """A topology of one kind of node need not name its role; the metadata then has the nodes without one."""
    assert running.made.role == "", "as in this package"
    running.made.role = role
    running.made.execute(running.node, "echo none >/etc/deeplearning/hosts; /opt/dl/bin/hosts")
    try:
        running.made.publish()
        hosts = running.made.metadata.own(running.node.ip, "hosts")
        assert hosts.keys() == {role or running.node.instance}
        assert running.made.metadata.own(running.node.ip, "host/cpu") == running.made.sizes["cpu"]
        assert PROBES["names"](running) == ""
    finally:
        running.made.role = ""
        running.made.publish()


def test_a_signal_is_no_failed_check() -> None:
    def terminate(*_: object) -> NoReturn:
        raise TerminatedError

    life = Life("none", package("cpu"), USER, HOME, before_step=terminate)
    with pytest.raises(TerminatedError):
        life.run()
    with pytest.raises(TerminatedError):
        life._check("it is looked at", terminate)
    assert life.checks == []


@pytest.mark.parametrize("disposable", [True, False])
def test_what_a_killed_simulation_leaves_is_removed(disposable: bool) -> None:
    """But for the volumes of an upgrade's rehearsal, which may be looked at."""
    script = f"""
import os
from kiln.platform import cluster
with cluster({{}}, disposable={disposable}) as made:
    made.add("none")
    print(made.name, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    name = done.stdout.strip()
    assert done.returncode == -9, done.stderr
    assert f"{name}-data1" in left(name)
    remove_dead()
    assert left(name) == ("" if disposable else f"left: {name}-data1")
    remove_volumes(name)


def test_a_container_that_a_killed_simulation_left_alone_is_removed() -> None:
    script = "from kiln import owner; print(owner.myself())"
    maker = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    name = f"kiln-cluster-{uuid.uuid4().hex[:8]}"
    labels = [f"--label={LABEL}={name}", f"--label={NODE_OWNER_LABEL}={maker}"]
    docker("create", *labels, "deeplearning:1.2-cpu", "true")
    remove_dead()
    assert left(name) == ""


def test_a_step_that_fails_ends_the_life_and_leaves_nothing() -> None:
    def break_init(step: str, made: Cluster) -> None:
        made.services["init"] = type(made.services["init"])("init", "false")

    life = Life("deeplearning:1.2-cpu", package("cpu"), USER, HOME, before_step=break_init)
    checks = life.run()
    assert life.exit_code == 1
    assert checks[0].verdict == "failed"
    assert "init ended with code 1" in checks[0].said
    assert checks[-1].what == "everything is gone"
    assert checks[-1].verdict == "passed"
    assert len(checks) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--package=gpu"], "there is no package gpu"),
        (["--release=9.9"], "release '9.9' does not exist"),
        (["--ids=/nowhere.yml"], "/nowhere.yml does not exist; write one: images/release-ids.example.yml shows how"),
        (["--report=/nowhere/report.json"], "/nowhere/report.json"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], says: str) -> None:
    kiln = str(Path(sys.executable).with_name("kiln"))
    run = subprocess.run([kiln, "simulate", *words], capture_output=True, text=True, check=False, cwd=PROJECT.root)
    assert run.returncode == 2
    assert says in run.stderr
    assert "Traceback" not in run.stderr


def test_a_service_that_no_package_has_does_nothing(running: Running) -> None:
    running.made.run(running.node, "scale_out")
    with pytest.raises(KilnError):
        running.made.execute(running.node, "false")
    assert docker("ps", "--quiet", f"--filter=label={LABEL}={running.made.name}")
