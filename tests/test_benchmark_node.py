"""The speed of a node: the published table, the run that measures beside it, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from kiln.engine import Engine
from kiln.errors import KilnError
from kiln.owner import OWNER_LABEL
from kiln.project import Project, find_project
from kiln.published_speed import Row, read_published_speed

ROOT = Path(__file__).resolve().parent.parent
PROJECT = find_project(ROOT)
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "node.py")]
GUIDE = ROOT / "docs" / "original" / "user-guide-1.2.zh.md"
SECTION = "### 平台性能测试"

RESNET_50_PARAMETERS = 25_636_712
"""Source: Keras' documentation of its applications; 25.6 million in the paper."""


def section() -> str:
    """The guide's section on the platform's speed."""
    return GUIDE.read_text(encoding="utf-8").partition(SECTION)[2].partition("\n### ")[0]


def load(path: Path) -> ModuleType:
    """A script as a module."""
    spec = spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


NODE = load(ROOT / "benchmarks" / "node.py")


# The published table


def as_the_guide_prints(row: Row) -> list[tuple[str, ...]]:
    """The two lines of the guide's table for one row of ours."""
    app = {"cuda91": "CUDA 9.1", "cpu": "CPU"}[row.image]
    app += {"plain": " (无优化)", "mkl": " (MKL优化)"}.get(row.build or "", "")
    cores = f"{row.cores}核({row.processor.replace('any', '默认')})"
    shared = (app, cores, f"{row.memory_gb}G", str(row.gpus), str(row.batch))
    return [
        (*shared, word, f"{speed.images_per_s:.2f} ({speed.step_ms:.2f}ms)")
        for word, speed in (("训练", row.training), ("推理", row.inference))
    ]


def test_the_published_table_is_the_guides() -> None:
    published = read_published_speed(PROJECT)
    lines = [line for line in section().splitlines() if line.count(" | ") == 6 and not line.startswith(("App", "---"))]
    assert [line for row in published.rows for line in as_the_guide_prints(row)] == [
        tuple(cell.strip() for cell in line.split("|")) for line in lines
    ]
    assert len(lines) == 12


def test_the_published_conditions_are_the_guides() -> None:
    published = read_published_speed(PROJECT)
    said = section()
    assert f"选择 {published.model} 模型" in said
    assert f"Python {published.python} + TensorFlow {published.tensorflow} 环境" in said
    assert published.code in said
    assert published.data == "synthetic"
    assert "使用合成数据" in said
    assert published.gpu in GUIDE.read_text(encoding="utf-8")
    assert GUIDE.name in published.source


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("step_ms: 5.02", "step_ms: 5.2", "199.09 images/s are not 5.2 ms for each"),
        ("images_per_s: 8.36", "images_per_s: 0", "0.0 images/s are not 119.62 ms for each"),
        ("batch: 64", "batch: many", "expected int, got str"),
        ("cores: 8", "cors: 8", "unknown key cors"),
        ("build: plain", "build: fast", "Invalid enum value 'fast'"),
        ("    build: plain\n", "", "names no build"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_with_its_line(
    project: Project, before: str, after: str, words: str
) -> None:
    path = project.images / "published-speed.yml"
    text = path.read_text(encoding="utf-8")
    # What is missing is missing from the row, whose line stands above.
    line = text.partition(before)[0].count("\n") + (1 if after else 0)
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(KilnError) as caught:
        read_published_speed(project)
    assert caught.value.where == f"images/published-speed.yml:{line}"
    assert words in caught.value.what


# What the scripts in the image say

SAID = """\
I0101 00:00:00.000000     1 caffe.cpp:352] Use CPU.
layer {
  input_param {
    shape {
      dim: 64
      dim: 1
    }
  }
}
I0101 00:00:00.000000     1 caffe.cpp:412] Average Forward-Backward: 32 ms.
"""


def test_lenet_is_told_in_images_per_second() -> None:
    assert NODE.read_lenet(SAID, "caffe") == (64, 2000.0)


@pytest.mark.parametrize(
    "said",
    ["", "Segmentation fault", SAID.replace("32 ms", "nan ms"), SAID.replace("32 ms", "0 ms"), SAID.replace("64", "0")],
    ids=["nothing", "crash", "no number", "no time", "no batch"],
)
def test_lenet_without_a_time_is_refused(said: str) -> None:
    with pytest.raises(KilnError) as caught:
        NODE.read_lenet(said, "caffe on MKL")
    last = said.strip().splitlines()[-1] if said else "nothing"
    assert str(caught.value).startswith(f"caffe on MKL: told no time of forward and backward but {last!r}")


def test_the_last_result_counts() -> None:
    said = 'Using TensorFlow backend.\nRESULT {}\nnoise\nRESULT {"name": "MKL 1", "gflops": {"1024": 2.5}}\nmore\n'
    assert NODE.read_result(said, NODE.Product, "gemm.py") == NODE.Product("MKL 1", {1024: 2.5})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "printed no result but 'nothing'"),
        ("Illegal instruction\n", "printed no result but 'Illegal instruction'"),
        ("RESULT", "printed no result but 'RESULT'"),
        ("RESULT {", "makes no sense"),
        ("RESULT [1]", "makes no sense"),
        ('RESULT {"name": "MKL", "gflops": {"1024": 0}}', "makes no sense"),
        ('RESULT {"name": "MKL", "gflops": {"1024": NaN}}', "makes no sense"),
        ('RESULT {"name": "MKL", "gflops": {"side": 1}}', "makes no sense"),
        ('RESULT {"name": "MKL", "gflops": {}, "more": 1}', "makes no sense"),
    ],
)
def test_garbage_is_no_result(said: str, words: str) -> None:
    with pytest.raises(KilnError) as caught:
        NODE.read_result(said, NODE.Product, "gemm.py MKL")
    assert words in str(caught.value)
    assert str(caught.value).startswith("gemm.py MKL: ")
    assert "\n" not in str(caught.value)


def test_a_resnet_without_numbers_says_why() -> None:
    found = NODE.read_result('RESULT {"not_run": "TensorFlow finds no GPU"}', NODE.Resnet, "resnet.py")
    assert found.not_run == "TensorFlow finds no GPU"
    for said in (
        "{}",
        '{"training": [1.5]}',
        '{"training": [], "inference": []}',
        '{"training": [1], "inference": [-1]}',
    ):
        with pytest.raises(KilnError, match="makes no sense"):
            NODE.read_result(f"RESULT {said}", NODE.Resnet, "resnet.py")


# The command


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as make starts it."""
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=290
    )


def left_over(process: subprocess.Popen[str]) -> set[str]:
    """Containers of that very run of the benchmark that the engine holds."""
    command = [
        "docker",
        "ps",
        "--all",
        "--filter=name=^kiln-bench-",
        f'--format={{{{.Label "{OWNER_LABEL}"}}}} {{{{.Names}}}}',
    ]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.rsplit(" ", 1) for line in listed.splitlines())
    return {name for owner, name in rows if f"/{process.pid}:" in owner}


def await_container(process: subprocess.Popen[str]) -> set[str]:
    """The container that the run has made by now."""
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if made := left_over(process):
            return made
        time.sleep(0.02)
    raise AssertionError("it made no container")


@pytest.mark.parametrize(
    ("words", "environment", "sentence"),
    [
        (
            ["--image", "nonsense"],
            {},
            r"images/releases/.+: image nonsense is not in release .+; choose one of .*cpu.*",
        ),
        (
            [],
            {"DOCKER_HOST": "unix:///nowhere/engine.sock"},
            r"unix:///nowhere/engine.sock: no Docker engine answers .+",
        ),
        (["--json", "/nowhere/speed.json"], {}, r"/nowhere: there is no such folder; .+"),
    ],
    ids=["unknown image", "no engine", "no folder"],
)
def test_what_cannot_be_run_is_told_in_one_sentence(
    words: list[str], environment: dict[str, str], sentence: str
) -> None:
    done = run(*words, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(f"kiln: {sentence}\n", done.stderr), done.stderr


@pytest.mark.parametrize("words", [["--batch", "0"], ["--batch", "many"], ["--fast"], ["cpu"]])
def test_a_wrong_option_is_refused(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.engine
def test_an_image_that_is_not_baked(project: Project) -> None:
    table = next(iter(sorted(project.images.glob("releases/*.yml"), reverse=True)))
    newer = table.with_name("99.9.yml")
    newer.write_text(
        re.sub(r"(?m)^release: .*$", 'release: "99.9"', table.read_text(encoding="utf-8")), encoding="utf-8"
    )
    with pytest.raises(KilnError) as caught:
        NODE.measure(project, "cpu", NODE.QUICK, lambda what: None)
    assert str(caught.value) == "deeplearning:99.9-cpu is not baked; run make images IMAGE=cpu"


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("delay", [0.0, 2.0], ids=["at once", "in the middle"])
def test_nothing_is_left_of_an_interrupted_run(number: signal.Signals, delay: float) -> None:
    process = subprocess.Popen(
        # A shell's background jobs ignore SIGINT, and so would what is started from one.
        [sys.executable, "-c", UNSHIELDED, *COMMAND, "--quick"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await_container(process)
        time.sleep(delay)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert re.fullmatch(r"kiln: .+\n", errors), errors
    assert left_over(process) == set()


@pytest.mark.engine
def test_a_container_that_dies_is_told_in_one_sentence() -> None:
    process = subprocess.Popen([*COMMAND, "--quick"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        (made,) = await_container(process)
        time.sleep(2)
        subprocess.run(["docker", "kill", made], capture_output=True, check=True)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said) == (2, "")
    assert re.fullmatch(r"kiln: \S.* in deeplearning:\S+: ended with exit code \d+: .+\n", errors), errors
    assert left_over(process) == set()


UNSHIELDED = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.mark.engine
def test_a_quick_run_measures_every_row(tmp_path: Path) -> None:
    words = ["--quick", "--json", str(tmp_path / "speed.json")]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert left_over(process) == set()
    data = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    measured = {(row["what"], row["on"].split()[0], row["on"]): row for row in data["measured"]}
    assert [(row["what"], row["on"]) for row in data["measured"] if not row["values"]] == []
    assert all(value > 0 for row in data["measured"] for value in row["values"])
    assert all(row["best"] == max(row["values"]) and row["size"] > 0 for row in measured.values())
    kinds = [what for what, *_ in measured]
    assert kinds.count("ResNet-50 training") == kinds.count("ResNet-50 inference") == 1
    assert {on for what, _, on in measured if what.startswith("LeNet")} == {"Caffe on MKL", "Caffe on OpenBLAS"}
    products = {first for what, first, _ in measured if what.startswith("product")}
    assert products == {"MKL", "OpenBLAS", "TensorFlow", "PyTorch"}

    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    assert model
    assert re.search(rf"(?m)^processor  {re.escape(model[1])} \(.+\), {len(os.sched_getaffinity(0))} cores, ", said)
    assert ("warning" in said) == (data["machine"]["load"] > data["machine"]["cores"] / 2)
    labels = Engine().image_labels(data["image"])
    assert labels
    assert data["digest"] in labels.values()
    assert f"{data['image']}, digest {data['digest'][:12]}" in said
    for row in read_published_speed(PROJECT).rows:
        assert re.search(
            rf"(?m)^published: {row.image}\b.* {row.cores} .*"
            rf" {row.batch} +{row.training.images_per_s} +{row.inference.images_per_s}$",
            said,
        ), row


@pytest.mark.engine
def test_the_network_is_resnet_50() -> None:
    image = f"deeplearning:{NODE.Matrix(PROJECT, 'registry').releases()[-1]}-cpu"
    with NODE.container(image) as name:
        spec = NODE.Matrix(PROJECT, "registry").resolve(image.rpartition(":")[2].partition("-")[0], "cpu").names()
        bench = NODE.Bench(name, image, spec, NODE.QUICK, lambda what: None)
        options = ("--device=cpu", "--batch=1", "--rounds=1", "--steps=1", "--limit=1")
        found = bench.script("resnet.py", NODE.Resnet, *options)
        with pytest.raises(KilnError) as caught:
            bench.script("gemm.py", NODE.Product, "libnone.so", 8)
    assert found.parameters == RESNET_50_PARAMETERS
    assert found.tensorflow == spec["tensorflow"]["installed"]
    assert re.match(r"gemm\.py libnone\.so in \S+: ended with exit code 1: OSError: libnone\.so: .+", str(caught.value))
