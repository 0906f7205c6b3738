"""A tiny project for the tests of baking: a few stages that take seconds, on a real Debian base.

Run as a script it bakes that project, so that a test can kill it: ``bake_project.py FOLDER STORE [--json]``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from kiln.bake import bake
from kiln.bootstrap import Base, lock_index
from kiln.engine import STAGES, cached_stages, stage_tags
from kiln.errors import KilnError
from kiln.lock import bake_lock
from kiln.plan import Plan, Stage
from kiln.progress import choose_reporter
from kiln.project import Project
from kiln.stages import Kind, file_digest, playbook_files
from kiln.store import Store

CHECKOUT = Path(__file__).resolve().parent.parent
BASE = {
    "kind": "mmdebstrap",
    "distribution": "debian-12",
    "suite": "bookworm",
    "suites": ["bookworm", "bookworm-updates", "bookworm-security"],
    "components": ["main", "contrib", "non-free"],
    "include": ["python3", "python3-apt", "sudo", "ca-certificates"],
}


@dataclass(frozen=True)
class Row:
    """A stage of the tiny project: the tasks of its only role, as YAML."""

    name: str
    tasks: str
    kind: Kind = "image"
    parent: str = "bootstrap"
    products: tuple[str, ...] = ()
    serve: tuple[tuple[str, str], ...] = ()
    variables: tuple[tuple[str, Any], ...] = ()
    tag: str | None = None


def write_project(root: Path, store: Path, rows: tuple[Row, ...]) -> Project:
    """Writes roles and playbooks for ``rows``, and the rows themselves for the script below."""
    project = Project(root, store)
    for folder in (project.roles, project.playbooks, project.images):
        folder.mkdir(parents=True, exist_ok=True)
    if not project.templates.exists():
        shutil.copytree(CHECKOUT / "templates" / "packer", project.templates / "packer")
        shutil.copy2(CHECKOUT / "ansible.cfg", root)
    for row in rows:
        if row.kind == "bootstrap":
            continue
        tasks = project.roles / row.name / "tasks"
        tasks.mkdir(parents=True, exist_ok=True)
        (tasks / "main.yml").write_text(row.tasks, encoding="utf-8")
        play = [{"name": row.name, "hosts": "all", "gather_facts": False, "roles": [row.name]}]
        (project.playbooks / f"{row.name}.yml").write_text(json.dumps(play), encoding="utf-8")
    (project.images / "rows.json").write_text(json.dumps([vars(row) for row in rows]), encoding="utf-8")
    return project


def seed_store(folder: Path, seed: Path) -> Store:
    """A store in ``folder`` with the apt index, and the base image in the engine; made once under ``seed``."""
    with bake_lock(seed / "seed.lock", lambda holder: None):
        if not (seed / "store" / "apt").is_dir():
            project = write_project(seed / "project", seed / "store", ())
            store = Store(project.store)
            lock_index(store, Base.of(BASE))
            bake(make_plan((), project, store), project, store, reporter=choose_reporter(as_json=True))
    folder.mkdir(parents=True)
    for name in ("apt", "locks.json"):
        subprocess.run(["cp", "-a", str(seed / "store" / name), str(folder / name)], check=True)
    return Store(folder)


def remove_images(store: Store) -> None:
    """Removes the images that were baked with ``store``, by all their names."""
    tags = stage_tags()
    for record in (store.root / "records").glob("*.json"):
        if record.stem in tags:
            names = [f"{STAGES}:{record.stem}", *tags[record.stem]]
            subprocess.run(["docker", "rmi", "--force", *names], check=True, stdout=subprocess.DEVNULL)


def read_rows(project: Project) -> tuple[Row, ...]:
    """The rows that ``write_project`` left."""
    return msgspec.json.decode((project.images / "rows.json").read_bytes(), type=tuple[Row, ...])


def make_plan(rows: tuple[Row, ...], project: Project, store: Store) -> Plan:
    """The plan for ``rows``; a digest covers what the row says, and its parents'.

    A first row of kind bootstrap adds to the base's variables.
    """
    present = cached_stages()
    base = BASE | (dict(rows[0].variables) if rows and rows[0].kind == "bootstrap" else {})
    stages: dict[str, Stage] = {"bootstrap": _stage(project, "bootstrap", "bootstrap", base, None)}
    for row in rows:
        if row.kind == "bootstrap":
            continue
        stage = _stage(project, row.name, row.kind, dict(row.variables), stages[row.parent].digest, row.tasks)
        stages[row.name] = replace(
            stage,
            products=tuple((name, stages[name].digest) for name in row.products),
            serve=row.serve,
            tag=row.tag,
            labels={"org.deeplearning.release": '0 "quoted" $HOME'} if row.tag else {},
        )
    for name, stage in stages.items():
        there = store.product(stage.digest) is not None if stage.kind == "build" else stage.digest in present
        stages[name] = replace(stage, state="cached" if there else "missing")
    return Plan(tuple(stages.values()))


def _stage(
    project: Project, name: str, kind: Kind, variables: dict[str, Any], parent: str | None, tasks: str = ""
) -> Stage:
    inputs = {"variables": json.dumps(variables), "parent": parent or "", "tasks": tasks, "name": name}
    playbook = project.playbooks / f"{name}.yml"
    templates = [project.relative(path) for path in (project.templates / "packer").iterdir()]
    return Stage(
        name=name,
        kind=kind,
        digest=hashlib.sha256(json.dumps(inputs).encode()).hexdigest(),
        parent=parent,
        playbook=playbook,
        interpreter="/usr/bin/python3",
        variables=variables,
        artifacts=(),
        products=(),
        serve=(),
        inputs=inputs,
        files={
            **(playbook_files(project, playbook) if parent else {}),
            **{name: file_digest(project.root / name) for name in templates},
        },
    )


def main() -> int:
    """Bakes the project in the folder and store that the command line names."""
    project = Project(Path(sys.argv[1]), Path(sys.argv[2]))
    store = Store(project.store)
    try:
        plan = make_plan(read_rows(project), project, store)
        bake(plan, project, store, reporter=choose_reporter(as_json="--json" in sys.argv))
    except KilnError as error:
        print(f"kiln: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
