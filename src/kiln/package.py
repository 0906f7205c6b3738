"""The AppCenter packages of a release, made from ``images/appcenter.yml`` and the ids that the platform gave."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

from kiln.components import Strict
from kiln.errors import KilnError
from kiln.image_spec import Release
from kiln.project import Project
from kiln.release_ids import ReleaseIds
from kiln.tables import Table, read_table

TABLE = "appcenter.yml"
Text = dict[str, str]
"""Language to words."""
Files = dict[str, str]
"""Path inside the package to content."""

_MARK = re.compile(r'"(\{\{[A-Za-z_][\w.]*\}\})"')


class Property(Strict, frozen=True):
    """One line of the form."""

    label: Text
    description: Text
    settings: dict[str, Any]


class Form(Strict, frozen=True):
    cluster: dict[str, Property]
    node: dict[str, Property]
    env: dict[str, Property]


class Groups(Strict, frozen=True):
    """The texts of the form's groups."""

    cluster: Text
    node: Text
    node_description: Text
    env: Text


class Row(Strict, frozen=True):
    """One package: its image, and what its users may choose for a node."""

    image: str
    form: dict[str, dict[str, Any]]


class Item(Strict, frozen=True):
    unit: str
    text: Text


class Group(Strict, frozen=True):
    items: list[str]
    text: Text


class Monitor(Strict, frozen=True):
    cmd: str
    item: dict[str, Any]
    """Settings of every item."""
    items: dict[str, Item]
    groups: dict[str, Group]
    alarm: list[str]


class Appcenter(Strict, frozen=True):
    """``images/appcenter.yml``."""

    languages: list[str]
    role: str
    container: str
    packages: dict[str, Row]
    form: Form
    groups: Groups
    services: dict[str, dict[str, Any]]
    health_check: dict[str, Any]
    advanced_actions: dict[str, Text]
    monitor: Monitor
    errors: dict[int, Text]
    """Exit code of a command on the node to what the user reads."""
    notice_when_upgrade: Text


def read_appcenter(project: Project) -> tuple[Table, Appcenter]:
    """The table of the packages."""
    table = read_table(project.images / TABLE, project.root)
    return table, table.convert(Appcenter)


class Packages:
    """The packages of one release."""

    def __init__(self, project: Project, ids: ReleaseIds) -> None:
        self.table, self.appcenter = read_appcenter(project)
        self.ids = ids
        release = read_table(project.images / "releases" / f"{ids.release}.yml", project.root)
        self.services: dict[str, dict[str, Any]] = {}
        for index, name in enumerate(release.convert(Release).services):
            if name not in self.appcenter.services:
                raise KilnError(
                    f"service {name} is not in {self.table.name}",
                    where=release.where("services", index),
                    fix=f"choose among {', '.join(self.appcenter.services)}",
                )
            self.services[name] = self.appcenter.services[name]
        self.user_data = read_table(project.images / "node.yml", project.root).data["paths"]["data"]

    def make(self, name: str) -> Files:
        """One package's files."""
        row = self.appcenter.packages[name]
        form = self._form(name, row)
        return {
            "config.json": _dump(form),
            "cluster.json.mustache": _MARK.sub(r"\1", _dump(self._topology(name, row))),
            **{f"locale/{language}.json": _dump(self._locale(row, language)) for language in self.appcenter.languages},
        }

    def _node_properties(self, row: Row) -> dict[str, Property]:
        """The properties of a node that the package's form has: those with a default of their own or of the package."""
        return {
            key: item for key, item in self.appcenter.form.node.items() if key in row.form or "default" in item.settings
        }

    def _form(self, name: str, row: Row) -> dict[str, Any]:
        form, groups = self.appcenter.form, self.appcenter.groups
        for key in row.form:
            if key not in form.node:
                raise KilnError(
                    f"package {name} gives a range to {key}, which the form of a node does not have",
                    where=self.table.where("packages", name, "form", key),
                    fix=f"choose one of {', '.join(form.node)}",
                )
        node = {
            "key": self.appcenter.role,
            "label": groups.node["en"],
            "description": groups.node_description["en"],
            "type": "array",
            "properties": [
                _property(key, item, row.form.get(key, {})) for key, item in self._node_properties(row).items()
            ],
        }
        return {
            "type": "array",
            "properties": [
                _group("cluster", groups.cluster, [*(_property(*item) for item in form.cluster.items()), node]),
                _group("env", groups.env, [_property(*item) for item in form.env.items()]),
            ],
        }

    def _topology(self, name: str, row: Row) -> dict[str, Any]:
        """The cluster as the platform creates it; ``{{…}}`` alone in a string becomes what the user chose."""
        image = self.ids.image(row.image)
        role = self.appcenter.role
        chosen = {key: f"{{{{cluster.{role}.{key}}}}}" for key in self._node_properties(row) if key != "volume_size"}
        upgrades = self.ids.upgrades_from(name)
        topology = {key: f"{{{{cluster.{key}}}}}" for key in self.appcenter.form.cluster}
        return {
            **topology,
            **({"upgrade_policy": upgrades} if upgrades else {}),
            "nodes": [
                {
                    "container": {"type": self.appcenter.container, "image": image.id, "zone": image.zone},
                    **chosen,
                    "volume": {"size": f"{{{{cluster.{role}.volume_size}}}}", "mount_point": self.user_data},
                    "user_access": True,
                    **({"services": self.services} if self.services else {}),
                }
            ],
            "env": {key: f"{{{{env.{key}}}}}" for key in self.appcenter.form.env},
            "advanced_actions": list(self.appcenter.advanced_actions),
            "health_check": self.appcenter.health_check,
            **({"monitor": self._monitor()} if self._has_monitor(row) else {}),
        }

    @staticmethod
    def _has_monitor(row: Row) -> bool:
        return "gpu" in row.form

    def _monitor(self) -> dict[str, Any]:
        monitor = self.appcenter.monitor
        return {
            "enable": True,
            "cmd": monitor.cmd,
            "items": {name: {"unit": item.unit, **monitor.item} for name, item in monitor.items.items()},
            "groups": {name: group.items for name, group in monitor.groups.items()},
            "display": list(monitor.groups),
            "alarm": monitor.alarm,
        }

    def _locale(self, row: Row, language: str) -> dict[str, str]:
        """Every text that a user sees, by the key under which the platform looks for it."""
        appcenter = self.appcenter
        form, groups, monitor = appcenter.form, appcenter.groups, appcenter.monitor
        properties = [*form.cluster.values(), *self._node_properties(row).values(), *form.env.values()]
        own = [groups.cluster, groups.node, groups.node_description, groups.env]
        own += [text for item in properties for text in (item.label, item.description)]
        keyed = [(text.get("en", ""), text) for text in own]
        keyed += list(appcenter.advanced_actions.items())
        if self._has_monitor(row):
            keyed += [(name, item.text) for name, item in monitor.items.items()]
            keyed += [(name, group.text) for name, group in monitor.groups.items()]
        keyed += [(f"err_code{code}", text) for code, text in appcenter.errors.items()]
        keyed.append(("notice_when_upgrade", appcenter.notice_when_upgrade))
        locale: dict[str, str] = {}
        for key, text in keyed:
            words = text.get(language)
            if not words or locale.setdefault(key, words) != words:
                raise KilnError(
                    f"{key!r} has {'two texts' if words else 'no text'} in {language}",
                    where=self.table.name,
                    fix="give it one text in each language",
                )
        return locale


def _property(key: str, item: Property, chosen: dict[str, Any] | None = None) -> dict[str, Any]:
    settings = {**item.settings, **(chosen or {})}
    return {
        "key": key,
        "label": item.label["en"],
        "description": item.description["en"],
        "type": settings.pop("type"),
        **settings,
    }


def _group(key: str, text: Text, properties: list[dict[str, Any]]) -> dict[str, Any]:
    return {"key": key, "description": text["en"], "type": "array", "properties": properties}


def _dump(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def archive(files: Files) -> bytes:
    """``files`` as a .tar.gz that depends on nothing else: sorted, without times and owners."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as stream:
        for name, text in sorted(files.items()):
            content = text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o644
            stream.addfile(member, io.BytesIO(content))
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as zipped:
        zipped.write(tar.getvalue())
    return packed.getvalue()


def write(content: bytes, path: Path) -> None:
    """Writes ``path`` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(content)
    unfinished.replace(path)
