"""The Molecule scenarios on the baked images: the image's own roles change nothing, and its checks pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kiln.ansible.connection import CALLBACKS
from kiln.engine import Engine
from kiln.matrix import Matrix
from kiln.project import find_project

PROJECT = find_project(Path(__file__).resolve().parent.parent)
BIN = Path(sys.executable).parent
EVERY = {path.parent.name for path in (PROJECT.root / "molecule").glob("*/molecule.yml")}
# Fewest checks of a scenario that makes clusters of a package.
TRIALS = {"platform-cpu": 60, "platform-cuda91": 60, "training": 35}
SCENARIOS = sorted(EVERY - set(TRIALS))


def molecule(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "NO_COLOR": "1",
    }
    return subprocess.run(
        [str(BIN / "molecule"), *words], cwd=PROJECT.root, capture_output=True, text=True, check=False, env=environment
    )


def test_every_image_of_the_current_release_has_a_scenario() -> None:
    matrix = Matrix(PROJECT, "registry")
    assert set(matrix.images(matrix.releases()[-1])) <= set(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_goes_through_every_step(scenario: str) -> None:
    table = yaml.safe_load((PROJECT.root / "molecule" / scenario / "molecule.yml").read_text(encoding="utf-8"))
    steps = table["scenario"]["test_sequence"]
    assert steps == ["destroy", "create", "converge", "idempotence", "verify", "destroy"]
    assert table["verifier"]["name"] == "testinfra"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_ends_where_its_roles_change_something(scenario: str) -> None:
    table = yaml.safe_load((PROJECT.root / "molecule" / scenario / "molecule.yml").read_text(encoding="utf-8"))
    settings = table["provisioner"]["env"]
    assert settings["ANSIBLE_CALLBACKS_ENABLED"] == "kiln_unchanged"
    folder = settings["ANSIBLE_CALLBACK_PLUGINS"].replace("${MOLECULE_PROJECT_DIRECTORY}", str(PROJECT.root))
    assert Path(folder) == CALLBACKS


@pytest.mark.parametrize(
    ("host", "changed", "code"), [("node", False, 0), ("node", True, 2), ("localhost", True, 0)], ids=str
)
def test_a_change_ends_ansible_with_an_error(tmp_path: Path, host: str, changed: bool, code: int) -> None:
    task = {"name": "Do it", "ansible.builtin.command": "true", "changed_when": changed}
    play = {"hosts": host, "gather_facts": False, "connection": "local", "tasks": [task]}
    play["vars"] = {"ansible_python_interpreter": sys.executable}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]), encoding="utf-8")
    settings = {"ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS), "ANSIBLE_CALLBACKS_ENABLED": "kiln_unchanged"}
    environment = {**os.environ, **settings, "ANSIBLE_HOME": str(tmp_path / "ansible"), "ANSIBLE_NOCOLOR": "1"}
    command = [str(BIN / "ansible-playbook"), f"--inventory={host},", "play.yml"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == code, run.stdout + run.stderr
    assert ("something did on node" in run.stderr) == bool(code)


@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=[] if name == "cpu" else pytest.mark.long) for name in SCENARIOS]
)
def test_the_scenario_changes_nothing_and_passes(scenario: str, tmp_path: Path) -> None:
    run = molecule(tmp_path, "test", "-s", scenario)
    output = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout + run.stderr)
    assert run.returncode == 0, output[-6000:]
    recaps = re.findall(rf"kiln-molecule-{scenario} +: ok=(\d+) +changed=(\d+)", output)
    assert len(recaps) == 2, output[-3000:]
    assert all(int(ok) > 40 and changed == "0" for ok, changed in recaps), recaps
    told = re.search(r"(\d+) passed", output)
    assert told, output[-3000:]
    assert int(told[1]) > 40
    assert re.search(r"\d+ substituted", output), "what is substituted was told as passed"
    assert Engine().containers("kiln-molecule-") == []


@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", TRIALS)
def test_a_cluster_keeps_what_its_package_promises(scenario: str, tmp_path: Path) -> None:
    run = molecule(tmp_path, "test", "-s", scenario)
    output = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout + run.stderr)
    assert run.returncode == 0, output[-6000:]
    told = re.search(r"(\d+) passed", output)
    assert told, output[-3000:]
    assert int(told[1]) > TRIALS[scenario]
    without_monitor = scenario == "platform-cpu"
    assert bool(re.search(r"\d+ skipped", output)) == without_monitor
