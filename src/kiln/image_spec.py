"""One image of a release: what its tables say, and what a channel makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec

from kiln.artifact import Artifact
from kiln.channel import Channel
from kiln.components import COMPONENT_TYPES, Device, PythonVersion, Strict, Text

Verdict = Literal["exact", "substituted"]


Login = Literal["published-password", "forced-change", "keys-only"]
"""How users get into a fresh node: with the password that the guide publishes, with it once, or with a key alone."""


class Row(Strict, frozen=True):
    """One image of a release: which version of each component it holds."""

    device: Device
    python: list[Text]
    tensorflow: Text
    caffe: Text
    pytorch: Text
    keras: Text
    qsctl: Text
    agent: Text
    digits: Text
    cuda: Text | None = None
    cudnn: Text | None = None
    driver: Text | None = None
    """Oldest NVIDIA driver that the platform's nodes of this image run."""
    mkl: Text | None = None

    def versions(self) -> dict[str, str]:
        """Component to version, as the row asks for it; Python, of which an image holds several, left out."""
        fields = ((name, getattr(self, name)) for name in COMPONENT_TYPES if name != "python")
        return {name: version for name, version in fields if version is not None}


class Release(Strict, frozen=True):
    """A release: its images, and the releases that may be upgraded to it."""

    release: Text
    source: Text
    images: Annotated[dict[str, Any], msgspec.Meta(min_length=1)]
    upgrades_from: list[Text] = []
    services: list[Text] = []
    """Services of its AppCenter package, by their names in images/appcenter.yml."""
    login: Login = "keys-only"


class User(Strict, frozen=True):
    """The one user of a node."""

    name: Text
    uid: int
    gid: int
    home: Text
    password: Text


class Folder(Strict, frozen=True):
    """A folder under which several things stand."""

    path: Text


class Paths(Strict, frozen=True):
    """Where things stand on a node."""

    data: Text
    manifest: Text
    cpu_floor: Text
    samples: Text
    caffe: Text
    """What the name of each Caffe tree starts with."""
    mkl: Text
    qsctl: Text
    mnist: Text
    gpu_monitor: Text


class Ports(Strict, frozen=True):
    """Where the services of a node listen."""

    jupyter: int
    tensorboard: int
    ssh: int


class Node(Strict, frozen=True):
    """What every node holds, whatever its image."""

    user: User
    workspaces: Folder
    python: Folder
    paths: Paths
    ports: Ports
    demos: dict[str, Text]
    """Distribution to version, of what the guide has users install."""


@dataclass(frozen=True)
class Component:
    """One component of an image: what the release asks for, and what the channel delivers."""

    name: str
    version: str
    installed: str
    verdict: Verdict
    why: str
    source: str
    group: str | None
    facts: dict[str, Any]
    """The component table's entry for the installed version."""
    settings: dict[str, Any]
    """The channel's settings for the roles."""

    def public(self, sha256: Mapping[str, str | None]) -> dict[str, Any]:
        """The manifest's entry: version, source, verdict, and a checksum of all that it comes from."""
        return {
            "version": self.version,
            "installed": self.installed,
            "verdict": self.verdict,
            **({"why": self.why} if self.why else {}),
            "source": self.source,
            "sha256": dict(sha256),
        }


@dataclass(frozen=True)
class ImageSpec:
    """One image of a release on a channel, resolved and checked."""

    release: str
    image: str
    row: Row
    node: Node
    channel: Channel
    components: dict[str, Component]
    pythons: tuple[PythonVersion, ...]
    groups: dict[str, tuple[Artifact, ...]]
    tables: dict[str, Any]
    """Component to all versions of its table."""
    login: Login

    @property
    def device(self) -> Device:
        return self.row.device

    @cached_property
    def substitutions(self) -> dict[str, str]:
        """Component to reason, for everything the channel had to substitute."""
        found = {name: part.why for name, part in self.components.items() if part.verdict == "substituted"}
        for entry in self.channel.substitutions:
            if entry.component not in COMPONENT_TYPES and entry.device in (None, self.device):
                found[entry.component] = entry.why
        return dict(sorted(found.items()))

    def names(self) -> dict[str, Any]:
        """What the expressions of ``images/stages.yml`` may name."""
        components = {
            name: {
                **part.facts,
                "version": part.version,
                "installed": part.installed,
                "group": part.group,
                "settings": part.settings,
            }
            for name, part in self.components.items()
        }
        return {
            "release": self.release,
            "image": self.image,
            "device": self.device,
            "channel": self.channel.name,
            "base": msgspec.to_builtins(self.channel.base),
            "node": msgspec.to_builtins(self.node),
            "driver": self.row.driver,
            "login": self.login,
            "interpreters": [
                {**msgspec.to_builtins(python), "version": version}
                for version, python in zip(self.row.python, self.pythons, strict=True)
            ],
            "workspaces": {
                python.workspace: f"{self.node.workspaces.path}/{python.workspace}" for python in self.pythons
            },
            "caffe_trees": [f"{self.node.paths.caffe}{python.workspace}" for python in self.pythons],
            "components": components,
            "tables": self.tables,
            "manifest": self.manifest(),
            **components,
        }

    def manifest(
        self,
        checksum: Callable[[Artifact], str | None] = lambda artifact: artifact.sha256,
        made: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """What ``/etc/deeplearning/manifest.json`` says before the image's own contents are added to it.

        ``checksum`` knows what no table can, such as files that were locked at their first fetch; ``made`` is component
        to the stages of this project that make it, by digest.
        """
        parts = {"base": self._base(), **self.components}
        return {
            "release": self.release,
            "image": self.image,
            "channel": self.channel.name,
            "device": self.device,
            "substitutions": self.substitutions,
            "components": {
                name: part.public(
                    {artifact.file: checksum(artifact) for artifact in self.groups.get(part.group or "", ())}
                    | {f"stage {stage}": digest for stage, digest in made.get(name, {}).items()}
                )
                for name, part in parts.items()
            },
            "node": {
                **msgspec.to_builtins(self.node),
                "user": {key: value for key, value in msgspec.to_builtins(self.node.user).items() if key != "password"},
            },
        }

    def _base(self) -> Component:
        """The distribution as a component: which one the release asks for, a substitution alone can tell."""
        base = self.channel.base
        entry = next((entry for entry in self.channel.substitutions if entry.component == "base"), None)
        return Component(
            name="base",
            version=entry.instead_of[0] if entry else base.distribution,
            installed=base.distribution,
            verdict="substituted" if entry else "exact",
            why=entry.why if entry else "",
            source=base.source,
            group=base.group,
            facts={},
            settings={},
        )
