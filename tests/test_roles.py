"""Every role run again: where it ran before it changes nothing, where it is asked for nonsense it says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kiln.cli import make_plan
from kiln.plan import Plan, Stage
from kiln.stages import playbook_files
from stage_container import (
    CHECKOUT,
    PROJECT,
    Run,
    Target,
    baked_plan,
    chain,
    lone,
    named,
    started,
    supplied,
)

BAKED = ("cpu", "cuda91")
"""Images whose chains hold every role of a node."""

ROLES = sorted(path.name for path in (CHECKOUT / "roles").iterdir() if path.is_dir())

# Roles of which the rest has defaults, and the image on which their defaults are what the tables say.
ALONE = {
    "cpu": ["base", "jupyter", "keras", "mkl", "pytorch", "tensorflow", "workspace_packages"],
    "cuda91": ["caffe_libraries", "digits"],
}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return baked_plan(*BAKED)


class Again:
    """A container of a finished image, its whole chain run once more."""

    def __init__(self, target: Target, stages: list[Stage]) -> None:
        self.target = target
        self.stages = {stage.name: stage for stage in stages}
        self.run = target.run_stages(stages)
        self.changes = target.changes()


@pytest.fixture(scope="module")
def cpu(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Again]:
    yield from again(plan, "cpu", tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="module")
def cuda91(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Again]:
    yield from again(plan, "cuda91", tmp_path_factory.mktemp("cuda91"))


def again(plan: Plan, image: str, folder: Path) -> Iterator[Again]:
    final = next(stage for stage in plan.finals if stage.images[0].endswith(f"/{image}"))
    stages = chain(plan, final)
    with supplied(plan, final, stages, folder) as target:
        yield Again(target, stages)


@pytest.fixture
def image(request: pytest.FixtureRequest) -> Again:
    found: Again = request.getfixturevalue(request.param)
    return found


def roles_of(stages: list[Stage]) -> set[str]:
    """The roles that the playbooks of stages run, included ones too."""
    files = [name for stage in stages for name in playbook_files(PROJECT, stage.playbook)]
    return {name.split("/")[1] for name in files if name.startswith("roles/")}


def test_every_role_runs_in_some_stage() -> None:
    stages = [stage for stage in make_plan(PROJECT, (), (), "registry", assume_empty=True).stages if stage.parent]
    assert roles_of(stages) == set(ROLES)


@pytest.mark.engine
@pytest.mark.parametrize("image", BAKED, indirect=True)
def test_a_second_converge_of_the_sealed_image_changes_nothing(image: Again) -> None:
    assert image.run.code == 0, image.run.output
    assert image.run.changed == []
    assert image.changes == []
    assert image.run.roles == roles_of(list(image.stages.values()))


@pytest.mark.engine
@pytest.mark.parametrize("image", BAKED, indirect=True)
def test_roles_alone_find_in_their_defaults_what_the_tables_say(image: Again, request: pytest.FixtureRequest) -> None:
    told = image.stages["base"].variables | image.stages["keras"].variables
    given = {name: told[name] for name in told if name in {name for role in ROLES for name in REQUIRED[role]}}
    roles = ALONE[request.node.callspec.params["image"]]
    run = image.target.play([lone(role, given) for role in roles])
    assert run.code == 0, run.output
    assert run.changed == []
    assert run.roles >= set(roles)


@pytest.mark.engine
def test_what_was_broken_is_put_right_once(cpu: Again) -> None:
    mkl = cpu.stages["mkl"]
    cpu.target.shell("echo /nowhere > /etc/ld.so.conf.d/intel-mkl.conf")
    repair = cpu.target.run_stages([mkl])
    assert repair.changed == [
        "mkl : Show the dynamic linker where the libraries are",
        "mkl : Update the dynamic linker's cache",
    ]
    assert "C /etc/ld.so.conf.d/intel-mkl.conf" in cpu.target.changes()
    assert cpu.target.run_stages([mkl]).changed == []


@pytest.mark.engine
def test_builder_run_again_changes_nothing(plan: Plan, tmp_path: Path) -> None:
    builder = named(plan, "builder")
    with supplied(plan, builder, [builder], tmp_path) as target:
        run = target.run_role("builder")
        assert run.code == 0, run.output
        assert run.changed == []
        assert target.changes() == []


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["python-build", "wheels-build", "nvidia-repository", "digits-build", "caffe-build"])
def test_a_build_run_again_builds_nothing(plan: Plan, name: str, tmp_path: Path) -> None:
    stage = named(plan, name)
    assert stage.parent is not None
    with supplied(plan, plan.by_digest[stage.parent], [stage], tmp_path) as target:
        first = target.run_stages([stage])
        assert first.code == 0, first.output
        made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
        assert made
        before = target.changes()
        second = target.run_stages([stage])
        assert second.code == 0, second.output
        assert second.changed == []
        assert second.roles == roles_of([stage])
        assert target.changes() == before
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == made


# What a role must be told


def options_of(role: str) -> dict[str, dict[str, Any]]:
    """The documented variables of a role."""
    specs = yaml.safe_load((CHECKOUT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    return dict(specs["argument_specs"]["main"].get("options", {}))


def defaults_of(role: str) -> dict[str, Any]:
    path = CHECKOUT / "roles" / role / "defaults" / "main.yml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


REQUIRED = {role: sorted(name for name, option in options_of(role).items() if option.get("required")) for role in ROLES}
DEMANDING = [role for role in ROLES if REQUIRED[role]]


@pytest.mark.parametrize("role", ROLES)
def test_documented_variables_are_the_roles_own(role: str) -> None:
    options, defaults = options_of(role), defaults_of(role)
    assert set(defaults) <= set(options), "a default that is not documented"
    assert not set(defaults) & set(REQUIRED[role]), "required, yet it has a default"
    for name, option in options.items():
        assert name.startswith(f"{role}_")
        assert option["description"]
        if "default" in option:
            assert defaults[name] == option["default"], f"{name}: defaults and argument_specs differ"


@pytest.fixture(scope="module")
def refusals(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each demanding role says when it is told nothing: one run, in a container that may come to harm."""
    tasks = [
        {
            "name": role,
            "block": [{"name": "Run it", "ansible.builtin.include_role": {"name": role}}],
            "rescue": [
                {
                    "name": f"said {role}",
                    "ansible.builtin.set_fact": {f"said_{role}": "{{ ansible_failed_result.msg }}"},
                }
            ],
        }
        for role in DEMANDING
    ]
    said = {role: f"{{{{ said_{role} | default('nothing') }}}}" for role in DEMANDING}
    tell = {"name": "Tell", "ansible.builtin.copy": {"content": said, "dest": "/run/said.json", "mode": "0644"}}
    play = {"name": "All", "hosts": "all", "gather_facts": False, "tasks": [*tasks, tell]}
    with started(named(plan, "bootstrap"), tmp_path_factory.mktemp("refusals")) as target:
        run = target.play([play])
        assert run.code == 0, run.output
        told: dict[str, str] = yaml.safe_load(target.shell("cat /run/said.json"))
        return told


@pytest.mark.engine
@pytest.mark.parametrize("role", DEMANDING)
def test_a_missing_variable_is_an_argument_error(role: str, refusals: dict[str, str]) -> None:
    assert "Validation of arguments failed" in refusals[role]
    assert f"missing required arguments: {', '.join(REQUIRED[role])}" in refusals[role]


@pytest.fixture(scope="module")
def plain(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with started(named(plan, "bootstrap"), tmp_path_factory.mktemp("plain")) as target:
        yield target


@pytest.mark.engine
@pytest.mark.parametrize(
    ("role", "variables", "words"),
    [
        ("builder", {"builder_distribution": "windows"}, "value of builder_distribution must be one of"),
        ("python_build", {"python_build_interpreters": [{"version": "3.6"}]}, "missing required arguments: series"),
        ("digits_build", {"digits_build_seed": "many"}, "digits_build_seed"),
        # Role workspace_packages, on which it depends, does the work.
        ("tensorflow", {}, f"missing required arguments: {', '.join(REQUIRED['workspace_packages'])}"),
    ],
)
def test_a_wrong_value_is_an_argument_error(plain: Target, role: str, variables: dict[str, Any], words: str) -> None:
    run: Run = plain.run_role(role, **variables)
    assert run.code != 0
    assert words in run.failure
    assert plain.changes() == []
