"""Whatever a table, a playbook or a role holds by mistake is told in one sentence: never a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from kiln import channel, matrix, stages, tables, wheels
from kiln import plan as planning
from kiln.errors import KilnError
from kiln.matrix import Matrix
from kiln.plan import Planner
from kiln.project import Project
from kiln.store import Store
from kiln.tables import Keys, Table

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    "node.yml",
    "stages.yml",
    "locks/wheels.yml",
    *(
        f"{folder}/{path.name}"
        for folder in ("channels", "components")
        for path in (ROOT / "images" / folder).iterdir()
    ),
    f"releases/{max(path.name for path in (ROOT / 'images' / 'releases').iterdir())}",
]

EMPTY: tuple[Any, ...] = (None, [], {}, "")

ALIKE = ("artifacts", "groups", "versions", "images", "variables")
"""Keys below which every entry has the same form: the first tells for all."""


def places(data: Any, keys: Keys = ()) -> Iterator[Keys]:
    """The place of every value in ``data``, one of each form."""
    if isinstance(data, dict):
        names = list(data)[:1] if keys and keys[-1] in ALIKE else list(data)
        for name in names:
            yield (*keys, name)
            yield from places(data[name], (*keys, name))
    elif isinstance(data, list):
        for index in range(len(data) if keys == ("stages",) else min(len(data), 1)):
            yield (*keys, index)
            yield from places(data[index], (*keys, index))


def plan(project: Project, name: str) -> None:
    """Plans a CPU and a GPU image of the newest release."""
    made = Matrix(project, name, lambda version: True)
    release = made.releases()[-1]
    chosen = {made.resolve(release, image).device: (release, image) for image in made.images(release)}
    Planner(project, Store(project.store), made).plan(chosen.values(), frozenset())


@pytest.mark.parametrize("file", FILES)
def test_no_value_of_a_table_leads_to_a_traceback(project: Project, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    known: dict[Path, Table] = {}

    def read(path: Path, root: Path) -> Table:
        if path not in known:
            known[path] = tables.read_table(path, root)
        return known[path]

    for module in (channel, matrix, stages, wheels):
        monkeypatch.setattr(module, "read_table", read)
    monkeypatch.setattr(planning, "playbook_files", lru_cache(stages.playbook_files))
    path = project.images / file
    good = read(path, project.root)
    name = path.stem if file.startswith("channels/") else "registry"
    plan(project, name)
    for *keys, last in places(good.data):
        for value in EMPTY:
            data = deepcopy(good.data)
            holder = data
            for key in keys:
                holder = holder[key]
            holder[last] = value
            known[path] = Table(path, good.name, data, good.lines)
            try:
                plan(project, name)
            except KilnError:
                continue
            except Exception as error:
                raise AssertionError(f"{file}: {(*keys, last)} = {value!r}") from error


PLAYBOOK, TASKS, META = "playbooks/keras.yml", "roles/jupyter/tasks/main.yml", "roles/jupyter/meta/main.yml"
ROLES = [
    *((file, text) for file in (PLAYBOOK, TASKS, META) for text in ("x", "[x]", "a: [", "- 2018-13-01", "\udcff")),
    *((PLAYBOOK, f"- roles: {roles}") for roles in ("x", "[[]]", "[{}]", "[1]", "['']", "[../a]", "[{role: [a]}]")),
    *((TASKS, f"- {key}: x") for key in ("block", "rescue", "always")),
    *((TASKS, f"- {key}: {{}}") for key in ("include_role", "import_role", "ansible.builtin.include_role")),
    *((META, f"dependencies: {text}") for text in ("x", "[[]]", "[{}]")),
]


@pytest.mark.parametrize(("file", "text"), ROLES)
def test_a_playbook_or_role_that_is_none_is_refused(project: Project, file: str, text: str) -> None:
    (project.root / file).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(KilnError, match=rf"^{re.escape(file)}") as refused:
        plan(project, "registry")
    assert refused.value.fix


STAGES: list[tuple[str, dict[str, Any], str]] = [
    ("itself as a product", {"products": ["{{ 'added' }}"]}, "stage added needs itself"),
    ("its own chain", {"products": ["{{ 'seal' }}"]}, "stage seal needs itself"),
    ("an image as a product", {"products": ["{{ 'base' }}"]}, "base is taken for a product; name a build stage"),
    ("no stage", {"products": ["{{ 'nobody' }}"]}, "stage nobody does not exist"),
    ("another device's", {"products": ["{{ 'nvidia-repository' }}"]}, "is not made for cpu images"),
    ("what it serves is no product", {"serve": {"host.test": "{{ 'agent-build' }}"}}, "stage added serves agent-build"),
    ("a project of no group", {"artifacts": {"tools": "tools/nope"}}, "needs nope, which artifact group tools lacks"),
    (
        "a folder",
        {"variables": {"a": ["/run/kiln/artifacts/tools"]}},
        "names /run/kiln/artifacts/tools, which it is not",
    ),
    (
        "a file",
        {"artifacts": {"tools": "tools"}, "variables": {"a": {"b": "/run/kiln/artifacts/tools/nope.whl"}}},
        "names /run/kiln/artifacts/tools/nope.whl, which it is not given; list it under the stage's artifacts",
    ),
    ("a product", {"variables": {"a": "/run/kiln/products/caffe-build/x"}}, "list it under the stage's products"),
    ("nothing to stand on", {"parent": ""}, "parent must not be empty"),
]


@pytest.mark.parametrize(("name", "keys", "says"), STAGES, ids=[row[0] for row in STAGES])
def test_a_stage_that_asks_for_what_cannot_be_is_refused(
    project: Project, name: str, keys: dict[str, Any], says: str
) -> None:
    path = project.images / "stages.yml"
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    final = data["stages"].pop()
    final["products"] = [*final.get("products", []), "added"]
    data["stages"] += [{"name": "added", "kind": "build", "parent": "base", **keys}, final]
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    (project.playbooks / "added.yml").write_text("[]\n", encoding="utf-8")
    with pytest.raises(KilnError, match=re.escape(says)) as refused:
        plan(project, "registry")
    assert str(refused.value).startswith("images/stages.yml:")


def test_a_group_without_a_wheel_is_refused(project: Project) -> None:
    made = Matrix(project, "registry")
    row = made.resolve(made.releases()[-1], "cpu").components["keras"]
    assert row.group is not None
    made.groups[row.group] = tuple(artifact for artifact in made.groups["qsctl"] if not artifact.file.endswith(".whl"))
    with pytest.raises(KilnError, match="no wheel of keras"):
        made.resolve(made.releases()[-1], "cpu")
