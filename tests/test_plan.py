"""A digest covers everything that can change a stage, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kiln import plan as plan_module
from kiln import stages, tools
from kiln.bootstrap import Base, lock_name
from kiln.matrix import Matrix
from kiln.plan import Plan, Planner, Stage, explain
from kiln.planview import as_data, as_text, duration
from kiln.project import Project
from kiln.records import write_record
from kiln.stages import StageRow
from kiln.store import Store

ALL = [(release, image) for release in ("1.1", "1.2") for image in ("cuda91", "cuda80", "cpu")]


def make_plan(project: Project, images: list[tuple[str, str]] = ALL, present: frozenset[str] = frozenset()) -> Plan:
    return Planner(project, Store.of(project), Matrix(project, "registry")).plan(images, present)


def digests(project: Project) -> dict[tuple[str, str], str]:
    """(release/image, stage) to digest, for every stage of every image."""
    return {(image, stage.name): stage.digest for stage in make_plan(project).stages for image in stage.images}


def changed(project: Project, change: Callable[[Path], None]) -> set[tuple[str, str]]:
    """The (image, stage) pairs that ``change`` turns stale."""
    before = digests(project)
    change(project.root)
    after = digests(project)
    assert before.keys() == after.keys()
    return {key for key in before if before[key] != after[key]}


def edit(file: str, find: str, put: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / file
        text = path.read_text(encoding="utf-8")
        assert find in text
        path.write_text(text.replace(find, put, 1), encoding="utf-8")

    return change


def new_file(file: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / file).write_text("new\n", encoding="utf-8")

    return change


def append(file: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / file).open("a", encoding="utf-8") as stream:
            stream.write("# one more line\n")

    return change


def from_stage(project: Project, first: str, images: set[str]) -> set[tuple[str, str]]:
    """``first`` and everything of ``images`` that stands on it or uses its product."""
    plan = make_plan(project)
    stale = {stage.digest for stage in plan.stages if stage.name == first and images & set(stage.images)}
    for stage in plan.stages:
        if stage.parent in stale or any(digest in stale for _, digest in stage.products):
            stale.add(stage.digest)
    return {(image, stage.name) for stage in plan.stages if stage.digest in stale for image in stage.images}


EVERY = {f"{release}/{image}" for release, image in ALL}
GPU = {image for image in EVERY if "cuda" in image}
CPU = EVERY - GPU

CHANGES: list[tuple[str, Callable[[Path], None], str, set[str]]] = [
    ("a role's task file", append("roles/jupyter/tasks/main.yml"), "keras", EVERY),
    ("a role's default", append("roles/workspaces/defaults/main.yml"), "workspaces", EVERY),
    ("a new file in a role", new_file("roles/caffe/new"), "caffe", EVERY),
    ("a file's mode", lambda root: (root / "roles/seal/defaults/main.yml").chmod(0o755), "seal", EVERY),
    ("a playbook", append("playbooks/pytorch.yml"), "pytorch", EVERY),
    ("a gpu-only role", append("roles/cudnn/tasks/main.yml"), "cudnn", GPU),
    ("a cpu-only role", append("roles/mkl/tasks/main.yml"), "mkl", CPU),
    ("a role that builds", append("roles/caffe_build/tasks/main.yml"), "caffe-build", EVERY),
    ("a password", edit("images/node.yml", "p12cHANgepwD", "otherpassword"), "base", EVERY),
    ("one image's Keras", edit("images/releases/1.2.yml", 'keras: "2.2.0"', 'keras: "2.1.5"'), "keras", {"1.2/cuda91"}),
    (
        "one image's TensorFlow",
        edit("images/releases/1.1.yml", 'tensorflow: "1.7.0"', 'tensorflow: "1.8.0"'),
        "tensorflow",
        {"1.1/cuda91"},
    ),
    (
        "an artifact's checksum",
        edit("images/channels/registry.yml", "sha256: e0eb3f0", "sha256: 00eb3f0"),
        "caffe-build",
        EVERY,
    ),
    (
        "the reason of a substitution",
        edit("images/channels/registry.yml", "why: BVLC Caffe built on Intel MKL", "why: BVLC Caffe built on MKL"),
        "seal",
        CPU,
    ),
    (
        "the Pythons that install a locked file",
        edit(
            "images/locks/wheels.yml",
            'Keras-Applications,\n       pythons: ["2.7", ',
            "Keras-Applications,\n       pythons: [",
        ),
        "keras",
        {image for image in EVERY if image.startswith("1.2/")},
    ),
    (
        "the host that a product answers for",
        edit("images/stages.yml", "serve: {developer.download.nvidia.com:", "serve: {download.nvidia.com:"),
        "cuda",
        GPU,
    ),
    (
        "the Python that Ansible's modules run on",
        edit("images/channels/registry.yml", "interpreter: /usr/bin/python3", "interpreter: /usr/bin/python3.11"),
        "bootstrap",
        EVERY,
    ),
    (
        "the archive's components",
        edit("images/channels/registry.yml", "components: [main]", "components: [main, contrib]"),
        "bootstrap",
        EVERY,
    ),
    ("a role that is included", append("roles/nvidia_apt/tasks/install.yml"), "cuda", GPU),
    ("Ansible's configuration", append("ansible.cfg"), "base", EVERY),
    ("the Packer template", append("templates/packer/stage.pkr.hcl.j2"), "base", EVERY),
]


@pytest.mark.parametrize(("name", "change", "first", "images"), CHANGES, ids=[row[0] for row in CHANGES])
def test_one_change_turns_exactly_the_right_stages_stale(
    project: Project, name: str, change: Callable[[Path], None], first: str, images: set[str]
) -> None:
    expected = from_stage(project, first, images)
    stale = changed(project, change)
    wanted = {key for key in expected if key[0] in images}
    assert stale == wanted, f"{name}: too many {sorted(stale - wanted)}, missing {sorted(wanted - stale)}"


@pytest.mark.parametrize(
    "file", ["README.md", "roles/README.md", "images/README.md", "roles/jupyter/tasks/__pycache__/x.pyc"]
)
def test_what_no_stage_reads_turns_nothing_stale(project: Project, file: str) -> None:
    def change(root: Path) -> None:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("changed\n", encoding="utf-8")

    assert changed(project, change) == set()


def test_another_tool_version_turns_every_baked_stage_stale(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tools.tool_versions
    before = digests(project)
    monkeypatch.setattr(plan_module, "tool_versions", lambda store: {**real(store), "packer": "9.9.9"})
    after = digests(project)
    stale = {key for key in before if before[key] != after[key]}
    assert stale == {key for key in before if key[1] != "bootstrap"}


@pytest.mark.parametrize("name", [*plan_module.ROOT_CODE, *plan_module.STAGE_CODE])
def test_other_code_of_kiln_turns_what_it_makes_stale(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = digests(project)
    code = Path(plan_module.__file__).parent / name
    monkeypatch.setattr(plan_module, "file_digest", lambda path: "0" if path == code else stages.file_digest(path))
    after = digests(project)
    stale = {key for key in before if before[key] != after[key]}
    assert stale == {key for key in before if name in plan_module.ROOT_CODE or key[1] != "bootstrap"}


def test_another_mmdebstrap_turns_everything_stale(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(project)
    monkeypatch.setattr(plan_module, "mmdebstrap_version", lambda store: "9.9.9")
    assert not set(before.items()) & set(digests(project).items())


def test_the_tools_are_those_that_a_stage_is_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    assert set(tools.tool_versions(store)) == {"ansible", "ansible-core", "mitogen", "packer"}
    said = tools.mmdebstrap_version(store)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("asked twice"))
    assert tools.mmdebstrap_version(store) == said
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools.mmdebstrap_version(store) == "none"


def test_another_apt_index_turns_everything_stale(project: Project) -> None:
    root = make_plan(project).stages[0]

    def change(_: Path) -> None:
        Store.of(project).set_machine_lock(lock_name(Base.of(root.variables)), "0" * 64)

    assert changed(project, change) == set(digests(project))


def test_images_and_releases_share_what_they_can(project: Project) -> None:
    found = digests(project)
    for stage in ("bootstrap", "base", "python", "workspaces", "pytorch", "libraries", "python-build", "wheels-build"):
        assert len({digest for (_, name), digest in found.items() if name == stage}) == 1, stage
    tensorflow = {image: digest for (image, name), digest in found.items() if name == "tensorflow"}
    assert tensorflow["1.2/cuda91"] == tensorflow["1.2/cpu"] != tensorflow["1.2/cuda80"]
    assert tensorflow["1.1/cuda80"] == tensorflow["1.2/cuda80"]
    builds = {digest for (_, name), digest in found.items() if name == "caffe-build"}
    assert len(builds) == 1  # both BLAS libraries in one build, whatever the image
    assert len({digest for (_, name), digest in found.items() if name == "seal"}) == len(ALL)


def test_a_cached_image_needs_nothing_else(project: Project) -> None:
    finals = frozenset(stage.digest for stage in make_plan(project).finals)
    plan = make_plan(project, present=finals)
    assert plan.missing == ()
    assert {stage.state for stage in plan.stages if not stage.tag} == {"unneeded"}
    assert "nothing to build" in as_text(plan)


def test_inputs_of_a_cached_image_are_wanted_when_asked_for(project: Project) -> None:
    whole = make_plan(project)
    present = frozenset(stage.digest for stage in whole.stages if stage.kind != "build")
    planner = Planner(project, Store.of(project), Matrix(project, "registry"))
    made = planner.plan(ALL, present, inputs=True)
    read = {digest for stage in made.chained for _, digest in stage.products}
    assert {stage.digest for stage in made.missing if stage.kind == "build"} >= read
    assert {stage.state for stage in made.finals} == {"cached"}
    assert not [stage.name for stage in made.missing if stage.kind != "build"]


def test_a_cached_parent_is_where_the_build_goes_on(project: Project) -> None:
    stages = {stage.name: stage for stage in make_plan(project, [("1.2", "cpu")]).stages}
    plan = make_plan(project, [("1.2", "cpu")], frozenset({stages["keras"].digest}))
    missing = {stage.name for stage in plan.missing}
    assert {"mkl", "caffe", "caffe-build", "seal"} <= missing
    assert not missing & {"keras", "tensorflow", "pytorch"}


def test_the_plan_says_why(project: Project) -> None:
    store = Store.of(project)
    first = make_plan(project, [("1.2", "cpu")])
    assert {stage.why for stage in first.missing} == {("never built on this machine",)}
    for stage in first.stages:
        write_record(store, stage, 12.5)
    append("roles/keras/defaults/main.yml")(project.root)
    edit("images/releases/1.2.yml", "caffe: intel", "caffe: bvlc")
    second = {stage.name: stage for stage in make_plan(project, [("1.2", "cpu")]).missing}
    assert second["keras"].why == ("roles/keras/defaults/main.yml changed",)
    assert second["keras"].expected_s == pytest.approx(12.5)
    assert second["tensorflow"].why == ("built before, no longer in the store",)
    assert any(reason.startswith("parent ") for reason in second["seal"].why)


def test_explanations_name_values_and_put_causes_first() -> None:
    old = {"variable x": '"1.7.0"', "parent base": "a" * 64, "roles/a": "b", "gone": "1"}
    new = {"variable x": '"1.8.0"', "parent base": "c" * 64, "roles/a": "d", "new": "2"}
    assert explain(old, new) == [
        "gone removed",
        "new added",
        "roles/a changed",
        'variable x: "1.7.0" → "1.8.0"',
        "parent base changed",
    ]


def test_the_plan_as_data_is_json_and_complete(project: Project) -> None:
    plan = make_plan(project)
    data = json.loads(json.dumps(as_data(plan)))
    assert len(data["stages"]) == len(plan.stages)
    assert data["images"]["deeplearning:1.2-cpu"] == plan.finals[-1].digest
    order = [stage["digest"] for stage in data["stages"]]
    for stage in data["stages"]:
        for needed in (stage["parent"], *stage["products"].values()):
            assert needed is None or order.index(needed) < order.index(stage["digest"])


def test_final_labels_name_release_image_channel_digest_and_substitutions(project: Project) -> None:
    final = make_plan(project, [("1.2", "cpu")]).finals[0]
    assert final.labels["org.deeplearning.release"] == "1.2"
    assert final.labels["org.deeplearning.image"] == "cpu"
    assert final.labels["org.deeplearning.channel"] == "registry"
    assert final.labels["org.deeplearning.digest"] == final.digest
    assert "pytorch" in final.labels["org.deeplearning.substitutions"].split(",")


def test_the_plan_tells_what_each_image_substitutes(project: Project) -> None:
    plan = make_plan(project)
    data = as_data(plan)["substitutions"]
    text = as_text(plan).splitlines()
    for release, image in ALL:
        tag, substituted = (
            f"deeplearning:{release}-{image}",
            Matrix(project, "registry").resolve(release, image).substitutions,
        )
        assert data[tag] == substituted
        assert f"{tag} substitutes {', '.join(substituted)}" in text


def test_expected_time_is_unknown_while_a_stage_never_ran(project: Project) -> None:
    plan = make_plan(project, [("1.2", "cpu")])
    assert plan.expected_s is None
    timed = Plan(tuple(replace(stage, expected_s=30.0) for stage in plan.stages))
    assert timed.expected_s == pytest.approx(30.0 * len(plan.missing))


CALLS = """
import cProfile, pstats, sys
from pathlib import Path
from kiln.matrix import Matrix
from kiln.plan import Planner
from kiln.project import Project
from kiln.store import Store

project = Project(*map(Path, sys.argv[1:]))

def plan():
    matrix = Matrix(project, "registry", lambda version: True)
    release = matrix.releases()[-1]
    wanted = [(release, image) for image in matrix.images(release)]
    Planner(project, Store.of(project), matrix).plan(wanted, frozenset())

profile = cProfile.Profile()
profile.runcall(plan)
print(pstats.Stats(profile).total_calls)
"""


def test_a_plan_stays_cheap(project: Project) -> None:
    """0.5 s is the limit for a plan; calls of functions do not depend on what else the machine does."""
    make_plan(project, [("1.2", "cpu")])  # asks the tools for their versions
    command = [sys.executable, "-c", CALLS, str(project.root), str(project.store)]
    calls = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert calls < 350_000, "benchmarks/bake.py tells the time"


def test_no_stage_of_an_image_is_made_twice(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []
    real = Planner._make

    def make(planner: Planner, row: StageRow, image: Any, where: str) -> Stage:
        made.append((image.name, row.name))
        return real(planner, row, image, where)

    monkeypatch.setattr(Planner, "_make", make)
    make_plan(project)
    assert len(made) == len(set(made))


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "0s"), (59.4, "59s"), (75.2, "1m15s"), (3600, "60m00s")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
