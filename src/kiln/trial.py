"""A trial of a package: a cluster of it on the simulated platform, gone through in steps, looked at after each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec

from kiln.errors import KilnError
from kiln.package import Files
from kiln.package_corners import default, leaves
from kiln.package_template import Template
from kiln.platform import LABEL, Cluster, Node, Service, cluster, docker, remove_volumes

P = ParamSpec("P")


@dataclass(frozen=True)
class Check:
    """One promise, looked at after one step."""

    step: str
    what: str
    verdict: str
    """passed, failed, or not run."""
    said: str = ""


class Topology:
    """What a package asks of the platform, for the form's defaults but for some choices."""

    def __init__(self, files: Files, **choices: Any) -> None:
        form = json.loads(files["config.json"])
        chosen = {name: default(item) for name, _, item in leaves(form)}
        for key, value in choices.items():
            (name,) = (name for name in chosen if name.rpartition(".")[2] == key)
            chosen[name] = value
        self.data: dict[str, Any] = json.loads(Template(files["cluster.json.mustache"]).render(chosen))
        (self.node,) = self.data["nodes"]

    @property
    def services(self) -> dict[str, Service]:
        """What the platform runs on a node, the health check's two commands among them."""
        health = self.data["health_check"]
        wanted = {
            **self.node.get("services", {}),
            "health check": {"cmd": health["check_cmd"], "timeout": health["timeout_sec"]},
            "health action": {"cmd": health["action_cmd"], "timeout": health["action_timeout_sec"]},
        }
        return {name: Service.of(name, settings) for name, settings in wanted.items()}

    @property
    def env(self) -> dict[str, str]:
        """Values as a node reads them: text, with JSON's words for truth."""
        values = self.data["env"].items()
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values}

    @property
    def settings(self) -> dict[str, Any]:
        """What a cluster of it is made with."""
        volume = self.node["volume"]
        sizes = {key: str(self.node[key]) for key in ("cpu", "memory") if key in self.node}
        return {
            "env": self.env,
            "mount_point": volume["mount_point"],
            "role": self.node.get("role", ""),
            "sizes": {**sizes, "volume_size": str(volume["size"])},
            "disposable": True,
        }

    @property
    def mount_point(self) -> str:
        return str(self.node["volume"]["mount_point"])


class StepFailedError(Exception):
    """A step could not be done; what comes after it would tell nothing."""


@dataclass
class Trial:
    """One cluster of two nodes of the package ``files``, on containers of ``image``."""

    image: str
    files: Files
    user: str
    home: str
    told: Callable[[Check], None] = lambda check: None
    checks: list[Check] = field(default_factory=list)
    before_step: Callable[[str, Cluster], None] = lambda step, made: None
    """Called before each step with its name: where tests break things."""

    def __post_init__(self) -> None:
        self.topology = Topology(self.files, count=2)
        self._step = ""

    @property
    def exit_code(self) -> int:
        """0: every promise kept; 1: not."""
        return 0 if self.checks and all(check.verdict != "failed" for check in self.checks) else 1

    def run(self) -> list[Check]:
        """Goes through the steps; nothing is left in the engine, whatever happened."""
        name = ""
        try:
            with cluster(self.topology.services, **self.topology.settings) as made:
                name = made.name
                self.go_through(made)
        except StepFailedError:
            pass
        finally:
            remove_volumes(name)
        self._check("everything is gone", left, name)
        return self.checks

    def go_through(self, made: Cluster) -> None:
        """The steps, each in ``_begin``."""
        raise NotImplementedError

    # Steps of every trial

    def _create(self, made: Cluster) -> None:
        for _ in range(self.topology.node["count"]):
            made.boot(made.add(self.image))
        self._configure(made)
        for service in made.order("init"):
            for node in made.nodes:
                made.run(node, service)

    def _add(self, made: Cluster) -> Node:
        added = made.boot(made.add(self.image))
        made.publish(adding_hosts={added.instance: {"ip": added.ip}})
        self._await(made)
        for service in made.order("init"):
            made.run(added, service)
        made.publish()
        return made.nodes[-1]

    def _delete(self, made: Cluster) -> None:
        for node in made.nodes:
            made.run(node, "stop")
        for node in list(made.nodes):
            made.remove(node)

    def _configure(self, made: Cluster) -> None:
        made.publish()
        self._await(made)

    @staticmethod
    def _await(made: Cluster) -> None:
        for node in made.nodes:
            made.await_configuration(node)

    @contextmanager
    def _begin(self, step: str, made: Cluster) -> Iterator[None]:
        self._step = step
        try:
            self.before_step(step, made)
            yield
        except KilnError as error:
            self._tell(Check(step, "the step is done", "failed", str(error)))
            raise StepFailedError(str(error)) from None

    def _check(self, what: str, probe: Callable[P, str], *details: P.args, **options: P.kwargs) -> None:
        try:
            said = probe(*details, **options)
        except KilnError as error:
            said = str(error)
        verdict = "not run" if said.startswith("not run: ") else "failed" if said else "passed"
        self._tell(Check(self._step, what, verdict, said.removeprefix("not run: ")))

    def _tell(self, check: Check) -> None:
        self.checks.append(check)
        self.told(check)


def left(name: str) -> str:
    """Containers, networks and volumes of the cluster that are still there, in words."""
    label = f"--filter=label={LABEL}={name}"
    found = [
        *docker("ps", "--all", "--format={{.Names}}", label).split(),
        *docker("network", "ls", "--format={{.Name}}", label).split(),
        *docker("volume", "ls", "--quiet", label).split(),
    ]
    return f"left: {', '.join(found)}" if found else ""
