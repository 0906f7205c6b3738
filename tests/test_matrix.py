"""The matrix accepts the project's tables, and refuses broken ones in one sentence with file, line and the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from kiln.errors import KilnError
from kiln.matrix import Matrix
from kiln.project import Project
from kiln.stages import StageTable

RELEASE = "images/releases/1.2.yml"
REGISTRY = "images/channels/registry.yml"
UPSTREAM = "images/channels/upstream.yml"
TENSORFLOW = "images/components/tensorflow.yml"
STAGES = "images/stages.yml"


@dataclass(frozen=True)
class Broken:
    """A table with one thing wrong: the first match of ``find`` in ``file`` becomes ``put``."""

    name: str
    file: str
    find: str
    put: str
    says: str
    """Pattern that the refusal must match."""
    channel: str = "registry"
    line_of: str | None = None
    """Text whose line the refusal must name; ``put``'s first line where none is given."""


BROKEN = [
    # images/releases
    Broken("driver too old", RELEASE, 'driver: "387.26"', 'driver: "384.81"', r"driver 384\.81 is older than the 387\.26 that CUDA 9\.1 needs"),
    Broken("driver is no number", RELEASE, 'driver: "387.26"', 'driver: "new"', r"'new' is not a dotted number"),
    Broken("unknown component version", RELEASE, 'tensorflow: "1.8.0"', 'tensorflow: "9.9"', r"tensorflow 9\.9 is in no component table; .*1\.6\.0"),
    Broken("unknown cuda", RELEASE, 'cuda: "9.1"', 'cuda: "7.5"', r"cuda 7\.5 is in no component table"),
    Broken("unknown cudnn", RELEASE, 'cudnn: "7.1.3"', 'cudnn: "6.0"', r"cudnn 6\.0 is in no component table"),
    Broken("unknown python", RELEASE, '"2.7.18"', '"2.7.9"', r"python 2\.7\.9 is in no component table"),
    Broken("python twice", RELEASE, '["2.7.18", "3.6.15"]', '["2.7.18", "2.7.18"]', r"list each series once"),
    Broken("no python", RELEASE, '["2.7.18", "3.6.15"]', "[]", r"list each series once"),
    Broken("gpu without cuda", RELEASE, '    cuda: "9.1"\n', "", r"gpu image without cuda", line_of="cuda91:"),
    Broken("gpu without cudnn", RELEASE, '    cudnn: "7.1.3"\n', "", r"gpu image without cudnn", line_of="cuda91:"),
    Broken("gpu without driver", RELEASE, '    driver: "387.26"\n', "", r"gpu image without driver", line_of="cuda91:"),
    Broken("cpu with cuda", RELEASE, '    mkl: "2018.0.3"\n', '    cuda: "9.1"\n    mkl: "2018.0.3"\n', r"cpu image with cuda 9\.1; remove cuda"),
    Broken("intel caffe on gpu", RELEASE, "caffe: bvlc", "caffe: intel", r"Caffe variant intel runs on cpu, this image is for gpu"),
    Broken("caffe without mkl", RELEASE, '    mkl: "2018.0.3"\n', "", r"Caffe variant intel needs MKL", line_of="caffe: intel"),
    Broken("mkl without use", RELEASE, "caffe: intel", "caffe: bvlc", r"Caffe variant bvlc does not use MKL", line_of="mkl:"),
    Broken("unknown caffe variant", RELEASE, "caffe: bvlc", "caffe: amd", r"caffe amd is in no component table"),
    Broken("unknown key in a row", RELEASE, 'keras: "2.2.0"', 'keras: "2.2.0"\n    theano: "1.0"', r"unknown key theano", line_of="theano:"),
    Broken("missing key in a row", RELEASE, '    keras: "2.2.0"\n', "", r"key keras is missing", line_of="cuda91:"),
    Broken("device is no device", RELEASE, "device: gpu", "device: tpu", r"[Ii]nvalid enum value 'tpu'"),
    Broken("version is a float", RELEASE, 'cuda: "9.1"', "cuda: 9.1", r"[Ee]xpected"),
    Broken("key stands twice", RELEASE, 'keras: "2.2.0"', 'keras: "2.2.0"\n    keras: "2.1.5"', r"key keras stands twice", line_of='keras: "2.1.5"'),
    Broken("release of another name", RELEASE, 'release: "1.2"', 'release: "1.3"', r"says it is release 1\.3; write 1\.2"),
    Broken("upgrade from nowhere", RELEASE, 'upgrades_from: ["1.1"]', 'upgrades_from: ["0.9"]', r"names release 0\.9, which has no table"),
    Broken("unknown top key", RELEASE, "allow_default_password: true", "colour: red", r"unknown key colour"),
    Broken("images is a list", RELEASE, "images:\n", "images: []\nrest:\n", r"[Ee]xpected .*object|unknown key rest", line_of="images:"),
    Broken("broken YAML", RELEASE, "images:", "images: [", r"is not valid YAML", line_of=None),
    Broken("tab in YAML", RELEASE, "    device: gpu", "\tdevice: gpu", r"is not valid YAML"),
    # images/components
    Broken("component of another name", TENSORFLOW, "component: tensorflow", "component: theano", r"says it is component theano"),
    Broken("component without source", TENSORFLOW, "    source: setup.py of TensorFlow 1.8.0\n", "", r"key source is missing", line_of='"1.8.0":'),
    Broken("component with unknown key", TENSORFLOW, "    cpu_flags: [avx]", "    cpu_flags: [avx]\n    gpu_flags: []", r"unknown key gpu_flags", line_of="gpu_flags"),
    Broken("component without versions", TENSORFLOW, "versions:", "version:", r"unknown key version"),
    Broken("version key unquoted", "images/components/cuda.yml", '"9.1":', "9.1:", r"is not a string; quote it"),
    Broken("cudnn not for this cuda", "images/components/cudnn.yml", '"9.1"', '"9.0"', r"cuDNN 7\.1\.3 is not built for CUDA 9\.1", line_of=None),
    # images/channels
    Broken("channel of another name", REGISTRY, "channel: registry", "channel: debian", r"says it is channel debian"),
    Broken("channel without base", REGISTRY, "base:", "basis:", r"unknown key basis"),
    Broken("unknown base kind", REGISTRY, "kind: mmdebstrap", "kind: debootstrap", r"[Ii]nvalid enum value 'debootstrap'"),
    Broken("component nobody delivers", REGISTRY, "  keras:\n", "  cudart:\n", r"cudart, which is no component"),
    Broken("delivery without source", REGISTRY, "    group: qsctl\n    source: the Python index\n", "    group: qsctl\n", r"key source is missing", line_of="qsctl:"),
    Broken("group that does not exist", REGISTRY, "group: caffe-source", "group: caffe-tree", r"needs artifact group caffe-tree, which channel registry lacks", line_of=None),
    Broken("substitution of no component", REGISTRY, "component: pytorch", "component: theano", r"substitution of theano, which is no component"),
    Broken("substitution by itself", REGISTRY, 'by: "1.0.0"', 'by: "0.4.0"', r"pytorch 0\.4\.0 stands in for itself", line_of="- component: pytorch"),
    Broken("substitution by an unknown version", REGISTRY, 'by: "1.0.0"', 'by: "1.0.9"', r"pytorch 1\.0\.9 is in no component table", line_of=None),
    Broken("substituted twice", REGISTRY, "    device: gpu\n", "", r"caffe is substituted twice|stands twice", line_of=None),
    Broken("substitution of nothing", REGISTRY, 'instead_of: ["7.1.3"]', "instead_of: []", r"substitution of cudnn replaces nothing", line_of="- component: cudnn"),
    Broken("substitution without a reason", REGISTRY, "    why: BVLC Caffe built on Intel MKL", "    because: BVLC Caffe built on Intel MKL", r"unknown key because|key why is missing", line_of=None),
    Broken("artifact without sha256", REGISTRY, "      sha256: e0eb3f06794f7402c77b7dec8e8480273ee1a1bb192e9122b621a69d4147ad0c\n", "", r"has no sha256; give it one, or mark it lock: first-fetch", line_of="file: caffe_1.0.0+git20180821.99bd997.orig.tar.gz"),
    Broken("sha256 too short", REGISTRY, "sha256: e0eb3f06", "sha256: e0eb", r"not 64 lower-case hex digits", line_of="file: caffe_1.0.0+git20180821.99bd997.orig.tar.gz"),
    Broken("sha256 and lock", REGISTRY, "      sha256: e0eb3f06", "      lock: first-fetch\n      sha256: e0eb3f06", r"has a sha256 and a lock", line_of="file: caffe_1.0.0+git20180821.99bd997.orig.tar.gz"),
    Broken("artifact with a folder", REGISTRY, "file: python-2.7.18.tar", "file: ../python-2.7.18.tar", r"is not a plain file name"),
    Broken("artifact twice", REGISTRY, "file: python-3.6.15.tar", "file: python-2.7.18.tar", r"stands twice in group python", line_of=None),
    Broken("unknown origin", REGISTRY, "origin: debian", "origin: ftp", r"[Ii]nvalid enum value 'ftp'"),
    Broken("url that is none", UPSTREAM, "path: https://download.pytorch.org", "path: download.pytorch.org", r"no URL", channel="upstream", line_of=None),
    Broken("narrow wheel for a UCS4 Python", UPSTREAM, "file: tensorflow-1.8.0-cp27-cp27mu", "file: tensorflow-1.8.0-cp27-cp27m", r"tensorflow-1\.8\.0-cp27-cp27m-linux_x86_64\.whl fits none of the interpreters", channel="upstream", line_of="tensorflow-1.8.0-cuda91:"),
    Broken("wheel of another version", UPSTREAM, "file: tensorflow-1.8.0-cp27", "file: tensorflow-1.7.0-cp27", r"is not tensorflow 1\.8\.0", channel="upstream", line_of="tensorflow-1.8.0-cuda91:"),
    Broken("wheel of another platform", UPSTREAM, "file: torch-0.4.0-cp36-cp36m-linux_x86_64.whl", "file: torch-0.4.0-cp36-cp36m-macosx_10_7_x86_64.whl", r"fits none of the interpreters", channel="upstream", line_of="pytorch-0.4.0-cuda91:"),
    Broken("no wheel for one Python", UPSTREAM, "file: torch-0.4.0-cp36-cp36m-linux_x86_64.whl", "file: torchvision-0.4.0-cp36-cp36m-linux_x86_64.whl", r"no wheel of pytorch 0\.4\.0 is for Python 3\.6", channel="upstream", line_of="pytorch-0.4.0-cuda91:"),
    Broken("wheel name that is none", UPSTREAM, "file: torch-0.4.0-cp36-cp36m-linux_x86_64.whl", "file: torch-0.4.0.whl", r"[Ii]nvalid wheel filename", channel="upstream", line_of="pytorch-0.4.0-cuda91:"),
    # images/node.yml
    Broken("node with unknown key", "images/node.yml", "ports:", "doors:", r"unknown key doors|key ports is missing", line_of=None),
    Broken("port is text", "images/node.yml", "jupyter: 8888", "jupyter: many", r"[Ee]xpected int"),
]  # fmt: skip


def resolve_everything(project: Project, channel: str) -> None:
    matrix = Matrix(project, channel)
    for release in matrix.releases():
        for image in matrix.images(release):
            matrix.resolve(release, image)


@pytest.mark.parametrize("channel", ["registry", "upstream"])
def test_the_projects_own_tables_are_accepted(project: Project, channel: str) -> None:
    resolve_everything(project, channel)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_table_is_refused_with_place_and_way_out(project: Project, broken: Broken) -> None:
    path = project.root / broken.file
    text = path.read_text(encoding="utf-8")
    assert broken.find in text, "the table no longer holds what this test breaks"
    changed = text.replace(broken.find, broken.put, 1)
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(KilnError, match=broken.says) as refused:
        resolve_everything(project, broken.channel)
    said = str(refused.value)
    assert "\n" not in said
    assert refused.value.fix
    place = re.match(r"(images/[\w./-]+\.yml):(\d+): |images/locks", said)
    assert place, said
    mark = broken.line_of or (broken.put.splitlines()[0].strip() if broken.put and broken.line_of is None else None)
    if broken.line_of is not None and mark is not None:
        line = changed.splitlines()[int(place[2]) - 1]
        assert mark in line, f"{said}\nnames line {line!r}"


def test_at_least_forty_broken_tables_are_refused() -> None:
    assert len({broken.name for broken in BROKEN}) >= 40


@pytest.mark.parametrize(
    ("release", "image", "channel", "says"),
    [
        ("9.9", "cpu", "registry", r"release '9\.9' does not exist; choose one of 1\.1, 1\.2"),
        ("1.2", "tpu", "registry", r"image tpu is not in release 1\.2; choose one of cuda91, cuda80, cpu"),
        ("1.2", "cpu", "ftp", r"channel 'ftp' does not exist; choose one of registry, upstream"),
        ("../1.2", "cpu", "registry", r"release '\.\./1\.2' does not exist"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(
    project: Project, release: str, image: str, channel: str, says: str
) -> None:
    with pytest.raises(KilnError, match=says):
        Matrix(project, channel).resolve(release, image)


def test_the_registry_declares_what_it_substitutes(project: Project) -> None:
    spec = Matrix(project, "registry").resolve("1.2", "cuda91")
    assert set(spec.substitutions) == {"base", "caffe", "cuda", "cudnn", "digits", "pytorch", "tensorflow"}
    assert spec.components["pytorch"].version == spec.row.pytorch
    assert spec.components["pytorch"].installed != spec.row.pytorch
    assert spec.components["keras"].verdict == "exact"


def test_upstream_substitutes_nothing(project: Project) -> None:
    matrix = Matrix(project, "upstream")
    for release in matrix.releases():
        for image in matrix.images(release):
            assert matrix.resolve(release, image).substitutions == {}


STAGE_TABLES = [
    ("unknown key", "stages:", "phases:", "unknown key phases"),
    ("unknown stage key", "kind: bootstrap", "kind: bootstrap\n    colour: red", "unknown key colour"),
    ("stage twice", "name: python\n", "name: base\n", "stage base stands twice"),
    ("no playbook", "name: keras\n", "name: theano\n", "stage theano has no playbook"),
    ("build without parent", "    kind: build\n    parent: builder\n", "    kind: build\n", "names no parent"),
    ("unknown parent", "parent: builder\n", "parent: nobody\n", "names nobody, which is no earlier stage"),
]


@pytest.mark.parametrize(("name", "find", "put", "says"), STAGE_TABLES, ids=[row[0] for row in STAGE_TABLES])
def test_a_broken_stage_table_is_refused(project: Project, name: str, find: str, put: str, says: str) -> None:
    path: Path = project.root / STAGES
    text = path.read_text(encoding="utf-8")
    assert find in text
    path.write_text(text.replace(find, put, 1), encoding="utf-8")
    with pytest.raises(KilnError, match=says) as refused:
        StageTable(project)
    assert re.match(r"images/stages\.yml:\d+: ", str(refused.value))
