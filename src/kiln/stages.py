"""The stage table, and the files of a checkout that decide what a stage's playbook does."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from kiln.components import Device, Strict, Text
from kiln.errors import KilnError
from kiln.project import Project
from kiln.tables import SAFE_LOADER, Table, read_table

Kind = Literal["bootstrap", "image", "build"]


class StageRow(Strict, frozen=True):
    """One row of ``images/stages.yml``.

    A stage without ``parent`` stands on the row of the image chain before it; one with ``parent`` is beside the chain:
    a tool or build stage, made only when something consumes its product.
    """

    name: Text
    kind: Kind = "image"
    parent: Text | None = None
    device: Device | None = None
    variables: dict[str, Any] = {}
    artifacts: dict[str, Text] = {}
    """Folder under /run/kiln/artifacts to artifact group, or to one project of it (``tools/numpy``)."""
    products: list[Text] = []
    serve: dict[str, Text] = {}
    """Host name that the stage's apt reaches from a build stage's product instead."""


class StagesTable(Strict, frozen=True):
    """The shape of the file; each row is then read by itself, for its line."""

    stages: list[Any]


class StageTable:
    """``images/stages.yml``, its references checked."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.table: Table = read_table(project.images / "stages.yml", project.root)
        self.rows: dict[str, StageRow] = {}
        for index in range(len(self.table.convert(StagesTable).stages)):
            row = self.table.convert(StageRow, "stages", index)
            self._check(row, index)
            self.rows[row.name] = row

    def where(self, name: str) -> str:
        """``file:line`` of a stage's row."""
        return self.table.where("stages", list(self.rows).index(name))

    def chain(self, device: Device) -> list[StageRow]:
        """The stages of an image for ``device``, first to last."""
        return [row for row in self.rows.values() if row.parent is None and row.device in (None, device)]

    def _check(self, row: StageRow, index: int) -> None:
        where = self.table.where("stages", index)
        if row.name in self.rows:
            raise KilnError(f"stage {row.name} stands twice", where=where, fix="rename one")
        if (row.kind == "bootstrap") != (index == 0):
            raise KilnError(
                f"stage {row.name} is of kind {row.kind}", where=where, fix="start with the one bootstrap stage"
            )
        if row.kind == "build" and row.parent is None:
            raise KilnError(f"build stage {row.name} names no parent", where=where, fix="name the stage it runs in")
        # A name that an expression gives is checked when the stage is planned.
        parent = row.parent if row.parent and "{{" not in row.parent else None
        products = [name for name in row.products if "{{" not in name]
        served = [name for name in row.serve.values() if "{{" not in name]
        for name in (*([parent] if parent else []), *products, *served):
            if name not in self.rows:
                raise KilnError(
                    f"stage {row.name} names {name}, which is no earlier stage",
                    where=where,
                    fix="list it before this one",
                )
        for name in products:
            if self.rows[name].kind != "build":
                raise KilnError(f"stage {row.name} takes a product of {name}", where=where, fix="name a build stage")
        for name in served:
            if name not in row.products:
                raise KilnError(f"stage {row.name} serves {name}", where=where, fix="list it under products too")
        if parent and self.rows[parent].kind == "build":
            raise KilnError(f"stage {row.name} stands on {parent}", where=where, fix="name an image stage")
        if row.kind != "bootstrap" and not self.playbook(row).is_file():
            raise KilnError(
                f"stage {row.name} has no playbook",
                where=where,
                fix=f"write playbooks/{row.name}.yml or drop the stage",
            )

    def playbook(self, row: StageRow) -> Path:
        """The playbook that makes the stage."""
        return self.project.playbooks / f"{row.name}.yml"


def playbook_files(project: Project, playbook: Path) -> dict[str, str]:
    """Relative path to digest of ``playbook``, every file of the roles it runs, and ``ansible.cfg``.

    Roles that a role depends on or includes count too. Raises KilnError for a role that does not exist, and for one
    that is included by a name only known at run time: its files could not be part of a digest.
    """
    config = project.root / "ansible.cfg"
    files = {project.relative(path): file_digest(path) for path in (playbook, config)}
    for role in _roles(project, playbook):
        files.update(_tree(project, project.roles / role))
    return dict(sorted(files.items()))


def _roles(project: Project, playbook: Path) -> list[str]:
    where = project.relative(playbook)
    pending = [
        (_role_name(entry, where), playbook)
        for play in _mappings(_plain_yaml(playbook, project), "a playbook", where)
        for entry in _items(play.get("roles"), "roles", where)
    ]
    found: list[str] = []
    while pending:
        role, source = pending.pop(0)
        if role in found:
            continue
        folder = project.roles / role
        if "{{" in role:
            raise KilnError(
                f"role {role} is known only at run time",
                where=project.relative(source),
                fix="include each role by its name",
            )
        if not folder.is_dir():
            raise KilnError(
                f"role {role} does not exist", where=project.relative(source), fix=f"write roles/{role} or drop it"
            )
        found.append(role)
        meta = folder / "meta" / "main.yml"
        if meta.is_file():
            where = project.relative(meta)
            (about,) = _mappings([_plain_yaml(meta, project)], "a role's meta", where)
            pending += [
                (_role_name(entry, where), meta) for entry in _items(about.get("dependencies"), "dependencies", where)
            ]
        for tasks in sorted((folder / "tasks").glob("*.yml")):
            pending += [(name, tasks) for name in _included(_plain_yaml(tasks, project), project.relative(tasks))]
    return found


def _included(tasks: Any, where: str) -> list[str]:
    """The roles that a list of tasks includes or imports, blocks too."""
    found: list[str] = []
    for task in _mappings(tasks, "a list of tasks", where):
        for key, value in task.items():
            if key in ("block", "rescue", "always"):
                found += _included(value, where)
            elif str(key).rpartition(".")[2] in ("include_role", "import_role"):
                found.append(_role_name(value, where))
    return found


def _items(value: Any, what: str, where: str) -> list[Any]:
    """``value`` as a list; nothing counts as an empty one, as for Ansible."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise KilnError(f"{what} must be a list", where=where, fix="write an entry a line, each with a dash")
    return value


def _mappings(value: Any, what: str, where: str) -> list[dict[Any, Any]]:
    items = _items(value, what, where)
    if not all(isinstance(item, dict) for item in items):
        raise KilnError(f"{what} must hold mappings", where=where, fix="write key: value lines")
    return items


def _tree(project: Project, folder: Path) -> dict[str, str]:
    files: dict[str, str] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in names:
            path = Path(place) / name
            files[project.relative(path)] = file_digest(path)
    return files


def file_digest(path: Path) -> str:
    """sha256 over a file's content (a link's target) and whether it may be executed."""
    if path.is_symlink():
        return hashlib.sha256(b"link " + os.fsencode(path.readlink())).hexdigest()
    mode = b"x " if os.access(path, os.X_OK) else b"- "
    try:
        return hashlib.sha256(mode + path.read_bytes()).hexdigest()
    except OSError as error:
        raise KilnError(f"cannot be read ({error.strerror})", where=str(path), fix="make it readable") from None


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    loader = SAFE_LOADER(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _plain_yaml(path: Path, project: Project) -> Any:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise KilnError(
            f"cannot be read ({error})", where=project.relative(path), fix="make it a readable UTF-8 file"
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2018-13-01, which YAML takes for a date
        mark = getattr(error, "problem_mark", None)
        raise KilnError(
            f"is not valid YAML ({getattr(error, 'problem', error)})",
            where=f"{project.relative(path)}:{mark.line + 1 if mark else 1}",
            fix="correct the line",
        ) from None


def _role_name(entry: Any, where: str) -> str:
    name = (entry.get("role") or entry.get("name")) if isinstance(entry, dict) else entry
    if not isinstance(name, str) or not name or "/" in name:
        raise KilnError(f"{entry!r} names no role", where=where, fix="name one of the folders under roles/")
    return name
