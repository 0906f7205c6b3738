"""The channel of the exact artifacts, as far as a machine out of its hosts' reach can tell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
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


def plan_of(project: Project, channel: str, *, host_has: bool = True) -> Plan:
    """The plan of every image of every release, as if nothing had been baked."""
    matrix = Matrix(project, channel, lambda version: host_has)
    wanted = [(release, image) for release in matrix.releases() for image in matrix.images(release)]
    return Planner(project, Store.of(project), matrix).plan(wanted, frozenset())


def test_every_image_is_planned_on_ubuntus_own_python(project: Project) -> None:
    plan = plan_of(project, "upstream")
    assert len(plan.finals) == 6
    assert {stage.interpreter for stage in plan.stages} == {"/usr/bin/python2.7"}
    distributions = {
        value for stage in plan.stages for name, value in stage.variables.items() if name.endswith("_distribution")
    }
    assert distributions == {"ubuntu-16"}
    made = {"nvidia-repository", "agent-build", "digits-build"}
    assert made & {stage.name for stage in plan.stages} == set(), "upstream stands in for nothing"
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


@pytest.mark.parametrize("host_has", [True, False])
@pytest.mark.parametrize("channel", CHANNELS)
def test_once_all_is_fetched_the_manifest_has_a_checksum_of_everything(
    project: Project, channel: str, host_has: bool
) -> None:
    store = Store.of(project)
    for artifact in plan_of(project, channel, host_has=host_has).artifacts:
        if artifact.origin == "host":
            store.set_machine_lock(artifact.key, "a" * 64)
        elif artifact.sha256 is None:
            store.set_first_fetch_lock(artifact.key, "b" * 64)
    plan = plan_of(project, channel, host_has=host_has)
    for final in plan.finals:
        components = final.variables["manifest_content"]["components"]
        assert {"base", "digits", "python"} < set(components)
        for name, part in components.items():
            assert part["sha256"], name
            for source, sha256 in part["sha256"].items():
                assert re.fullmatch("[0-9a-f]{64}", sha256 or ""), (name, source)
                made = source.removeprefix("stage ")
                assert made == source or sha256 in {stage.digest for stage in plan.stages if stage.name == made}


def test_the_manifest_tells_which_pythons_an_image_got(project: Project) -> None:
    def pythons(*, host_has: bool) -> dict[str, Any]:
        spec = Matrix(project, "registry", lambda version: host_has).resolve("1.2", "cpu")
        return dict(spec.manifest()["components"]["python"])

    parts = [pythons(host_has=has) for has in (True, False)]
    assert parts[0]["source"] != parts[1]["source"]
    assert not set(parts[0]["sha256"]) & set(parts[1]["sha256"])


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_group_of_a_channel_is_used(project: Project, channel: str) -> None:
    plans = [plan_of(project, channel, host_has=has) for has in (True, False)]
    used = {artifact.group for plan in plans for stage in plan.stages for _, artifact in stage.artifacts}
    assert (
        set(read_channel(project.root / "images" / "channels" / f"{channel}.yml", project.root).groups) - used == set()
    )


def test_caffes_gpu_code_is_compiled_beside_its_own_cuda(project: Project) -> None:
    plan = plan_of(project, "upstream")
    builds = {image: stage for stage in plan.stages if stage.name == "caffe-build" for image in stage.images}
    parents = {image: plan.by_digest[stage.parent or ""] for image, stage in builds.items()}
    matrix = Matrix(project, "upstream")
    for image, parent in parents.items():
        row = matrix.resolve(*image.split("/")).row
        assert builds[image].variables["caffe_build_cpu_only"] == (row.cuda is None)
        assert parent.variables.get("cuda_series") == row.cuda
        assert ("cudnn_version" in parent.variables) == (row.cuda is not None)
    assert "cuda-builder" not in {stage.name for stage in plan_of(project, "registry").stages}, "it has no compiler"


def archive(path: Path, *members: str) -> None:
    """An archive of that name, a wheel or a tar, with an empty file at each of ``members``."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for member in members:
                wheel.writestr(member, "")
    else:
        with tarfile.open(path, "w") as tar:
            for member in members:
                tar.addfile(tarfile.TarInfo(member))


CONTENT = {
    "boost": (
        "boost/libs/python/src/a.cpp",
        "boost/libs/python/src/converter/a.cpp",
        "boost/libs/python/src/object/a.cpp",
    ),
    "opencv": tuple(f"opencv/modules/{module}/src/{name}.cpp" for module in ("core", "imgproc") for name in "ab"),
    "caffe": ("caffe/Makefile", "caffe/src/caffe/a.cpp"),
    "numpy": ("numpy/core/include/a.h",),
    "grpcio_tools": ("grpc_tools/a.py",),
    "mkl_include": ("a/include/mkl.h",),
    "mkl-": ("a/lib/libmkl_rt.so",),
    "intel_openmp": ("a/lib/libiomp5.so",),
}
"""What an archive starts with to what Caffe's build takes out of it."""

FOLDERS = ("sources", "numpy_wheels", "protoc_wheels", "mkl_wheels", "python_archives")
"""What role caffe_build reads, by its variables without their prefix."""


@pytest.mark.parametrize("channel", CHANNELS)
def test_caffes_build_finds_every_archive_among_its_artifacts(project: Project, tmp_path: Path, channel: str) -> None:
    stages = {stage.digest: stage for stage in plan_of(project, channel).stages if stage.name == "caffe-build"}
    role = project.roles / "caffe_build"
    for digest, stage in stages.items():
        work = tmp_path / digest
        for folder, artifact in stage.artifacts:
            (work / folder).mkdir(parents=True, exist_ok=True)
            content = next((content for start, content in CONTENT.items() if artifact.file.startswith(start)), ())
            archive(work / folder / artifact.file, *content)
        series = [interpreter["series"] for interpreter in stage.variables["caffe_build_interpreters"]]
        for one in series:
            program = work / "python" / one / "bin" / f"python{one}"
            program.parent.mkdir(parents=True)
            program.write_text("#!/bin/sh\n", encoding="utf-8")
            program.chmod(0o755)
        names = yaml.safe_load(
            (role / "vars" / f"{stage.variables['caffe_build_distribution']}.yml").read_text(encoding="utf-8")
        )
        defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text(encoding="utf-8"))
        given = {name.upper(): str(work / Path(defaults[f"caffe_build_{name}"]).name) for name in FOLDERS}
        done = subprocess.run(
            ["bash", role / "files" / "unpack.sh"],
            env=given
            | {
                "PATH": os.environ["PATH"],
                "WORK": str(work),
                "OPENCV": str(names["caffe_build_opencv_static"]).lower(),
                "OPENCV_KEPT": "core/a imgproc/a",
                "PATCHES": "",
                "GROUPED": "true",
                "SERIES": " ".join(series),
                "PYTHON_PATH": str(work / "python"),
                "MKL": str(work / "made") if "mkl" in stage.variables["caffe_build_blas"] else "",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{stage.images}: {done.stderr}"


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
            assert name in options, f"{stage.name}: {name} is in no role's options"
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
        assert re.search(rf"{host} \([^)]*{re.escape(urlsplit(artifact.path).path[1:])}", line), artifact.path
    assert not (tmp_path / "store" / "blobs").exists()
