"""The virtualenvs: interpreter, prompt, packages, and what keeps users from breaking them."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

INSIDE = "import json, sys; print(json.dumps(['%d.%d.%d' % sys.version_info[:3], sys.maxunicode, sys.prefix]))"


@pytest.fixture(params=[0, 1], ids=["first", "second"])
def interpreter(request: pytest.FixtureRequest, spec: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = spec["interpreters"][request.param]
    return chosen


def test_plain_python_is_the_workspaces_own(in_workspace: Any, spec: Any, interpreter: Any) -> None:
    import json

    version, unicode_size, prefix = json.loads(
        in_workspace(interpreter["workspace"], f"python -c {shlex.quote(INSIDE)}").stdout
    )
    assert version == interpreter["version"]
    assert unicode_size == 0x10FFFF
    assert prefix == spec["workspaces"][interpreter["workspace"]]


def test_the_prompt_shows_the_workspace_until_deactivate(as_user: Any, spec: Any, interpreter: Any) -> None:
    path = spec["workspaces"][interpreter["workspace"]]
    run = as_user(
        f'PS1=\'$ \'; source {path}/bin/activate; echo "$PS1"; deactivate; echo "$PS1"; command -v deactivate'
    )
    active, inactive = run.stdout.splitlines()[:2]
    assert active == f"({interpreter['workspace']}) $ "
    assert inactive == "$ "


def test_pip_check_is_clean(in_workspace: Any, interpreter: Any) -> None:
    run = in_workspace(interpreter["workspace"], "python -m pip check --disable-pip-version-check")
    assert run.rc == 0, run.stdout
    assert "No broken requirements" in run.stdout or run.stdout.strip() == ""


@pytest.mark.parametrize("name", ["tensorflow", "pytorch", "keras"])
def test_pip_refuses_to_replace_a_framework(in_workspace: Any, spec: Any, interpreter: Any, name: str) -> None:
    distribution = {"pytorch": "torch"}.get(name, name)
    installed = spec["components"][name]["installed"]
    command = f"python -m pip install --no-index --disable-pip-version-check {distribution}==0.0.1 2>&1"
    run = in_workspace(interpreter["workspace"], command)
    assert run.rc != 0
    constraints = in_workspace(interpreter["workspace"], 'cat "$VIRTUAL_ENV/constraints.txt"').stdout.lower()
    assert f"{distribution}=={installed}" in constraints.split()
    effective = in_workspace(interpreter["workspace"], "python -m pip config list").stdout
    assert "constraints.txt" in effective


@pytest.mark.parametrize("program", ["jupyter", "tensorboard", "ipython"])
def test_the_tools_are_on_the_path(in_workspace: Any, interpreter: Any, program: str) -> None:
    assert in_workspace(interpreter["workspace"], f"command -v {program}").stdout.strip().endswith(f"/{program}")


def test_the_tool_packages_import(in_workspace: Any, interpreter: Any) -> None:
    names = "numpy, scipy, pandas, matplotlib.pyplot, nltk, sklearn, notebook"
    run = in_workspace(interpreter["workspace"], f"cd $TMPDIR && python -W ignore -c 'import {names}'")
    assert run.rc == 0, run.stderr


def test_everything_in_a_workspace_is_the_users(as_user: Any, spec: Any, interpreter: Any) -> None:
    path = spec["workspaces"][interpreter["workspace"]]
    strangers = as_user(f"find {path} ! -user {spec['node']['user']['name']} | head -n 3").stdout.split()
    assert strangers == []


def test_no_link_in_a_workspace_dangles(as_user: Any, spec: Any, interpreter: Any) -> None:
    path = spec["workspaces"][interpreter["workspace"]]
    assert as_user(f"find {path} -xtype l | head -n 3").stdout.split() == []
