"""Resolves one image of a release on a channel, and refuses what cannot work before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from kiln.artifact import Artifact
from kiln.channel import SETTINGS, NoSettings, read_channel
from kiln.components import COMPONENT_TYPES, CudaVersion, PythonVersion, Strict
from kiln.errors import KilnError
from kiln.host_python import find_host_python
from kiln.image_spec import Component, ImageSpec, Node, Release, Row
from kiln.project import Project
from kiln.tables import Table, read_table
from kiln.templating import render
from kiln.wheels import read_lock, tags


class ComponentTable(Strict, frozen=True):
    """The shape of a component table; its rows are those of COMPONENT_TYPES."""

    component: str
    versions: dict[Any, Any]


def read_components(project: Project) -> tuple[dict[str, Table], dict[str, dict[str, Any]]]:
    """The component tables, and component to version to row."""
    tables: dict[str, Table] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, kind in COMPONENT_TYPES.items():
        table = read_table(project.images / "components" / f"{name}.yml", project.root)
        says = table.convert(ComponentTable).component
        if says != name:
            raise KilnError(f"says it is component {says}", where=table.where("component"), fix=f"write {name}")
        tables[name] = table
        facts[name] = dict(table.entries(kind, "versions"))
    return tables, facts


def _with_pythons(group: tuple[Artifact, ...], pythons: tuple[PythonVersion, ...]) -> tuple[Artifact, ...]:
    """``group`` with the Pythons that install each wheel: the lock says them, of a channel's own wheels the tags do."""
    able = {python.series: tags(python) for python in pythons}
    return tuple(
        replace(
            artifact,
            pythons=tuple(series for series in able if parse_wheel_filename(artifact.file)[3] & able[series]),
        )
        if artifact.file.endswith(".whl") and not artifact.pythons
        else artifact
        for artifact in group
    )


class Matrix:
    """All tables of a project on one channel."""

    def __init__(
        self,
        project: Project,
        channel: str,
        host_has: Callable[[str], bool] = lambda version: bool(find_host_python(version)),
    ) -> None:
        """``host_has`` tells whether this machine has a Python of exactly that version to pack."""
        self.project = project
        self.host_has = host_has
        self.channel = read_channel(_named(project, "channels", channel, "channel"), project.root)
        self.node = read_table(project.images / "node.yml", project.root).convert(Node)
        self.tables, self.facts = read_components(project)
        self.groups = {**read_lock(project), **self.channel.groups}
        self._check_cuda()
        self._check_channel()

    def releases(self) -> list[str]:
        """Every release that has a table, the newest last."""
        names = [path.stem for path in (self.project.images / "releases").glob("*.yml")]
        return sorted(
            names, key=lambda name: [(int(part) if part.isdecimal() else 0, part) for part in name.split(".")]
        )

    def release(self, name: str) -> tuple[Table, Release]:
        """The table of one release; raises KilnError for a release that does not exist."""
        path = _named(self.project, "releases", name, "release")
        table = read_table(path, self.project.root)
        release = table.convert(Release)
        if release.release != name:
            raise KilnError(f"says it is release {release.release}", where=table.where("release"), fix=f"write {name}")
        for older in release.upgrades_from:
            if not (self.project.images / "releases" / f"{older}.yml").is_file():
                raise KilnError(
                    f"upgrades_from names release {older}, which has no table",
                    where=table.where("upgrades_from"),
                    fix=f"add images/releases/{older}.yml or drop it",
                )
            order = self.releases()
            if order.index(older) >= order.index(name):
                raise KilnError(
                    f"upgrades_from names release {older}, which is not older",
                    where=table.where("upgrades_from"),
                    fix="drop it",
                )
        return table, release

    def images(self, release: str) -> list[str]:
        """The images of one release, in the order of its table."""
        return list(self.release(release)[1].images)

    def resolve(self, release_name: str, image: str) -> ImageSpec:
        """One image, checked; raises KilnError for a row that cannot work."""
        table, release = self.release(release_name)
        rows = table.entries(Row, "images")
        if image not in rows:
            raise KilnError(
                f"image {image} is not in release {release_name}",
                where=table.where("images"),
                fix=f"choose one of {', '.join(rows)}",
            )
        row = rows[image]
        place = _Place(table, image)
        pythons = self._pythons(row, place)
        self._check_device(row, place)
        components = {
            name: self._component(name, version, row, image, place) for name, version in row.versions().items()
        }
        components["python"] = self._python_component(row, place)
        self._check_stack(row, place)
        groups = dict(self.groups)
        for name, part in components.items():
            if part.group is None:
                continue
            if part.group not in groups:
                raise KilnError(
                    f"{name} {part.installed} needs artifact group {part.group}, "
                    f"which channel {self.channel.name} lacks",
                    where=place.where(name),
                    fix=f"add the group to {self.channel.table.name}, or lock it with kiln artifacts lock",
                )
            self._check_wheels(part, pythons, groups[part.group], place)
            groups[part.group] = _with_pythons(groups[part.group], pythons)
        return ImageSpec(
            release=release_name,
            image=image,
            row=row,
            node=self.node,
            channel=self.channel,
            components=dict(sorted(components.items())),
            pythons=pythons,
            groups=groups,
            tables=msgspec.to_builtins(self.facts),
            login=release.login,
        )

    def _pythons(self, row: Row, place: _Place) -> tuple[PythonVersion, ...]:
        pythons = tuple(self._fact("python", version, place) for version in row.python)
        series = [python.series for python in pythons]
        if not series or len(set(series)) != len(series):
            raise KilnError(
                f"python lists {', '.join(row.python) or 'nothing'}",
                where=place.where("python"),
                fix="list each series once",
            )
        return pythons

    def _fact(self, name: str, version: str, place: _Place) -> Any:
        known = self.facts[name]
        if version not in known:
            raise KilnError(
                f"{name} {version} is in no component table",
                where=place.where(name),
                fix=f"add it to {self.tables[name].name}, or choose one of {', '.join(known)}",
            )
        return known[version]

    def _component(self, name: str, version: str, row: Row, image: str, place: _Place) -> Component:
        facts = self._fact(name, version, place)
        substitution = self.channel.substitution(name, version, row.device)
        installed = substitution.by if substitution and substitution.by else version
        if installed != version:
            facts = self._fact(name, installed, _Place(self.channel.table, None))
        delivery = self.channel.components.get(name)
        if delivery is None:
            raise KilnError(
                f"channel {self.channel.name} does not say where {name} comes from",
                where=self.channel.table.where("components"),
                fix=f"add components.{name}",
            )
        where = self.channel.table.where("components", name)
        names = {
            "version": version,
            "installed": installed,
            "image": image,
            "device": row.device,
            "cuda": row.cuda,
            "mkl": row.mkl,
            "tables": self.facts,
            **msgspec.to_builtins(facts),
        }
        group = str(render(delivery.group, names, where)) if delivery.group else None
        settings = msgspec.to_builtins(
            self.channel.table.fit(
                render(delivery.settings, names, where), SETTINGS.get(name, NoSettings), "components", name, "settings"
            )
        )
        if group is None and not settings.get("stand_in"):
            raise KilnError(f"{name} comes from no artifact group", where=where, fix="add its group")
        return Component(
            name=name,
            version=version,
            installed=installed,
            verdict="substituted" if substitution else "exact",
            why=substitution.why if substitution else "",
            source=delivery.source,
            group=group,
            facts=msgspec.to_builtins(facts),
            settings=settings,
        )

    def _python_component(self, row: Row, place: _Place) -> Component:
        delivery = self.channel.components.get("python")
        if delivery is None:
            raise KilnError(
                f"channel {self.channel.name} does not say where python comes from",
                where=self.channel.table.where("components"),
                fix="add components.python",
            )
        where = self.channel.table.where("components", "python")
        if delivery.group is None:
            raise KilnError("python comes from no artifact group", where=where, fix="add its group")
        self.channel.table.fit(delivery.settings, NoSettings, "components", "python", "settings")
        versions = ", ".join(row.python)
        group, source = delivery.group, delivery.source
        packed = [artifact.path for artifact in self.groups.get(group, ()) if artifact.origin == "host"]
        if delivery.fallback and not all(self.host_has(version) for version in packed):
            group, source = delivery.fallback.group, delivery.fallback.source
        return Component("python", versions, versions, "exact", "", source, group, {}, {})

    def _check_device(self, row: Row, place: _Place) -> None:
        gpu_only = {"cuda": row.cuda, "cudnn": row.cudnn, "driver": row.driver}
        for name, value in gpu_only.items():
            if row.device == "gpu" and value is None:
                raise KilnError(
                    f"gpu image without {name}", where=place.where(), fix=f"add {name}, or make it a cpu image"
                )
            if row.device == "cpu" and value is not None:
                raise KilnError(f"cpu image with {name} {value}", where=place.where(name), fix=f"remove {name}")
        caffe: Any = self._fact("caffe", row.caffe, place)
        if row.device not in caffe.devices:
            raise KilnError(
                f"Caffe variant {row.caffe} runs on {' and '.join(caffe.devices)}, this image is for {row.device}",
                where=place.where("caffe"),
                fix="choose a variant for this device",
            )
        if (caffe.blas == "mkl") != (row.mkl is not None):
            need = "needs MKL" if caffe.blas == "mkl" else "does not use MKL"
            raise KilnError(
                f"Caffe variant {row.caffe} {need}",
                where=place.where("mkl" if row.mkl else "caffe"),
                fix="name an mkl version" if caffe.blas == "mkl" else "remove mkl",
            )

    def _check_stack(self, row: Row, place: _Place) -> None:
        if row.cuda is None or row.cudnn is None or row.driver is None:
            return
        cuda: Any = self._fact("cuda", row.cuda, place)
        cudnn: Any = self._fact("cudnn", row.cudnn, place)
        if _numbers(row.driver, place.where("driver")) < _numbers(
            cuda.driver, self.tables["cuda"].where("versions", row.cuda)
        ):
            raise KilnError(
                f"driver {row.driver} is older than the {cuda.driver} that CUDA {row.cuda} needs",
                where=place.where("driver"),
                fix=f"raise driver to {cuda.driver}, or choose an older CUDA",
            )
        if row.cuda not in cudnn.builds:
            raise KilnError(
                f"cuDNN {row.cudnn} is not built for CUDA {row.cuda}, only for {', '.join(cudnn.builds)}",
                where=place.where("cudnn"),
                fix="choose another cuDNN or CUDA",
            )

    def _check_wheels(
        self, part: Component, pythons: tuple[PythonVersion, ...], group: tuple[Artifact, ...], place: _Place
    ) -> None:
        """Every Python finds a wheel of the component that it can load, and no wheel is for another interpreter."""
        supported = {python.series: tags(python) for python in pythons}
        every_tag = frozenset().union(*supported.values())
        fits: set[str] = set()
        where = self._group_where(part)
        wheels = [artifact for artifact in group if artifact.file.endswith(".whl")]
        for artifact in wheels:
            try:
                project, version, _, offered = parse_wheel_filename(artifact.file)
            except InvalidWheelFilename as error:
                raise KilnError(f"{error}", where=where, fix="name the file as the wheel's own metadata does") from None
            if not offered & every_tag:
                raise KilnError(
                    f"wheel {artifact.file} fits none of the interpreters {', '.join(p.abi for p in pythons)}",
                    where=where,
                    fix="take the wheel of the interpreter's own ABI (PEP 425)",
                )
            if project == canonicalize_name(_distribution(part.name)):
                if str(version) != part.installed and str(version.base_version) != part.installed:
                    raise KilnError(
                        f"wheel {artifact.file} is not {part.name} {part.installed}",
                        where=where,
                        fix="put it in the group of its own version",
                    )
                fits |= {
                    series
                    for series, able in supported.items()
                    if offered & able and series in (artifact.pythons or supported)
                }
        if part.name in _WHEEL_COMPONENTS:
            for python in pythons:
                if python.series not in fits:
                    raise KilnError(
                        f"no wheel of {part.name} {part.installed} is for Python {python.series} ({python.abi})",
                        where=where,
                        fix=f"add one to group {part.group}",
                    )

    def _group_where(self, part: Component) -> str:
        if part.group in self.channel.groups:
            return self.channel.table.where("artifacts", str(part.group))
        return f"images/locks: group {part.group}"

    def _check_cuda(self) -> None:
        """What an image installs, and what that depends on, is among the toolkit's packages."""
        for version, row in self.facts["cuda"].items():
            assert isinstance(row, CudaVersion)
            known = {package.package for package in row.packages}
            for name in (*row.install, *(need for package in row.packages for need in package.depends)):
                if name not in known:
                    raise KilnError(
                        f"CUDA {version} needs {name}, which is none of its packages",
                        where=self.tables["cuda"].where("versions", version, "install"),
                        fix="list it under packages, or drop it",
                    )

    def _check_channel(self) -> None:
        table = self.channel.table
        known = {*COMPONENT_TYPES, "base"}
        for index, entry in enumerate(self.channel.substitutions):
            where = table.where("substitutions", index)
            if entry.component not in known:
                raise KilnError(
                    f"substitution of {entry.component}, which is no component",
                    where=where,
                    fix=f"name one of {', '.join(sorted(known))}",
                )
            if not entry.instead_of:
                raise KilnError(
                    f"substitution of {entry.component} replaces nothing", where=where, fix="fill instead_of"
                )
            if entry.by is not None and entry.by in entry.instead_of:
                raise KilnError(
                    f"{entry.component} {entry.by} stands in for itself", where=where, fix="remove it from instead_of"
                )
            for other in self.channel.substitutions[:index]:
                devices = {entry.device, other.device}
                if (
                    other.component == entry.component
                    and set(other.instead_of) & set(entry.instead_of)
                    and (None in devices or len(devices) == 1)
                ):
                    raise KilnError(f"{entry.component} is substituted twice", where=where, fix="keep one entry")
        for name in self.channel.components:
            if name not in COMPONENT_TYPES:
                raise KilnError(
                    f"components names {name}, which is no component",
                    where=table.where("components", name),
                    fix=f"name one of {', '.join(sorted(COMPONENT_TYPES))}",
                )


# Components that live in the virtualenvs: each Python needs a wheel of them.
_WHEEL_COMPONENTS = {"tensorflow": "tensorflow", "pytorch": "torch", "keras": "Keras"}


def _distribution(component: str) -> str:
    return _WHEEL_COMPONENTS.get(component, component)


def _numbers(version: str, where: str) -> tuple[int, ...]:
    parts = version.split(".")
    if not all(part.isdecimal() for part in parts):
        raise KilnError(f"{version!r} is not a dotted number", where=where, fix="write numbers with dots between them")
    return tuple(int(part) for part in parts)


def _named(project: Project, folder: str, name: str, kind: str) -> Path:
    path = project.images / folder / f"{name}.yml"
    if "/" in name or not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in (project.images / folder).glob("*.yml")))
        raise KilnError(
            f"{kind} {name!r} does not exist",
            where=f"images/{folder}",
            fix=f"choose one of {known}" if known else "add it",
        )
    return path


@dataclass(frozen=True)
class _Place:
    """Where a row stands, for messages."""

    table: Table
    image: str | None

    def where(self, key: str = "") -> str:
        if self.image is None:
            return self.table.where(key)
        return self.table.where("images", self.image, key) if key else self.table.where("images", self.image)
