"""What is promised of distributed training: kept by what the samples print, and seen broken where it is broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from kiln import training
from kiln.errors import KilnError
from kiln.package import Packages
from kiln.platform import Cluster
from kiln.release_ids import ReleaseIds
from kiln.training import Ended, Samples, Training
from kiln.trial import Check
from stage_container import PROJECT
from tabled import HOME, MNIST, SAMPLES, USER, VENV3

SERVER = Ended("ps 0 on node1", 0, "ps 0 of 1 at node1:2221\nall workers are done\n")
WORKERS = [
    Ended(
        "worker 0 on node1",
        0,
        "worker 0, its step 50, step 99 of all, loss 1.9000\nworker 0, its step 100, step 202 of all, loss 0.4000\n"
        "worker 0 (node1:2223) made 100 of 202 steps\nworker 1 (node2:2223) made 102 of 202 steps\n"
        "test accuracy: 0.9100\n",
    ),
    Ended(
        "worker 1 on node2",
        0,
        "worker 1, its step 50, step 98 of all, loss 2.0000\nworker 1, its step 100, step 199 of all, loss 0.5000\n"
        "worker 1 made 102 of the cluster's 202 steps\n",
    ),
]
RANKS = [
    Ended("rank 0 on node1", 0, "rank 1, checksum of the weights: 0123abcd\n"),
    Ended("rank 1 on node2", 0, "rank 0, checksum of the weights: 0123abcd\ntest accuracy: 0.8800\n"),
]
LOST = Ended("worker 0 on node1", 1, err="mnist_dist.py: worker 1 (node2:2223) is lost, so this one ends\n")
ADDRESSES = ("node1:2223", "node2:2223")


def other(one: Ended, **changed: str | int | None) -> Ended:
    return Ended(**{**one.__dict__, **changed})


def shares(run: Sequence[Ended]) -> str:
    return training.shares(run, ADDRESSES)


Judge = Callable[[Sequence[Ended]], str]


@pytest.mark.parametrize(
    ("judge", "run"),
    [
        (training.well, [SERVER, *WORKERS]),
        (training.falling, WORKERS),
        (training.learned, [SERVER, *WORKERS]),
        (training.learned, RANKS),
        (shares, WORKERS),
        (training.same_weights, RANKS),
        (training.reported, [LOST]),
    ],
)
def test_a_sound_run_keeps_the_promise(judge: Judge, run: list[Ended]) -> None:
    assert judge(run) == ""


BROKEN: list[tuple[Judge, list[Ended], str]] = [
    (training.well, [SERVER, other(WORKERS[0], code=1, err="mnist_dist.py: no\n")], "ended with code 1: mnist_dist.py"),
    (training.well, [other(SERVER, code=None)], "ps 0 on node1 did not end"),
    (training.falling, [other(WORKERS[0], out="loss 1.0000\nloss 1.0000\n")], "went from 1.0 to 1.0"),
    (training.falling, [other(WORKERS[0], out="loss 1.0000\n")], "told 1 losses"),
    (training.falling, [WORKERS[0], other(WORKERS[1], out="")], "worker 1 on node2 told 0 losses"),
    (training.learned, [SERVER], "told 0 times"),
    (training.learned, [WORKERS[0], WORKERS[0]], "told 2 times"),
    (training.learned, [other(WORKERS[0], out="test accuracy: 0.1135\n")], "the accuracy is 0.1135"),
    (shares, [WORKERS[1]], "node1:2223 made no steps; node2:2223 made no steps"),
    (shares, [other(WORKERS[0], out=WORKERS[0].out.replace("made 102", "made 0"))], "node2:2223 made 0 steps"),
    (training.same_weights, [RANKS[0]] * 2, "2 ranks, and checksums of 1"),
    (training.same_weights, [RANKS[0], other(RANKS[1], out=RANKS[1].out.replace("abcd", "abce"))], "differ"),
    (training.same_weights, [other(RANKS[0], out="")], "none"),
    (training.reported, [other(LOST, code=0)], "ended with code 0"),
    (training.reported, [LOST, other(LOST, code=None)], "did not end"),
    (training.reported, [other(LOST, err="Traceback (most recent call last):\nOSError: broke\n")], "does not say who"),
]


@pytest.mark.parametrize(("judge", "run", "says"), BROKEN, ids=[row[2] for row in BROKEN])
def test_a_broken_promise_is_told(judge: Judge, run: list[Ended], says: str) -> None:
    assert says in judge(run)


# On nodes


def trial(before_step: Callable[[str, Cluster], None]) -> list[Check]:
    ids = ReleaseIds(PROJECT.images / "release-ids.example.yml", PROJECT.root, "1.2", ("1.1",))
    places = Samples(SAMPLES, VENV3, (VENV3, VENV3))
    files = Packages(PROJECT, ids).make("cpu")
    made = Training("deeplearning:1.2-cpu", files, USER, HOME, before_step=before_step, samples=places)
    checks = made.run()
    assert made.exit_code == 1
    assert checks[-1] == Check(checks[-1].step, "everything is gone", "passed")
    return checks


def said(checks: list[Check], step: str, what: str) -> str:
    (check,) = (check for check in checks if (check.step, check.what) == (step, what))
    assert check.verdict == "failed"
    return check.said


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_nodes_that_cannot_train_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiln.training.LIMIT_S", 15.0)
    monkeypatch.setattr("kiln.training.LOST_S", 1.0)

    def break_it(step: str, made: Cluster) -> None:
        if step == "TensorFlow":
            made.execute(made.nodes[1], f"rm -r {MNIST}")
        if step == "killed rank":
            raise KilnError("enough", where="the test", fix="none")

    checks = trial(break_it)
    words = said(checks, "TensorFlow", "every process ends well")
    assert "worker 1 on node2 ended with code 1: mnist_dist.py: " in words
    assert "ps 0 on node1 did not end" in words
    assert "node2:2223 made no steps" in said(checks, "TensorFlow", "every worker has a share")
    assert "2 ranks, and checksums of none" in said(checks, "PyTorch", "all ranks end with the same weights")
    assert "has not begun to train" in said(checks, "killed worker", "the others end, and say who is lost")


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_nodes_that_share_a_volume_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Cluster.add

    def sharing(self: Cluster, image: str, *, volume: str = "") -> object:
        return add(self, image, volume=self.nodes[0].volume if self.nodes else volume)

    monkeypatch.setattr(Cluster, "add", sharing)

    def end_it(step: str, made: Cluster) -> None:
        if step == "TensorFlow":
            raise KilnError("enough", where="the test", fix="none")

    assert "node2 sees what node1 writes" in said(trial(end_it), "create", "node1 has a volume of its own")
