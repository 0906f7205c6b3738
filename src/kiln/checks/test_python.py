"""The virtualenvs: interpreter, prompt, packages, and what keeps users from breaking them."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from kiln.checks.asking import QUIETLY, lines

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


# A wheel with nothing in it, newer than any framework.
NEWER = """
import os, zipfile
name = {distribution!r}
info = name + "-999.dist-info/"
with zipfile.ZipFile(os.path.join(os.environ["TMPDIR"], name + "-999-py2.py3-none-any.whl"), "w") as wheel:
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: " + name + "\\nVersion: 999\\n")
    tags = "Tag: py2-none-any\\nTag: py3-none-any\\n"
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n" + tags)
    wheel.writestr(info + "RECORD", "")
"""


@pytest.mark.parametrize("name", ["tensorflow", "pytorch", "keras"])
def test_pip_keeps_the_framework_when_a_newer_one_is_offered(
    in_workspace: Any, spec: Any, interpreter: Any, name: str
) -> None:
    distribution = {"pytorch": "torch"}.get(name, name)
    install = "python -m pip install --no-deps --no-index --find-links $TMPDIR --upgrade --target $TMPDIR/new"
    make = f"python -c {shlex.quote(NEWER.format(distribution=distribution))}"
    offered = in_workspace(
        interpreter["workspace"], f"{make} && PIP_CONSTRAINT=/dev/null {install} {distribution} && ls $TMPDIR/new"
    )
    assert f"{distribution}-999.dist-info" in offered.stdout, offered.stderr  # or the line below proves nothing
    kept = in_workspace(interpreter["workspace"], f"{make} && {install} {distribution}; ls $TMPDIR/new")
    assert "999" not in kept.stdout.replace(f"{distribution}-999-py2.py3", ""), "a newer one would be installed"
    constraints = in_workspace(interpreter["workspace"], 'cat "$VIRTUAL_ENV/constraints.txt"').stdout.lower()
    assert f"{distribution}=={spec['components'][name]['installed']}" in constraints.split()


def test_pip_will_install_the_demos_packages_in_versions_that_fit(in_workspace: Any, spec: Any) -> None:
    newest = spec["interpreters"][-1]["workspace"]
    held = in_workspace(newest, 'cat "$VIRTUAL_ENV/constraints.txt"').stdout.split("\n")
    assert [line for name, version in spec["node"]["demos"].items() if (line := f"{name}=={version}") not in held] == []


@pytest.mark.parametrize("program", ["jupyter", "tensorboard", "ipython"])
def test_the_tools_are_on_the_path(in_workspace: Any, interpreter: Any, program: str) -> None:
    assert in_workspace(interpreter["workspace"], f"command -v {program}").stdout.strip().endswith(f"/{program}")


def test_the_tool_packages_import(in_workspace: Any, interpreter: Any) -> None:
    names = "numpy, scipy, pandas, matplotlib.pyplot, nltk, sklearn, notebook"
    run = in_workspace(interpreter["workspace"], f"cd $TMPDIR && python -W ignore -c 'import {names}'")
    assert run.rc == 0, run.stderr


def test_everything_in_a_workspace_is_the_users(as_user: Any, spec: Any, interpreter: Any) -> None:
    path = spec["workspaces"][interpreter["workspace"]]
    assert lines(as_user(f"find {path} {QUIETLY} ! -user {spec['node']['user']['name']}"))[:3] == []


def test_no_link_in_a_workspace_dangles(as_user: Any, spec: Any, interpreter: Any) -> None:
    path = spec["workspaces"][interpreter["workspace"]]
    assert lines(as_user(f"find {path} {QUIETLY} -xtype l"))[:3] == []
