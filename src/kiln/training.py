"""Distributed training over the nodes of a cluster: the guide's samples on two nodes, then on three.

TensorFlow's parameter server and workers, PyTorch's ranks in both ways the guide documents, a worker and a rank that
are killed. The nodes find each other by their stable names alone.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kiln.errors import KilnError
from kiln.platform import Cluster, Node, docker
from kiln.trial import Trial

STEPS_PER_WORKER = 200
"""Enough for a loss that falls and an accuracy far from a guess; the samples' own default is a whole training."""

LEARNED = 0.8
"""Of the test digits, after that many steps; a guess gets 0.1. The guide's table holds whole trainings to more."""

LIMIT_S = 240.0
"""For one run; a process that has not ended by then hangs."""

SILENCE_S = 8
"""After that many seconds without a word the samples take a process for lost."""

LOST_S = 60.0
"""From the death of one process to the end of the others: SILENCE_S, and what the library needs to let go."""

PS_PORT, WORKER_PORT = 2221, 2223
"""Source: the user guide's own example."""


@dataclass(frozen=True)
class Samples:
    """Where a node holds the samples, and the virtualenvs to run them in."""

    folder: str
    tensorflow: str
    pytorch: tuple[str, str]
    """One for each way to start its ranks."""


@dataclass(frozen=True)
class Ended:
    """What became of one process of a distributed run."""

    name: str
    code: int | None
    """None: it did not end in time."""
    out: str = ""
    err: str = ""

    @property
    def losses(self) -> list[float]:
        """As it told them while it trained."""
        return [float(loss) for loss in re.findall(r"\bloss (\d+\.\d+)", self.out)]

    @property
    def last_words(self) -> str:
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1] if lines else "it said nothing"


# What is promised of a run: each returns what is wrong in words, or nothing.


def well(run: Sequence[Ended]) -> str:
    """Every process ended, with exit code 0."""
    bad = [f"{one.name} {_end(one)}: {one.last_words}" for one in run if one.code != 0]
    return "; ".join(bad)


def falling(run: Sequence[Ended]) -> str:
    """The loss that each process told last is less than its first."""
    bad = []
    for one in run:
        losses = one.losses
        if len(losses) < 2:
            bad.append(f"{one.name} told {len(losses)} losses")
        elif losses[-1] >= losses[0]:
            bad.append(f"{one.name}'s loss went from {losses[0]} to {losses[-1]}")
    return "; ".join(bad)


def learned(run: Sequence[Ended]) -> str:
    """Exactly one process tells the accuracy, and it is more than a guess."""
    found = re.findall(r"test accuracy: (\d\.\d+)", "".join(one.out for one in run))
    if len(found) != 1:
        return f"the accuracy was told {len(found)} times"
    return "" if float(found[0]) >= LEARNED else f"the accuracy is {found[0]}, wanted {LEARNED}"


def shares(run: Sequence[Ended], addresses: Sequence[str]) -> str:
    """The first worker tells a share of each worker, and none is 0."""
    found = dict(re.findall(r"worker \d+ \(([^)]+)\) made (\d+) of", "".join(one.out for one in run)))
    bad = [
        f"{address} made {found.get(address, 'no')} steps" for address in addresses if not int(found.get(address, 0))
    ]
    return "; ".join(bad)


def same_weights(run: Sequence[Ended]) -> str:
    """Every rank tells the checksum of its weights, and all tell the same."""
    found = dict(re.findall(r"rank (\d+), checksum of the weights: ([0-9a-f]{8})", "".join(one.out for one in run)))
    if set(found) != {str(rank) for rank in range(len(run))}:
        return f"{len(run)} ranks, and checksums of {', '.join(sorted(found)) or 'none'}"
    return "" if len(set(found.values())) == 1 else f"the checksums differ: {found}"


def reported(survivors: Sequence[Ended]) -> str:
    """Every survivor ended with an error of its own that says who is lost."""
    bad = []
    for one in survivors:
        if one.code in (0, None):
            bad.append(f"{one.name} {_end(one)}: {one.last_words}")
        elif not re.search(r"^mnist_dist\.py: .*\b(is lost|broke)\b", one.err, re.MULTILINE):
            bad.append(f"{one.name} does not say who is lost but: {one.last_words}")
    return "; ".join(bad)


def _end(one: Ended) -> str:
    return "did not end" if one.code is None else f"ended with code {one.code}"


class Process:
    """One process of a distributed run, in a login shell on its node."""

    def __init__(self, name: str, node: Node, user: str, script: str, logs: Path) -> None:
        self.name, self.node = name, node
        self._out, self._err = logs / f"{uuid.uuid4().hex}.out", logs / f"{uuid.uuid4().hex}.err"
        command = ["docker", "exec", node.container, "su", "--login", user, "--command", script]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def await_output(self, pattern: str, seconds: float) -> bool:
        """Whether it prints that within so many seconds."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and self._process.poll() is None:
            if re.search(pattern, self._out.read_text(errors="replace")):
                return True
            time.sleep(0.3)
        return False

    def end(self, deadline: float) -> Ended:
        """Waits until the monotonic time ``deadline``; what still runs then is killed."""
        try:
            code: int | None = self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            docker("exec", self.node.container, "pkill", "-KILL", "-f", "mnist_dist.py", check=False)
            self._process.kill()
            self._process.wait()
            code = None
        out, err = (log.read_text(errors="replace") for log in (self._out, self._err))
        return Ended(f"{self.name} on {self.node.name}", code, out, err)


@dataclass
class Training(Trial):
    """The guide's distributed samples on a cluster of the package."""

    samples: Samples = Samples("", "", ("", ""))

    def go_through(self, made: Cluster) -> None:
        """Two nodes, a process that dies on one of them, three nodes."""
        with tempfile.TemporaryDirectory(prefix="kiln-training-") as folder:
            self._logs = Path(folder)
            self._go_through(made)

    def _go_through(self, made: Cluster) -> None:
        with self._begin("create", made):
            self._create(made)
            for node in made.nodes:
                self._check(f"{node.name} has a volume of its own", self._own_volume, made, node)
        self._train("", made)
        with self._begin("killed worker", made):
            run = self._start_tensorflow(made, steps=100_000)
            self._check("the others end, and say who is lost", self._survive, run, run[-1], r"\bits step \d+")
        with self._begin("killed rank", made):
            run = self._start_pytorch(made, by_address=True, steps=100_000)
            self._check("the others end, and say so", self._survive, run, run[-1], r"\bstep \d+ of")
        with self._begin("add a node", made):
            added = self._add(made)
            self._check(f"{added.name} has a volume of its own", self._own_volume, made, added)
        self._train(", three nodes", made)
        with self._begin("delete", made):
            self._delete(made)

    def _train(self, suffix: str, made: Cluster) -> None:
        with self._begin(f"TensorFlow{suffix}", made):
            run = self._end(self._start_tensorflow(made), LIMIT_S)
            self._check("every process ends well", well, run)
            self._check("the loss falls on every worker", falling, run[1:])
            self._check("every worker has a share", shares, run, [f"{node.name}:{WORKER_PORT}" for node in made.nodes])
            self._check("the net has learned", learned, run)
        for by_address in (False, True):
            with self._begin(f"PyTorch{' by address' if by_address else ''}{suffix}", made):
                run = self._end(self._start_pytorch(made, by_address=by_address), LIMIT_S)
                self._check("every rank ends well", well, run)
                self._check("the loss falls on every rank", falling, run)
                self._check("all ranks end with the same weights", same_weights, run)
                self._check("the net has learned", learned, run)

    def _own_volume(self, made: Cluster, node: Node) -> str:
        """The node's data volume is mounted, and what it writes there no other node sees."""
        place = self.topology.mount_point
        mark = f"{place}/of-{node.name}"
        made.execute(node, f"mountpoint -q {place} && touch {mark}", user=self.user)
        for other in made.nodes:
            if other is not node and made.execute(other, f"ls {place}", user=self.user).find(f"of-{node.name}") >= 0:
                return f"{other.name} sees what {node.name} writes to {place}"
        return ""

    def _start_tensorflow(self, made: Cluster, steps: int = 0) -> list[Process]:
        """The parameter server on the first node, then a worker on each."""
        workers = ",".join(f"{node.name}:{WORKER_PORT}" for node in made.nodes)
        steps = steps or STEPS_PER_WORKER * len(made.nodes)
        flags = f"--ps_hosts={made.nodes[0].name}:{PS_PORT} --worker_hosts={workers} --steps {steps}"
        jobs = [("ps", 0, made.nodes[0]), *(("worker", index, node) for index, node in enumerate(made.nodes))]
        return [
            self._start(
                f"{job} {index}",
                node,
                self.samples.tensorflow,
                "tensorflow",
                f"{flags} --job_name={job} --task_index={index} --timeout {SILENCE_S}",
            )
            for job, index, node in jobs
        ]

    def _start_pytorch(self, made: Cluster, *, by_address: bool, steps: int = STEPS_PER_WORKER) -> list[Process]:
        """A rank on each node."""
        flags = f"--world-size {len(made.nodes)} --steps {steps} --timeout {SILENCE_S}"
        return [
            self._start(
                f"rank {rank}",
                node,
                self.samples.pytorch[by_address],
                "pytorch",
                flags + (f" --master-addr {made.nodes[0].name} --rank {rank}" if by_address else ""),
            )
            for rank, node in enumerate(made.nodes)
        ]

    def _start(self, name: str, node: Node, workspace: str, folder: str, flags: str) -> Process:
        script = f"source {workspace}/bin/activate && cd {self.samples.folder}/{folder} && python mnist_dist.py {flags}"
        return Process(name, node, self.user, script, self._logs)

    @staticmethod
    def _end(run: Sequence[Process], seconds: float) -> list[Ended]:
        deadline = time.monotonic() + seconds
        return [process.end(deadline) for process in run]

    def _survive(self, run: Sequence[Process], victim: Process, training: str) -> str:
        """Kills the victim once it trains; what is wrong with the end of the others."""
        try:
            if not victim.await_output(training, LIMIT_S):
                raise KilnError("has not begun to train", where=victim.node.name, fix="see the step before")
            docker("exec", victim.node.container, "pkill", "-KILL", "-f", "^python mnist_dist.py")
        finally:
            ended = self._end(run, LOST_S)
        dead = ended[run.index(victim)]
        if dead.code in (0, None):
            return f"{dead.name} {_end(dead)} although it was killed"
        return reported([one for one in ended if one is not dead])
