"""The life of a cluster on the simulated platform, from the package's own topology, checked after each step.

Create, init, start, monitor, health check, an unhealthy node, a node more, a node less, stop, start, other values of
``env``, delete: as a user of the platform's console would, on nodes that run for real.
"""

from __future__ import annotations

import json
import random
import string
import subprocess
import time
from dataclasses import dataclass

from kiln.errors import KilnError
from kiln.package import Files
from kiln.platform import Cluster, Node, docker
from kiln.trial import Topology, Trial

MONITOR_S = 5.0
"""Source: the platform's developer guide, monitor: a cmd that takes longer is not heard."""

_KEYS = "/root/.kiln-keys"

WAIT_S = 30.0
"""For what a changed configuration brings about on a node."""


@dataclass
class Life(Trial):
    """One cluster's life."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.probes = Probes(self.topology, self.user, self.home)

    def go_through(self, made: Cluster) -> None:
        """From create to delete."""
        with self._begin("create", made):
            self._create(made)
            self._after_start(made)
        with self._begin("monitor", made):
            for node in made.nodes:
                self._check(f"{node.name} tells its values", self.probes.monitor, node)
        with self._begin("health check", made):
            for node in made.nodes:
                self._check(f"{node.name} is healthy", self.probes.healthy, made, node)
        first = made.nodes[0]
        with self._begin("unhealthy node", made):
            made.execute(first, "systemctl kill --signal=KILL ssh; systemctl stop ssh.socket ssh")
            self._check(f"{first.name} is found unhealthy", self.probes.unhealthy, made, first)
            others = made.nodes[1:]
            for node in others:
                self._check(f"{node.name} stays healthy", self.probes.healthy, made, node)
            self._check("the action revives it", self.probes.revived, made, first)
        for node in made.nodes:
            made.execute(node, f"echo kept | tee {self.topology.mount_point}/marker >{self.home}/marker")
        with self._begin("add a node", made):
            self._add(made)
            self._after_start(made)
        with self._begin("remove a node", made):
            gone = made.nodes[1]
            made.publish(deleting_hosts={gone.instance: {"ip": gone.ip}})
            made.run(gone, "stop")
            made.remove(gone)
            self._await(made)
            self._check("the others forget it", self.probes.forgotten, made, gone)
            self._after_start(made)
        with self._begin("stop", made):
            writers = f"sleep 600 >{self.topology.mount_point}/open"
            made.execute(first, f"su {self.user} -c '{writers}' </dev/null >/dev/null 2>&1 &", user="root")
            for node in made.nodes:
                made.run(node, "stop")
                self._check(f"nothing uses {node.name}'s volume", self.probes.unused, node)
            for node in made.nodes:
                made.power_off(node)
        with self._begin("start", made):
            for node in list(made.nodes):
                made.restart(node)
            self._configure(made)
            for node in made.nodes:
                made.run(node, "start")
            self._after_start(made)
            self._check("volume and system disk are kept", self.probes.kept, made.nodes[0])
        self._change_env(made)
        with self._begin("delete", made):
            self._delete(made)

    def _change_env(self, made: Cluster) -> None:
        every: list[str] = []
        for step in ("QingStor on", "other keys"):
            with self._begin(step, made):
                access = "".join(random.SystemRandom().choices(string.ascii_uppercase, k=20))
                secret = "".join(random.SystemRandom().choices(string.ascii_letters + string.digits, k=40))
                every += [access, secret]
                made.env = Topology(self.files, QingStor=True, access_key=access, secret_key=secret).env
                made.publish()
                for node in made.nodes:
                    self._check(f"{node.name} has the keys", self.probes.keys, node, access, secret, WAIT_S)
                    self._check(f"{node.name} shows them to nobody", self.probes.secrets, node, every)
        with self._begin("QingStor off", made):
            made.env = self.topology.env
            made.publish()
            for node in made.nodes:
                self._check(f"{node.name} has no keys", self.probes.keys, node, "", "", WAIT_S)
                self._check(f"{node.name} keeps none", self.probes.secrets, node, every, kept=False)
        with self._begin("secrets", made):
            self._check("the package holds no key", self.probes.in_package, self.files, every)

    def _after_start(self, made: Cluster) -> None:
        for node in made.nodes:
            self._check(f"{node.name}'s volume is the user's", self.probes.volume, node)
            self._check(f"{node.name} knows all by name", self.probes.names, made, node)
            self._check(f"{node.name} takes users in", self.probes.ssh, made, node)
            self._check(f"{node.name}'s qsctl has its file", self.probes.keys, node, "", "", 0)


@dataclass(frozen=True)
class Probes:
    """What is looked at on a node; each returns what is wrong in words, or nothing."""

    topology: Topology
    user: str
    home: str

    def volume(self, node: Node) -> str:
        """The data volume is mounted, the user's, and writable for the user."""
        place = self.topology.mount_point
        script = (
            f"mountpoint -q {place} || echo nothing is mounted; stat -c %U {place}; "
            f"su {self.user} -c 'test -w {place}' || echo not writable"
        )
        said = _shell(node, script).split("\n")
        return "" if said == [self.user] else f"{place}: {', '.join(said)}, wanted {self.user}'s"

    def names(self, made: Cluster, node: Node) -> str:
        """Every node of the cluster is known under its stable name."""
        wanted = {other.name: other.ip for other in made.nodes}
        ends = time.monotonic() + WAIT_S
        while True:
            script = (
                f"for name in {' '.join(wanted)}; do getent hosts $name | awk -v n=$name '{{print n, $1; exit}}'; done"
            )
            known = dict(line.split() for line in _shell(node, script).splitlines())
            if known == wanted or time.monotonic() > ends:
                break
            time.sleep(0.2)
        return "" if known == wanted else f"knows {known}, wanted {wanted}"

    def forgotten(self, made: Cluster, gone: Node) -> str:
        """No node knows the removed one any more."""
        ends = time.monotonic() + WAIT_S
        while True:
            knowing = [node.name for node in made.nodes if _code(node, f"getent hosts {gone.name}") == 0]
            if not knowing or time.monotonic() > ends:
                return f"{', '.join(knowing)} still knows {gone.name}" if knowing else ""
            time.sleep(0.2)

    def ssh(self, made: Cluster, node: Node) -> str:
        """The SSH server answers the other nodes and this one."""
        script = f"exec 3<>/dev/tcp/{node.ip}/22 && timeout 5 head -c 4 <&3"
        said = _shell(made.nodes[0], script)
        return "" if said == "SSH-" else f"port 22 says {said!r}"

    def monitor(self, node: Node) -> str:
        """The monitor prints one JSON object of the package's items, in time, without the image's environment."""
        monitor = self.topology.data.get("monitor")
        if monitor is None:
            return "not run: the package has no monitor"
        begun = time.monotonic()
        done = _run(node, f"cd / && exec env -i {monitor['cmd']}")
        spent = time.monotonic() - begun
        try:
            values = json.loads(done.stdout)
        except ValueError:
            return f"prints no JSON but {done.stdout[:100]!r} {done.stderr[:200]!r}"
        if not isinstance(values, dict) or values.keys() != monitor["items"].keys():
            return f"prints other keys than the package's items: {sorted(values)}"
        wrong = [name for name, value in values.items() if not isinstance(value, int)]
        if wrong or spent > MONITOR_S:
            return f"took {spent:.1f} s" if spent > MONITOR_S else f"no integers: {', '.join(wrong)}"
        return ""

    def healthy(self, made: Cluster, node: Node) -> str:
        """The health check succeeds as often as the platform wants it to."""
        for _ in range(self.topology.data["health_check"]["healthy_threshold"]):
            code, said = self._health(made, node, "health check")
            if code:
                return f"exit code {code}: {said}"
        return ""

    def unhealthy(self, made: Cluster, node: Node) -> str:
        """The health check fails as often as the platform wants it to."""
        for _ in range(self.topology.data["health_check"]["unhealthy_threshold"]):
            if self._health(made, node, "health check")[0] == 0:
                return "the health check says that it is healthy"
        return ""

    def revived(self, made: Cluster, node: Node) -> str:
        """The action ends well, and the node is healthy then."""
        code, said = self._health(made, node, "health action")
        return f"the action ends with {code}: {said}" if code else self.healthy(made, node)

    @staticmethod
    def _health(made: Cluster, node: Node, which: str) -> tuple[int, str]:
        service = made.services[which]
        done = _run(node, f"exec env -i timeout {service.timeout_s} {service.command}")
        return done.returncode, " ".join((done.stderr or done.stdout).split())

    def unused(self, node: Node) -> str:
        """No process has anything of the volume open."""
        place = self.topology.mount_point
        script = (
            f"find /proc/[0-9]*/fd /proc/[0-9]*/cwd -lname '{place}*' 2>/dev/null; "
            f"grep -ls ' {place}/' /proc/[0-9]*/maps"
        )
        said = _shell(node, script)
        return f"still open: {said.splitlines()}" if said else ""

    def kept(self, node: Node) -> str:
        """What was written before the stop is there."""
        said = _shell(node, f"cat {self.topology.mount_point}/marker {self.home}/marker")
        return "" if said.split() == ["kept", "kept"] else f"the markers say {said!r}"

    def keys(self, node: Node, access: str, secret: str, patience_s: float) -> str:
        """qsctl's file holds these keys, belongs to the user, and is for nobody else."""
        path = f"{self.home}/.qingstor/config.yaml"
        wanted = [f"access_key_id: '{access}'", f"secret_access_key: '{secret}'", f"{self.user} 600"]
        ends = time.monotonic() + patience_s
        while True:
            said = [line for line in _shell(node, f"cat {path}; stat -c '%U %a' {path}").splitlines() if line[0] != "#"]
            if said == wanted:
                return ""
            if time.monotonic() > ends:
                # Not what it holds instead: these may be keys.
                return f"{path} holds other keys or is {said[-1] if said else 'missing'}, wanted {wanted[-1]}"
            time.sleep(0.2)

    def secrets(self, node: Node, secrets: list[str], *, kept: bool = True) -> str:
        """The keys stand in no changed file but qsctl's own, in no log, and in no process's command or environment."""
        own = f"{self.home}/.qingstor/config.yaml"
        changed = [line[2:] for line in docker("diff", node.container).splitlines() if line[:1] in "AC"]
        mounts = _shell(node, "findmnt --raw --noheadings --output=TARGET --types=tmpfs").split()
        # Through standard input: in a command the search would find itself.
        _fed(node, f"umask 077; cat >{_KEYS}", secrets)
        script = (
            # A folder that the engine calls changed is not searched whole: what is new in it stands in the list too.
            f"xargs -r -d '\\n' grep -lsF --devices=skip --directories=skip -f {_KEYS}; "
            f"grep -rlsF --devices=skip -f {_KEYS} {' '.join([*mounts, self.topology.mount_point])}; "
            f"grep -lasFf {_KEYS} /proc/[0-9]*/cmdline /proc/[0-9]*/environ; "
            f"journalctl --no-pager 2>/dev/null | grep -qFf {_KEYS} && echo the journal; rm {_KEYS}"
        )
        found = set(_fed(node, script, changed).splitlines()) - ({own} if kept else set())
        return f"found in {', '.join(sorted(found))}" if found else ""

    @staticmethod
    def in_package(files: Files, secrets: list[str]) -> str:
        """The package's own files hold none of the keys."""
        found = [path for path, text in files.items() if any(secret in text for secret in secrets)]
        return f"found in {', '.join(found)}" if found else ""


def _fed(node: Node, script: str, lines: list[str]) -> str:
    """What a Bash script on the node says to ``lines`` on its standard input."""
    command = ["docker", "exec", "--interactive", node.container, "bash", "-c", script]
    done = subprocess.run(
        command, input="\n".join([*lines, ""]), capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise KilnError(f"cannot be searched ({done.stderr.strip()})", where=node.name, fix="look at the node")
    return done.stdout.strip()


def _run(node: Node, script: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", "exec", node.container, "bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _shell(node: Node, script: str) -> str:
    return _run(node, script).stdout.strip()


def _code(node: Node, script: str) -> int:
    return _run(node, script).returncode
