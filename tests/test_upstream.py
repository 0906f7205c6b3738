"""The channel of the exact artifacts, as far as a machine out of its hosts' reach can tell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import yaml

from kiln.bootstrap import Base, index_folder, lock_name, make_root, sources_list
from kiln.channel import read_channel
from kiln.matrix import Matrix
from kiln.plan import Plan, Planner
from kiln.project import Project
from kiln.stages import playbook_files
from kiln.store import Store
from kiln.supplies import Supplies
from kiln.wheels import requirement_files
from stage_container import STORE, baked_plan, named, started

CHANNEL = Path("images", "channels", "upstream.yml")
CHANNELS = ("registry", "upstream")

# Artifact folder of a stage to a distribution that it must bring.
DISTRIBUTIONS = {"tensorflow": "tensorflow==", "pytorch": "torch==", "keras": "keras==", "tools": "numpy=="}


def plan_of(project: Project, channel: str) -> Plan:
    """The plan of every image of every release, as if nothing had been baked."""
    matrix = Matrix(project, channel, lambda version: True)
    wanted = [(release, image) for release in matrix.releases() for image in matrix.images(release)]
    return Planner(project, Store(project.store), matrix).plan(wanted, frozenset())


def test_every_image_is_planned_on_ubuntus_own_python(project: Project) -> None:
    plan = plan_of(project, "upstream")
    assert len(plan.finals) == 6
    assert {stage.interpreter for stage in plan.stages} == {"/usr/bin/python2.7"}
    distributions = {
        value for stage in plan.stages for name, value in stage.variables.items() if name.endswith("_distribution")
    }
    assert distributions == {"ubuntu-16"}
    assert "nvidia-repository" not in {stage.name for stage in plan.stages}, "upstream stands in for nothing"
    assert {stage.serve for stage in plan.stages} == {()}


def test_its_apt_sources_are_ubuntus_own(root: Path) -> None:
    base = Base.of(msgspec.to_builtins(read_channel(root / CHANNEL, root).base))
    # Without a word from the machine's own apt.
    assert sources_list(base, {}, None) == (
        "deb http://archive.ubuntu.com/ubuntu xenial main restricted universe multiverse\n"
        "deb http://archive.ubuntu.com/ubuntu xenial-updates main restricted universe multiverse\n"
        "deb http://security.ubuntu.com/ubuntu xenial-security main restricted universe multiverse\n"
    )


def test_its_base_has_what_ansible_and_the_roles_run(root: Path) -> None:
    base = read_channel(root / CHANNEL, root).base
    assert {"python", "python-apt", "sudo", "hardlink", "apt-transport-https"} <= set(base.include)


def test_the_bootstrap_stage_knows_its_mirrors(project: Project) -> None:
    root = plan_of(project, "upstream").stages[0]
    base = read_channel(project.root / CHANNEL, project.root).base
    assert Base.of(root.variables) == Base.of(msgspec.to_builtins(base))


def test_every_workspace_gets_a_line_with_a_hash_for_each_wheel(project: Project) -> None:
    store = Store(project.store, project.images / "locks" / "first-fetch.yml")
    plan = plan_of(project, "upstream")
    for artifact in plan.artifacts:
        if artifact.sha256 is None:
            store.set_first_fetch_lock(artifact.key, "a" * 64)
    supplies = Supplies(plan, store)
    for stage in plan.stages:
        for group in set(DISTRIBUTIONS) & {name for name, _ in stage.artifacts}:
            if stage.kind == "build":
                continue
            files = requirement_files(supplies.locked(stage).artifacts)
            for series in ("2.7", "3.6"):
                text = files[f"{group}/requirements-python{series}.txt"]
                for line in text.splitlines():
                    assert re.fullmatch(r"[\w.-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", line)
                assert DISTRIBUTIONS[group] in text.lower()


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(300)
def test_packages_are_installed_into_a_tarball_base(tmp_path: Path) -> None:
    bootstrap = named(baked_plan("cpu"), "bootstrap")
    base = replace(Base.of(bootstrap.variables), kind="tarball", include=("screen",))
    tarball, tar, etc = tmp_path / "base.tar", tmp_path / "root.tar", tmp_path / "etc" / "apt"
    with started(bootstrap, tmp_path) as target:
        subprocess.run(["docker", "export", "--output", tarball, target.name], check=True)
    etc.mkdir(parents=True)
    (etc / "sources.list").write_text("deb http://own.test/ubuntu xenial main\n", encoding="utf-8")
    subprocess.run(["tar", "-C", tmp_path, "-rf", tarball, "etc/apt/sources.list"], check=True)
    digest = STORE.machine_lock(lock_name(Base.of(bootstrap.variables)))
    assert digest is not None

    def run(command: Sequence[str], extra: Mapping[str, str]) -> int:
        return subprocess.run(command, env={**os.environ, **extra}, check=False, capture_output=True).returncode

    make_root(base, index_folder(STORE, digest), tar, tmp_path, run, tarball=tarball)
    with tarfile.open(tar) as made:
        names = set(made.getnames())
        assert "./usr/bin/screen" in names
        own = made.extractfile("./etc/apt/sources.list")
        assert own is not None
        assert own.read() == b"deb http://own.test/ubuntu xenial main\n", "its own sources are the image's"
    assert not [name for name in names if name.startswith("./etc/apt/sources.list.d/") or "mmdebstrap" in name]


def test_every_wheel_comes_with_what_pip_check_asks_of_it(project: Project) -> None:
    groups = Matrix(project, "upstream").groups
    for group, artifacts in groups.items():
        files = [artifact.file for artifact in artifacts]
        series = re.match(r"(tensorflow|pytorch)-([\d.]+)-", group)
        if series and series[1] == "tensorflow":
            assert {f"tensorboard-{series[2]}-py{python}-none-any.whl" for python in (2, 3)} <= set(files)
        elif series:
            assert any(file.startswith("torchvision-") for file in files)


@pytest.mark.parametrize("channel", CHANNELS)
def test_stages_give_roles_only_what_they_document(project: Project, channel: str) -> None:
    for stage in plan_of(project, channel).stages:
        if stage.parent is None:
            continue
        options: dict[str, dict[str, Any]] = {}
        for role in {name.split("/")[1] for name in playbook_files(project, stage.playbook) if name[:6] == "roles/"}:
            specs = yaml.safe_load((project.roles / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
            options |= specs["argument_specs"]["main"].get("options", {})
        for name, value in stage.variables.items():
            assert name in options or name.startswith("workspaces_"), f"{stage.name}: {name} is in no role's options"
            allowed = options.get(name, {}).get("choices")
            if allowed:
                assert set(value if isinstance(value, list) else [value]) <= set(allowed), f"{stage.name}: {name}"


def test_roles_name_packages_for_both_distributions(root: Path) -> None:
    pairs = list(root.glob("roles/*/vars/debian-12.yml"))
    assert pairs
    for path in pairs:
        here, there = (
            yaml.safe_load(file.read_text(encoding="utf-8")) for file in (path, path.with_name("ubuntu-16.yml"))
        )
        assert set(here) == set(there), path


@pytest.mark.engine
def test_a_bake_out_of_reach_names_hosts_and_files_at_once(project: Project, tmp_path: Path) -> None:
    table = project.root / CHANNEL
    text = table.read_text(encoding="utf-8")
    # Names that no resolver answers for (RFC 6761), so that the test is the same wherever it runs.
    table.write_text(re.sub(r"(path: https?://)([^/\s]+)", r"\1\2.invalid", text), encoding="utf-8")
    kiln = str(Path(sys.executable).with_name("kiln"))
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [kiln, "--root", str(project.root), "--store", str(tmp_path / "store"), "bake", "--channel", "upstream"]
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert time.monotonic() - began < 20
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("kiln: out of reach: ")
    assert line.endswith("; fetch where these hosts answer and share the store, or choose another channel")
    needed = plan_of(project, "upstream").artifacts
    newest = [artifact for artifact in needed if artifact.origin == "url" and "1.7.0" not in artifact.path]
    assert newest
    for artifact in newest:
        host = re.escape(urlsplit(artifact.path).netloc)
        assert re.search(rf"{host} \([^)]*{re.escape(artifact.file)}", line), artifact.path
    assert not (tmp_path / "store" / "blobs").exists()
