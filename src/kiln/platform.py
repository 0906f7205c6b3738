"""A simulated platform: clusters of baked images as containers, driven the way AppCenter drives instances.

Each node boots under systemd on a network of its own cluster, with a data volume of its own, and learns what to do from
the metadata server alone: its agent renders the configuration and runs the platform's commands. Source of the order of
things: the platform's developer guide.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from kiln import owner
from kiln.errors import KilnError
from kiln.metadata import Metadata, serving
from kiln.node import SYSTEMD, await_boot
from kiln.owner import OWNER_LABEL

LABEL = "org.deeplearning.cluster"
"""On whatever belongs to a cluster: containers, network, volumes."""

NODE_OWNER_LABEL = f"{LABEL}.owner"
"""Instead of OWNER_LABEL on a cluster's containers: one that is powered off is no remains."""

AGENT_LOG = "/opt/qingcloud/app-agent/log/cmd.log"

AGENT_S = 30
"""A node whose agent has not taken up a command by then has none that works."""


class ServiceError(KilnError):
    """A command of the platform ended with another code than 0, or not in time."""

    exit_code = 1

    def __init__(self, node: str, service: str, code: int, said: str) -> None:
        self.node, self.service, self.code = node, service, code
        lines = f": {said}" if said else ""
        super().__init__(f"{service} ended with code {code}{lines}", where=f"node {node}", fix="see the node's cmd.log")


@dataclass(frozen=True)
class Service:
    """A lifecycle command of the package."""

    name: str
    command: str
    timeout_s: int = 600
    after_start: bool = False
    """Of init and upgrade: whether the platform runs it after start instead of before."""

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any]) -> Service:
        """From the settings that a topology gives it."""
        seconds, after = settings.get("timeout", cls.timeout_s), settings.get("post_start_service", cls.after_start)
        return cls(name, settings["cmd"], int(seconds), bool(after))


@dataclass(frozen=True)
class Node:
    """An instance: a root disk that can be replaced, and a volume that stays."""

    sid: int
    container: str
    volume: str
    instance: str
    image: str
    ip: str = ""

    @property
    def name(self) -> str:
        """The stable name under which the cluster's nodes know it."""
        return f"node{self.sid}"


@dataclass
class Cluster:
    """A cluster on the simulated platform."""

    name: str
    network: str
    gateway: str
    metadata: Metadata
    services: dict[str, Service]
    env: dict[str, str] = field(default_factory=dict)
    mount_point: str = "/data"
    role: str = ""
    """Of the nodes; a topology of one kind of node need not name one, and the metadata then has none either."""
    sizes: dict[str, str] = field(default_factory=dict)
    """What the metadata tells of each node's size."""
    disposable: bool = False
    """Whether the volumes are worth nothing without the process that made them, and go with it when it is killed."""
    nodes: list[Node] = field(default_factory=list)
    interrupted: threading.Event = field(default_factory=threading.Event)

    # What the platform does

    def add(self, image: str, *, volume: str = "") -> Node:
        """A new node with a fresh volume (or ``volume``), not booted."""
        sid = max((node.sid for node in self.nodes), default=0) + 1
        node = Node(
            sid, f"{self.name}-node{sid}", volume or f"{self.name}-data{sid}", f"i-{uuid.uuid4().hex[:8]}", image
        )
        if not volume:
            owned = [f"--label={OWNER_LABEL}={owner.myself()}"] if self.disposable else []
            docker("volume", "create", f"--label={LABEL}={self.name}", *owned, node.volume, whole=True)
        self.nodes.append(node)
        return node

    def boot(self, node: Node, *, volume_mode: str = "") -> Node:
        """Starts the node on its image with its volume mounted; ``volume_mode``: readonly, or none for no volume."""
        # The image holds an empty folder of the user's there; a volume's own top folder is what counts.
        mount = f"--mount=type=volume,source={node.volume},target={self.mount_point},volume-nocopy"
        mounts = [] if volume_mode == "none" else [mount + (",readonly" if volume_mode == "readonly" else "")]
        docker(
            # SIGRTMIN+3 is systemd's halt.
            *(
                "run",
                "--detach",
                "--stop-signal=SIGRTMIN+3",
                f"--name={node.container}",
                f"--hostname={node.name}",
                f"--label={LABEL}={self.name}",
                f"--label={NODE_OWNER_LABEL}={owner.myself()}",
            ),
            *(f"--network={self.network}", f"--add-host=metadata:{self.gateway}", *SYSTEMD, *mounts),
            *(node.image, "/lib/systemd/systemd"),
            whole=True,
        )
        return self._up(node)

    def restart(self, node: Node) -> Node:
        """Starts a stopped node again on the root disk that it has."""
        docker("start", node.container)
        return self._up(node)

    def _up(self, node: Node) -> Node:
        await_boot(node.container)
        shape = f'{{{{(index .NetworkSettings.Networks "{self.network}").IPAddress}}}}'
        booted = replace(node, ip=docker("inspect", "--format", shape, node.container))
        self.nodes[self.nodes.index(node)] = booted
        return booted

    def power_off(self, node: Node) -> None:
        """Shuts the node down; root disk and volume stay."""
        docker("stop", "--time=20", node.container, check=False)

    def discard(self, node: Node) -> None:
        """Removes the node's root disk; the volume stays."""
        docker("rm", "--force", node.container, check=False, whole=True)

    def replace_root(self, node: Node, image: str) -> Node:
        """A new root disk from ``image`` for the node, not booted; an instance keeps its id."""
        self.discard(node)
        renewed = replace(node, image=image, ip="")
        self.nodes[self.nodes.index(node)] = renewed
        return renewed

    def remove(self, node: Node) -> None:
        """The node leaves the cluster, its volume goes with it."""
        self.discard(node)
        docker("volume", "rm", "--force", node.volume, check=False, whole=True)
        self.nodes.remove(node)
        self.publish()

    def publish(self, **more: dict[str, Any]) -> None:
        """Tells every node about the cluster; ``more``: further subtrees of each node's self, as ``upgrade_audit``."""
        root = f"/clusters/{self.name}"
        hosts = {
            node.instance: {
                **self.sizes,
                "ip": node.ip,
                "sid": str(node.sid),
                "gid": "1",
                "node_id": node.name,
                # Whatever the topology says: the containers are given none, and the health check would miss them.
                "gpu": "0",
                **({"role": self.role} if self.role else {}),
            }
            for node in self.nodes
            if node.ip
        }
        shared = {
            "hosts": {self.role: hosts} if self.role else hosts,
            "env": self.env,
            "cluster": {"cluster_id": self.name},
        }
        shared |= {name.replace("_", "-"): tree for name, tree in more.items()}
        commands = self.metadata.get("data", f"{root}/cmds") or {}
        self.metadata.change("POST", "data", root, {**shared, "cmds": commands})
        links = {name: f"{root}/{name}" for name in shared}
        place = f"{root}/hosts/{self.role}".rstrip("/")
        self.metadata.change(
            "POST",
            "mapping",
            "",
            {
                node.ip: {
                    **links,
                    "host": f"{place}/{node.instance}",
                    "cmd": f"{root}/cmds/{node.instance}",
                }
                for node in self.nodes
                if node.ip
            },
        )

    def order(self, first: str) -> tuple[str, str]:
        """``first``, which is init or upgrade, and start, in the order in which the platform runs them."""
        after = first in self.services and self.services[first].after_start
        return ("start", first) if after else (first, "start")

    def run(self, node: Node, service: str) -> None:
        """Has the node's agent run a service that the package has; raises ServiceError unless it ends with 0."""
        one = self.services.get(service)
        if one is None:
            return
        identity = uuid.uuid4().hex
        order = {"id": identity, "cmd": one.command, "timeout": str(one.timeout_s)}
        self.metadata.put(f"/clusters/{self.name}/cmds/{node.instance}", order)
        begun = time.monotonic()
        while True:
            said = docker("exec", node.container, "cat", AGENT_LOG, check=False)
            _, _, after = said.partition(f" {identity} [executing]")
            for line in after.splitlines()[1:]:
                if f" {identity} [successful]" in line:
                    return
                if f" {identity} [failed<" in line:
                    words = after.partition("\n")[2].partition(line)[0].strip().splitlines()
                    code = int(line.partition("[failed<")[2].partition(">")[0])
                    raise ServiceError(node.name, service, code, "; ".join(words[-3:]))
            spent = time.monotonic() - begun
            if spent > (one.timeout_s + 10 if after else AGENT_S):
                raise ServiceError(node.name, service, 124, "" if after else "the agent did not take it up")
            if docker("inspect", "--format", "{{.State.Running}}", node.container, check=False) != "true":
                raise ServiceError(node.name, service, 137, "the node went down")
            self.interrupted.wait(0.1)

    # Whole steps

    def await_configuration(self, node: Node) -> None:
        """Returns once the agent has rendered the cluster's names; raises ServiceError when it does not."""
        ends = time.monotonic() + AGENT_S
        while node.ip not in docker("exec", node.container, "cat", "/etc/deeplearning/hosts", check=False):
            if time.monotonic() > ends:
                raise ServiceError(node.name, "confd", 124, "the configuration was not rendered")
            self.interrupted.wait(0.1)

    def execute(self, node: Node, script: str, *, user: str = "root") -> str:
        """Output of a Bash login script on the node; raises KilnError when it fails."""
        return docker("exec", f"--user={user}", node.container, "bash", "-lc", script)


def docker(*words: str, check: bool = True, whole: bool = False) -> str:
    """Output of a docker command; raises KilnError when it fails and ``check`` is set.

    ``whole``: Ctrl-C and SIGTERM wait until it has ended; an engine that has begun to make something makes it, whoever
    asked has gone.
    """
    with _uninterrupted() if whole else nullcontext():
        done = subprocess.run(
            ["docker", *words],
            capture_output=True,
            text=True,
            check=False,
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C reaches all that runs in its foreground
        )
    if check and done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        told = [line for line in lines if line and not line.startswith("Run 'docker")]
        said = told[-1] if told else f"exit code {done.returncode}"
        raise KilnError(said, where=f"docker {words[0]}", fix="look at the engine's log")
    return done.stdout.strip() if done.returncode == 0 else ""


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back until the end, and heeds them then."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    came: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        came.append(number)

    # Not a mask: a signal that one thread does not take, another one does, and the main thread heeds it all the same.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for held in came:
            signal.raise_signal(held)


@contextmanager
def cluster(services: dict[str, Service], **settings: Any) -> Iterator[Cluster]:
    """A cluster without nodes yet; ``settings``: further fields of Cluster.

    At the end containers and network go, volumes stay: ``remove_volumes`` ends them.
    """
    remove_dead()
    name = f"kiln-cluster-{uuid.uuid4().hex[:8]}"
    labels = [f"--label={LABEL}={name}", f"--label={OWNER_LABEL}={owner.myself()}"]
    try:
        docker("network", "create", *labels, name, whole=True)
        gateway = docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", name)
        metadata = Metadata()
        with serving(metadata, gateway):
            one = Cluster(name, name, gateway, metadata, services, **settings)
            try:
                yield one
            finally:
                _remove_containers(name)
    finally:
        docker("network", "rm", name, check=False, whole=True)


def remove_dead() -> None:
    """Removes what clusters have left whose simulating process is gone; only disposable volumes are among it."""
    for kind, called, label, options in (
        ("container", "Names", NODE_OWNER_LABEL, ["--all"]),
        ("network", "Name", OWNER_LABEL, []),
        ("volume", "Name", OWNER_LABEL, []),
    ):
        shape = f'{{{{.{called}}}}} {{{{.Label "{LABEL}"}}}} {{{{.Label "{label}"}}}}'
        filters = [f"--filter=label={each}" for each in (LABEL, label)]
        for line in docker(kind, "ls", *options, f"--format={shape}", *filters, check=False).splitlines():
            thing, name, maker = line.split()
            running = docker("ps", "--quiet", f"--filter=label={LABEL}={name}", check=False)
            if owner.is_dead(maker) or (owner.is_of_another_boot(maker) and not running):
                _remove_containers(name)
                docker(kind, "rm", thing, check=False)


def _remove_containers(name: str) -> None:
    containers = docker("ps", "--all", "--quiet", f"--filter=label={LABEL}={name}", check=False).split()
    if containers:
        docker("rm", "--force", *containers, check=False, whole=True)


def volumes_of(name: str) -> list[str]:
    """The data volumes that are there of the cluster called ``name``."""
    return docker("volume", "ls", "--quiet", f"--filter=label={LABEL}={name}", check=False).split()


def remove_volumes(name: str) -> None:
    """Removes the data volumes of the cluster called ``name``."""
    if volumes := volumes_of(name):
        docker("volume", "rm", "--force", *volumes, check=False, whole=True)
