"""The samples that the guide promises: all there, the user's own, readable by both Pythons."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from kiln.project import find_project
from kiln.tables import read_table
from kiln.templating import render

COMPILE = "import sys; compile(open(sys.argv[1]).read(), sys.argv[1], 'exec')"

SHORTCUTS = ("tensorflow", "keras")
"""Source: the user guide enters them as folders of the user's home."""


def promised() -> list[str]:
    """Paths of the samples, as images/guide.yml promises them."""
    project = find_project()
    node = read_table(project.images / "node.yml", project.root).data
    (command,) = read_table(project.images / "guide.yml", project.root).data["promises"]["samples"]["commands"]
    return [render(path, {"node": node}, "images/guide.yml") for path in command["makes"]]


def allow_changes_of(user: str, wrong: object) -> None:
    """Ends the check of a node in use where something is ``wrong``: its user may change and remove the samples."""
    if wrong and os.environ.get("KILN_TARGET_KIND") == "node":
        pytest.skip(f"{user} of this node may have changed the samples: {wrong}")


@pytest.mark.parametrize("path", promised(), ids=lambda path: "/".join(path.split("/")[-2:]))
def test_a_sample_can_be_read_by_both_pythons(
    host: Host, spec: Any, in_workspace: Callable[[str, str], Any], path: str
) -> None:
    wrong = "" if host.file(path).is_file else f"{path} is not there"
    if not wrong and path.endswith(".ipynb"):
        cells = json.loads(host.file(path).content_string)["cells"]
        wrong = "" if any(cell["cell_type"] == "code" for cell in cells) else f"{path} has no code"
    elif not wrong:
        for workspace in spec["workspaces"]:
            run = in_workspace(workspace, f"python -B -c {shlex.quote(COMPILE)} {path}")
            wrong = wrong or ("" if run.rc == 0 else f"{workspace}: {run.stderr.strip().splitlines()[-1]}")
    allow_changes_of(spec["node"]["user"]["name"], wrong)
    assert wrong == ""


def test_all_of_the_samples_is_the_users(host: Host, spec: Any) -> None:
    user, folder = spec["node"]["user"]["name"], spec["node"]["paths"]["samples"]
    wanted = {"d": f"{user} {user} 755", "f": f"{user} {user} 644", "l": f"{user} {user} 777"}
    listed = host.check_output(f"find {folder} -printf '%y %u %g %m %p\\n'").splitlines()
    rows = [(line[0], line[2:].rsplit(" ", 1)) for line in listed]
    wrong = [f"{path} is {found}" for kind, (found, path) in rows if found != wanted.get(kind)]
    allow_changes_of(user, wrong)
    assert wrong == []


def test_the_samples_lead_to_the_data_and_the_short_paths_to_the_samples(host: Host, spec: Any) -> None:
    node = spec["node"]
    home, samples = node["user"]["home"], node["paths"]["samples"]
    links = {f"{samples}/mnist": node["paths"]["mnist"]} | {f"{home}/{name}": f"{samples}/{name}" for name in SHORTCUTS}
    found = {link: host.run(f"readlink --canonicalize-existing {link}").stdout.strip() for link in links}
    wrong = [f"{link} leads to {found[link] or 'nothing'}" for link in links if found[link] != links[link]]
    allow_changes_of(node["user"]["name"], wrong)
    assert wrong == []
