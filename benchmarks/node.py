"""Times the frameworks of a baked image on the processor at hand, beside the platform's published speed.

``python benchmarks/node.py [--image cpu] [--quick] [--batch N] [--json PATH]``: ResNet-50 on synthetic data in
TensorFlow, LeNet in Caffe and products of matrices, MKL and plain in turns, all in one container without network that
is gone afterwards. Exit code 2: could not run.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Annotated, Any, TypeVar

import click
import msgspec

from kiln import owner
from kiln.cli import DEFAULT_CHANNEL, make_plan
from kiln.components import Strict
from kiln.engine import DIGEST_LABEL, Engine
from kiln.errors import KilnError, TerminatedError
from kiln.matrix import Matrix
from kiln.owner import OWNER_LABEL
from kiln.platform import docker
from kiln.project import Project, find_project
from kiln.published_speed import PublishedSpeed, read_published_speed
from kiln.store import Store

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "benchmarks" / "node"
MARK = "RESULT "

WORKSPACE = "py3"
"""Source: the guide's measurements are of Python 3.6."""

GPU_BATCH = 64
"""Source: the guide's, with one GPU."""

GPU_CONTROL = Path("/dev/nvidiactl")
"""There once NVIDIA's driver has found a GPU."""

INTEL = "GenuineIntel"
"""As /proc/cpuinfo names the vendor."""

OPEN_BLAS = "libopenblas.so.0"
"""What the build of Caffe on open BLAS loads; in every image."""

LIMIT_S = 900
"""For one script; one that is not done by then hangs."""

T = TypeVar("T")
Positive = Annotated[float, msgspec.Meta(gt=0)]


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    batch: int
    """Images of a step of ResNet-50 on the CPU; a GPU has ``GPU_BATCH``."""
    rounds: int
    steps: int
    """Of training in a round; inference, which is faster, does twice as many."""
    limit_s: int
    """For the rounds of training, and for those of inference; two rounds are always done."""
    turns: int
    """Of each of the libraries that are compared."""
    iterations: int
    """Of LeNet in a turn."""
    sides: tuple[int, ...]
    """Of the matrices."""


FULL = Scale(batch=8, rounds=5, steps=1, limit_s=40, turns=3, iterations=8, sides=(1024, 2048))
QUICK = Scale(batch=2, rounds=2, steps=1, limit_s=10, turns=2, iterations=4, sides=(1024,))


# What the scripts in the image print


class Machine(Strict, frozen=True):
    """``node/machine.py``: what the image runs on, and what it says of itself."""

    processor: str
    vendor: str
    cores: int
    memory_gib: float
    load: float
    """Processes that ran or waited to run, over the last minute."""
    manifest: dict[str, Any]

    @property
    def busy(self) -> bool:
        """Whether other programs take so much that the numbers tell of them too."""
        return self.load > self.cores / 2


class Resnet(Strict, frozen=True):
    """``node/resnet.py``: images/s of each round, or why there are none."""

    tensorflow: str = ""
    keras: str = ""
    build: str = ""
    """Of TensorFlow: mkl or plain."""
    parameters: int = 0
    training: tuple[Positive, ...] = ()
    inference: tuple[Positive, ...] = ()
    not_run: str = ""

    def __post_init__(self) -> None:
        if not self.not_run and not (self.training and self.inference):
            raise ValueError("neither numbers nor a reason")


class Product(Strict, frozen=True):
    """``node/gemm.py``: the library's name for itself, and GFLOP/s by the side of the matrices."""

    name: str
    gflops: dict[int, Positive]


def read_result(said: str, kind: type[T], what: str) -> T:
    """The last result that ``what`` printed; raises KilnError where there is none, or none that makes sense."""
    lines = [line.removeprefix(MARK) for line in said.splitlines() if line.startswith(MARK)]
    if not lines:
        raise KilnError(f"printed no result but {_last(said)!r}", where=what, fix="run the script in the image by hand")
    try:
        return msgspec.json.decode(lines[-1], type=kind, strict=False)
    except msgspec.DecodeError as error:
        raise KilnError(
            f"printed a result that makes no sense ({error})", where=what, fix="correct the script"
        ) from None


def read_lenet(said: str, what: str) -> tuple[int, float]:
    """Batch size, and images/s forward and backward, from what ``caffe time`` said; KilnError where it says neither."""
    batch = re.search(r"input_param \{\s*shape \{\s*dim: ([1-9]\d*)\s", said)
    spent = re.search(r"Average Forward-Backward: (\d+(?:\.\d+)?) ms", said)
    if not batch or not spent or not float(spent[1]):
        raise KilnError(
            f"told no time of forward and backward but {_last(said)!r}", where=what, fix="run it in the image by hand"
        )
    return int(batch[1]), int(batch[1]) * 1000 / float(spent[1])


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["nothing"])[-1][:200]


# What is measured


@dataclass(frozen=True)
class Measured:
    """One speed, on one library or device."""

    what: str
    on: str
    measure: str
    """Of the size: batch or N."""
    size: int
    """Images of a batch, or the side of the matrices; 0 where nothing was run."""
    unit: str
    values: tuple[float, ...] = ()
    """One for each round."""
    not_run: str = ""

    def __str__(self) -> str:
        if self.not_run:
            return f"not run: {self.not_run}"
        low, high = min(self.values), max(self.values)
        return f"{_digits(high)} ({_digits(low)} to {_digits(high)}, {len(self.values)} rounds)"

    def as_data(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "best": max(self.values, default=None)}


def _digits(value: float) -> str:
    return f"{value:.{0 if value >= 1000 else 1 if value >= 100 else 2}f}"


@dataclass(frozen=True)
class Bench:
    """The container in which everything runs, and what the tables say of its image."""

    container: str
    image: str
    spec: dict[str, Any]
    scale: Scale
    doing: Callable[[str], None]

    def execute(self, command: str, what: str, stdin: Path | None = None) -> str:
        """All that a command says in a login shell of the user; KilnError when it fails."""
        self.doing(what)
        words = ["docker", "exec", "--interactive", f"--user={self.spec['node']['user']['name']}", self.container]
        with (stdin or Path(os.devnull)).open("rb") as stream:
            try:
                done = subprocess.run(
                    [*words, "bash", "-lc", command],
                    stdin=stream,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    timeout=LIMIT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise KilnError(f"is not done after {LIMIT_S} s", where=what, fix="free the processor") from None
        if done.returncode:
            raise KilnError(
                f"ended with exit code {done.returncode}: {_last(done.stdout)}",
                where=f"{what} in {self.image}",
                fix="137: something killed it, as for lack of memory; else run kiln verify on the image",
            )
        return done.stdout

    def script(self, name: str, kind: type[T], *words: object) -> T:
        """The result of a script of ``benchmarks/node``, run by the workspace's Python."""
        activate = f"source {self.spec['workspaces'][WORKSPACE]}/bin/activate"
        command = f"{activate} && exec python -B - {' '.join(str(word) for word in words)}"
        what = f"{name} {words[0]}"
        return read_result(self.execute(command, what, SCRIPTS / name), kind, what)

    def resnet(self, device: str) -> list[Measured]:
        """Training and inference of ResNet-50."""
        batch = self.scale.batch if device == "cpu" else GPU_BATCH
        names = [f"ResNet-50 {work}" for work in ("training", "inference")]
        if device == "gpu" and not GPU_CONTROL.exists():
            return [Measured(name, "GPU", "batch", 0, "images/s", not_run="no GPU") for name in names]
        # A GPU's steps are short.
        steps = self.scale.steps * (1 if device == "cpu" else 20)
        options = {"batch": batch, "rounds": self.scale.rounds, "steps": steps, "limit": self.scale.limit_s}
        found = self.script(
            "resnet.py", Resnet, f"--device={device}", *(f"--{key}={value}" for key, value in options.items())
        )
        build = {"mkl": ", MKL", "plain": ", plain"}.get(found.build, "") if device == "cpu" else ""
        on = f"{device.upper()}, TensorFlow {found.tensorflow}{build}" if found.tensorflow else device.upper()
        values = (found.training, found.inference)
        return [
            Measured(name, on, "batch", batch, "images/s", one, found.not_run)
            for name, one in zip(names, values, strict=True)
        ]

    def lenet(self, product: Path | None) -> list[Measured]:
        """Forward and backward of LeNet in Caffe on MKL and on open BLAS, in turns."""
        tree = next(tree for tree in self.spec["caffe_trees"] if tree.endswith(WORKSPACE))
        own = "MKL" if self.spec["mkl"] else "OpenBLAS"
        trees = {own: tree}
        missing = {}
        if own == "MKL" and product is None:
            missing["OpenBLAS"] = "that build is not in the store, kiln bake --inputs makes it anew"
        elif own == "MKL":
            assert product
            trees["OpenBLAS"] = self.unpack(product / "open" / "caffe.tar") + "/" + PurePosixPath(tree).name
        else:
            missing["MKL"] = f"image {self.spec['image']} has no MKL"
        values: dict[str, list[float]] = {blas: [] for blas in trees}
        batch = 0
        for _ in range(self.scale.turns):
            for blas, place in trees.items():
                model = f"-model {tree}/examples/mnist/lenet.prototxt -iterations {self.scale.iterations}"
                what = f"caffe on {blas}"
                batch, speed = read_lenet(self.execute(f"{place}/build/tools/caffe time {model}", what), what)
                values[blas].append(speed)
        name, unit = "LeNet forward and backward", "images/s"
        rows = [
            Measured(name, f"Caffe on {blas}", "batch", batch, unit, tuple(found)) for blas, found in values.items()
        ]
        return rows + [
            Measured(name, f"Caffe on {blas}", "batch", 0, unit, not_run=why) for blas, why in missing.items()
        ]

    def unpack(self, archive: Path) -> str:
        """The folder in the container that holds an archive's content."""
        folder = "/open"
        self.doing("Caffe on open BLAS")
        command = [
            "docker",
            "exec",
            "--interactive",
            self.container,
            "sh",
            "-c",
            f"mkdir {folder} && tar -x -C {folder}",
        ]
        with archive.open("rb") as stream:
            done = subprocess.run(command, stdin=stream, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KilnError(f"cannot be unpacked in {self.image} ({_last(done.stderr)})", where=str(archive))
        return folder

    def gemm(self) -> list[Measured]:
        """Products of matrices through MKL, open BLAS, and what the frameworks bring, in turns."""
        libraries = {OPEN_BLAS: "", "tensorflow": "", "pytorch": ""}
        mkl = f"{self.spec['node']['paths']['mkl']}/lib/libmkl_rt.so"
        if self.spec["mkl"]:
            libraries = {mkl: ""} | libraries
        values: dict[tuple[int, str], list[float]] = {}
        for _ in range(self.scale.turns):
            for library in libraries:
                found = self.script("gemm.py", Product, library, *self.scale.sides)
                if set(found.gflops) != set(self.scale.sides):
                    raise KilnError(f"measured {sorted(found.gflops)}, not what was asked", where=f"gemm.py {library}")
                libraries[library] = found.name
                for side, speed in found.gflops.items():
                    values.setdefault((side, library), []).append(speed)
        name, unit = "product of float32 matrices", "GFLOP/s"
        rows = [Measured(name, libraries[at], "N", side, unit, tuple(found)) for (side, at), found in values.items()]
        rows.sort(key=lambda row: row.size)
        if not self.spec["mkl"]:
            rows.append(Measured(name, "MKL", "N", 0, unit, not_run=f"image {self.spec['image']} has no MKL"))
        return rows


# Where it is measured


@contextmanager
def container(image: str, *options: str) -> Iterator[str]:
    """A container of the image that does nothing, without network; gone afterwards."""
    Engine().remove_orphans()
    name = f"kiln-bench-{uuid.uuid4().hex[:12]}"
    label = f"--label={OWNER_LABEL}={owner.myself()}"
    try:
        command = ["run", "--detach", "--network=none", f"--name={name}", label, *options, image, "sleep", "infinity"]
        docker(*command, whole=True)
        yield name
    finally:
        docker("rm", "--force", "--volumes", name, check=False, whole=True)


@dataclass(frozen=True)
class Report:
    """What was measured, where, and what the platform publishes."""

    image: str
    digest: str
    machine: Machine
    measured: tuple[Measured, ...]
    published: PublishedSpeed

    def as_data(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "image": self.image,
            "digest": self.digest,
            "machine": msgspec.to_builtins(self.machine),
            "busy": self.machine.busy,
            "measured": [row.as_data() for row in self.measured],
            "published": msgspec.to_builtins(self.published),
        }

    def as_text(self) -> str:
        """The machine, ResNet-50 beside the published table, then MKL beside plain."""
        return "\n".join([*self._head(), "", *self._resnet(), "", *self._others()])

    def _head(self) -> Iterator[str]:
        machine = self.machine
        parts = machine.manifest["components"]
        shown = {name: parts[name] for name in ("tensorflow", "keras", "pytorch", "caffe", "mkl") if name in parts}
        processor = f"{machine.processor} ({machine.vendor}), {machine.cores} cores"
        yield f"processor  {processor}, {machine.memory_gib:.1f} GiB memory"
        yield f"load       {machine.load:.2f} at the start"
        yield f"image      {self.image}, digest {self.digest[:12]}"
        versions = (f"{name} {part['installed']}" for name, part in shown.items())
        yield f"holds      {', '.join(versions)}"
        for name, part in shown.items():
            if part["verdict"] == "substituted":
                yield f"instead    {name}: {part['why']}"
        if machine.busy:
            yield f"warning    the load is above half of {machine.cores} cores: other programs make the numbers smaller"

    def _resnet(self) -> Iterator[str]:
        published = self.published
        rows = [("ResNet-50, synthetic data, images/s", "batch", "training", "inference")]
        found = [row for row in self.measured if row.what.startswith("ResNet-50")]
        for training, inference in zip(found[::2], found[1::2], strict=True):
            rows.append((f"measured: {training.on}", str(training.size or "-"), str(training), str(inference)))
        for row in published.rows:
            speeds = (f"{row.training.images_per_s}", f"{row.inference.images_per_s}")
            rows.append((f"published: {row.name(published.gpu)}", str(row.batch), *speeds))
        yield from aligned(rows)
        yield "measured is the image's own Keras, images of 224x224x3 in NHWC, warm-up left out: best (least to best)"
        yield (
            f"published is other hardware ({published.rows[0].memory_gb} GB memory), Python {published.python}, "
            f"TensorFlow {published.tensorflow}, {published.code}"
        )
        yield f"source: {published.source}"

    def _others(self) -> Iterator[str]:
        others = [row for row in self.measured if not row.what.startswith("ResNet-50")]
        for what in dict.fromkeys(row.what for row in others):
            found = [row for row in others if row.what == what]
            sizes = sorted({row.size for row in found if row.size})
            rows = [(f"{what}, {found[0].unit}, in turns", *(f"{found[0].measure} {size}" for size in sizes))]
            for on in dict.fromkeys(row.on for row in found):
                cells = {row.size: str(row) for row in found if row.on == on}
                rows.append((on, *(cells.get(size, cells.get(0, "")) for size in sizes)))
            yield from aligned(rows)
            yield ""
        ratios = [f"{ratio:.2f} ({what})" for what, ratio in self.mkl_to_open.items()]
        if ratios:
            yield f"MKL is so many times as fast as OpenBLAS: {', '.join(ratios)}"
            if self.machine.vendor != INTEL:
                yield "on processors of other makers than Intel, MKL takes its plain code (Intel's optimization notice)"

    @property
    def mkl_to_open(self) -> dict[str, float]:
        """How many times as fast as open BLAS MKL is, each at its best, by what was measured."""
        best: dict[str, dict[str, float]] = {}
        for row in self.measured:
            for blas, mark in (("MKL", "MKL "), ("open", "OpenBLAS ")):
                if row.values and f"{row.on} ".startswith(("Caffe on " + mark, mark)):
                    best.setdefault(f"{row.what} {row.measure} {row.size}", {})[blas] = max(row.values)
        return {what: speed["MKL"] / speed["open"] for what, speed in best.items() if len(speed) == 2}


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def open_build(project: Project, image: str, channel: str) -> Path | None:
    """What the build of Caffe made, if the store still holds it."""
    plan = make_plan(project, (), (image,), channel)
    stage = next((stage for stage in plan.stages if stage.name == "caffe-build"), None)
    return Store.of(project).product(stage.digest) if stage else None


def measure(project: Project, image: str, scale: Scale, doing: Callable[[str], None]) -> Report:
    """Everything, in one container of the newest release's image; KilnError where that cannot be."""
    published = read_published_speed(project)
    matrix = Matrix(project, DEFAULT_CHANNEL)
    release = matrix.releases()[-1]
    spec = matrix.resolve(release, image).names()
    spec.setdefault("mkl", None)
    reference = f"deeplearning:{release}-{image}"
    engine = Engine()
    engine.check()
    labels = engine.image_labels(reference)
    if labels is None:
        raise KilnError(f"{reference} is not baked", fix=f"run make images IMAGE={image}")
    gpus = ["--gpus=all"] if spec["device"] == "gpu" and GPU_CONTROL.exists() else []
    with container(reference, *gpus) as name:
        bench = Bench(name, reference, spec, scale, doing)
        machine = bench.script("machine.py", Machine, spec["node"]["paths"]["manifest"])
        product = open_build(project, image, machine.manifest["channel"])
        measured = [
            *bench.resnet("cpu"),
            *(bench.resnet("gpu") if spec["device"] == "gpu" else []),
            *bench.lenet(product),
            *bench.gemm(),
        ]
    return Report(reference, labels.get(DIGEST_LABEL, "unknown"), machine, tuple(measured), published)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise TerminatedError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--image", default="cpu", show_default=True, help="Of the newest release.")
@click.option("--quick", is_flag=True, help="Fewer rounds, smaller sizes.")
@click.option("--batch", type=click.IntRange(1, 512), help=f"Of ResNet-50 on the CPU; default {FULL.batch}.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Also write all of it there.")
def benchmark(image: str, quick: bool, batch: int | None, path: Path | None) -> None:
    """Time the frameworks of an image on the processor at hand, beside the platform's published speed."""
    from rich.console import Console

    signal.signal(signal.SIGTERM, _terminated)
    scale = QUICK if quick else FULL
    try:
        if path and not path.parent.is_dir():
            raise KilnError(
                "there is no such folder", where=str(path.parent), fix="make it, or name another with --json"
            )
        with Console(stderr=True).status("") as status:
            report = measure(find_project(ROOT), image, replace(scale, batch=batch or scale.batch), status.update)
        click.echo(report.as_text())
        if path:
            path.write_text(json.dumps(report.as_data(), indent=1) + "\n", encoding="utf-8")
    except KilnError as error:
        click.echo(f"kiln: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"kiln: {error.filename or ''}: {error.strerror or error}; check its permissions", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, TerminatedError) as signalled:
        what, code = ("interrupted", 130) if isinstance(signalled, KeyboardInterrupt) else ("ended by SIGTERM", 143)
        click.echo(f"kiln: {what}; nothing is left in the engine", err=True)
        sys.exit(code)


if __name__ == "__main__":
    benchmark()
