"""The samples of the user guide, put on a node of the current release as role samples does, and run as its user."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kiln.matrix import Matrix
from stage_container import CHECKOUT, PROJECT, Target
from tabled import HOME, SAMPLES, USER, WORKSPACES

FILES = CHECKOUT / "roles" / "samples" / "files"
PROGRAMS = sorted(path.relative_to(FILES / "test").as_posix() for path in (FILES / "test").glob("*/*.py"))
NOTEBOOK = FILES / "test" / "keras" / "mnist.ipynb"
PYTHONS = ("py2", "py3")
IMAGE = f"deeplearning:{Matrix(PROJECT, 'registry').releases()[-1]}-cpu"

ENOUGH = 0.95
"""Accuracy that the samples promise on the stand-in's digits."""

LONGEST_S = 120
"""Time that they promise on two cores."""

CORES = "--cpus=2"

pytestmark = pytest.mark.timeout(900)


# The files


def test_the_guides_samples_are_there() -> None:
    assert {
        "pycaffe/mnist.py",
        "tensorflow/mnist.py",
        "tensorflow/mnist_dist.py",
        "pytorch/mnist.py",
        "pytorch/mnist_dist.py",
        "keras/mnist.py",
    } <= set(PROGRAMS)


@pytest.mark.parametrize("sample", PROGRAMS)
def test_samples_are_written_for_python_3_6(sample: str) -> None:
    ast.parse((FILES / "test" / sample).read_text(encoding="utf-8"), sample, feature_version=(3, 6))


def test_what_samples_share_stands_once() -> None:
    shared = {path.name for path in (FILES / "shared").glob("*.py")}
    copies = [path for path in (FILES / "test").glob("*/*.py") if path.name in shared]
    assert {path.name for path in copies} == shared
    assert [path for path in copies if not path.is_symlink()] == []


def test_the_notebook_is_as_nobody_has_run_it() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        ast.parse("".join(line for line in cell["source"] if not line.startswith("%")))


# On a node


@dataclass(frozen=True)
class Done:
    """What a command of the user did."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def accuracy(self) -> float:
        found = re.findall(r"^test accuracy: (\d\.\d{4})$", self.out, re.MULTILINE)
        assert len(found) == 1, self.out + self.err
        return float(found[0])


@dataclass(frozen=True)
class Started:
    """A command that runs."""

    process: subprocess.Popen[str]
    since: float

    def wait(self, seconds: float) -> Done:
        out, err = self.process.communicate(timeout=seconds)
        return Done(self.process.returncode, out, err, time.monotonic() - self.since)


@dataclass(frozen=True)
class Node:
    """A container in which role samples has run."""

    target: Target

    def start(self, folder: str, command: str, python: str = "py3") -> Started:
        """Starts a command as the guide says: in a login shell of ubuntu, the virtualenv on, in a folder."""
        script = f"source {WORKSPACES}/{python}/bin/activate && cd {folder} && {command}"
        line = ["docker", "exec", self.target.name, "su", "--login", USER, "--command", script]
        since = time.monotonic()
        return Started(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), since)

    def run(self, folder: str, command: str, python: str = "py3", *, seconds: float = 300) -> Done:
        return self.start(folder, command, python).wait(seconds)

    def kill(self, words: str) -> None:
        """Kills the process whose command line has these words, as a lost node would end it."""
        self.target.shell(f"pkill -9 --full '^python .*{words}'")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    command = ["docker", "run", "--detach", "--name", name, "--tmpfs=/tmp:exec,mode=1777", CORES]
    subprocess.run([*command, IMAGE, "sleep", "infinity"], check=True, capture_output=True)
    try:
        target = Target(name, tmp_path_factory.mktemp("samples"), "/usr/bin/python3")
        run = target.run_role("samples")
        assert run.code == 0, run.output
        yield Node(target)
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=True, capture_output=True)


@pytest.mark.engine
def test_the_role_run_again_changes_nothing(node: Node) -> None:
    run = node.target.run_role("samples")
    assert run.code == 0, run.output
    assert run.changed == []


@pytest.mark.engine
def test_all_of_it_is_the_users(node: Node) -> None:
    found = node.target.shell(f"find {SAMPLES} {HOME}/tensorflow {HOME}/keras ! -user {USER}")
    assert found == ""


@pytest.mark.engine
@pytest.mark.parametrize("python", PYTHONS)
def test_samples_compile(node: Node, python: str) -> None:
    code = "import sys; [compile(open(name).read(), name, 'exec') for name in sys.argv[1:]]"
    done = node.run("~/test", f'python -c "{code}" */*.py', python)
    assert (done.code, done.err) == (0, "")


@pytest.mark.engine
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("folder", ["~/test/pycaffe", f"{HOME}/tensorflow", "~/test/pytorch"])
def test_a_short_run_tells_what_it_does(node: Node, folder: str, python: str) -> None:
    done = node.run(folder, "python mnist.py --steps 20", python)
    assert done.code == 0, done.err
    assert "digits: 60000 images for training, 10000 for test" in done.out
    assert "MNIST:" not in done.out
    assert re.search(r"on the (CPU|GPU)", done.out)
    assert re.search(r"step 20 of 20, loss \d", done.out)
    # Better than a guess, and not what only a whole run reaches.
    assert 0.1 < done.accuracy < ENOUGH


@pytest.mark.engine
def test_mnist_itself_is_called_so(node: Node) -> None:
    code = "import mnist_data, numpy; print(mnist_data.describe(mnist_data.load('/tmp/small')))"
    make = (
        "mkdir -p /tmp/small && cd /tmp/small && for part in train t10k; do"
        " { printf '\\0\\0\\10\\3\\0\\0\\0\\12\\0\\0\\0\\34\\0\\0\\0\\34';"
        " head -c 7840 /dev/zero; } > $part-images-idx3-ubyte;"
        " printf '\\0\\0\\10\\1\\0\\0\\0\\12\\7\\2\\1\\0\\4\\1\\4\\11\\5\\11' | gzip > $part-labels-idx1-ubyte.gz; done"
    )
    done = node.run("~/test/keras", f'({make}) && python -c "{code}"', "py2")
    assert done.out == "MNIST: 10 images for training, 10 for test\n", done.err


@pytest.mark.engine
@pytest.mark.parametrize("python", PYTHONS)
def test_loaders_of_the_frameworks_find_the_data(node: Node, python: str) -> None:
    torchvision = (
        "from torchvision.datasets import MNIST as M; print([len(M('mnist', t, download=True)) for t in (1, 0)])"
    )
    done = node.run("~/test", f'python -c "{torchvision}"', python)
    assert done.out.splitlines()[-1:] == ["[60000, 10000]"], done.err
    tensorflow = (
        "from tensorflow.examples.tutorials.mnist import input_data as i;"
        " d = i.read_data_sets('mnist'); print(d.train.num_examples, d.test.num_examples)"
    )
    done = node.run("~/test", f'python -c "from __future__ import print_function; {tensorflow}"', python)
    assert done.out.splitlines()[-1:] == ["55000 10000"], done.err


@pytest.mark.engine
def test_torchvision_sees_the_same_digits(node: Node) -> None:
    code = (
        "import mnist_data, torch; d = mnist_data.load(); i, l = torch.load('../mnist/processed/test.pt');"
        " assert (i.numpy() == (d.test_images * 255).round()).all() and (l.numpy() == d.test_labels).all()"
    )
    assert node.run("~/test/pytorch", f'python -c "{code}"', "py2").code == 0


def without_network(code: str, python: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code as the user of the finished image, where nothing can be downloaded."""
    script = f"source {WORKSPACES}/{python}/bin/activate && exec python -B -"
    command = ["docker", "run", "--rm", "--interactive", "--network=none", IMAGE, "su", "-", USER, "--command", script]
    return subprocess.run(command, input=code, capture_output=True, text=True, check=False)


@pytest.mark.engine
@pytest.mark.parametrize("python", PYTHONS)
def test_the_guides_loaders_need_no_network(python: str) -> None:
    pages = [(CHECKOUT / "docs" / f"guide.{language}.md").read_text(encoding="utf-8") for language in ("en", "zh")]
    blocks, same = (re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) for page in pages)
    assert blocks == same
    numbers = ["len(digits)", "digits.train.num_examples", "len(digits.train_images)"]
    code = "".join(f"{block}print({number})\n" for block, number in zip(blocks, numbers, strict=True))
    done = without_network(code, python)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["60000", "55000", "60000"]


@pytest.mark.engine
@pytest.mark.parametrize("python", PYTHONS)
def test_keras_own_loader_downloads_as_the_guide_says(python: str) -> None:
    """Although there is such a file: it has another sum than MNIST's."""
    code = """
import os, sys
sys.path.insert(0, "test/keras")
import keras, mnist_data, numpy
d = mnist_data.load()
os.makedirs(".keras/datasets")
names = ["x_train", "y_train", "x_test", "y_test"]
numpy.savez(".keras/datasets/mnist.npz", **dict(zip(names, d[1:])))
keras.datasets.mnist.load_data()
"""
    done = without_network(code, python)
    assert done.returncode == 1
    assert "URL fetch failure" in done.stderr


@pytest.mark.alone
@pytest.mark.long
@pytest.mark.engine
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("folder", ["~/test/pycaffe", "~/test/tensorflow", "~/test/pytorch", f"{HOME}/keras"])
def test_a_sample_learns_in_time(node: Node, folder: str, python: str) -> None:
    done = node.run(folder, "python mnist.py", python)
    assert done.code == 0, done.err
    assert done.accuracy >= ENOUGH
    assert done.seconds <= LONGEST_S


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(7200)
def test_caffes_own_training_ends_by_itself(node: Node) -> None:
    """kiln guide types the same line, and ends it when the net has learnt."""
    line = "./build/tools/caffe train --solver=examples/mnist/lenet_solver.prototxt"
    done = node.run("~/caffe-py2", f"{line} && ls examples/mnist/lenet_iter_10000.caffemodel", "py2", seconds=6600)
    assert done.code == 0, done.err
    assert "Optimization Done." in done.err
    assert float(re.findall(r"accuracy = (\S+)", done.err)[-1]) >= ENOUGH


@pytest.mark.long
@pytest.mark.engine
def test_the_notebook_runs_through(node: Node) -> None:
    command = "jupyter nbconvert --to notebook --execute --ExecutePreprocessor.timeout=200 --stdout mnist.ipynb"
    done = node.run("~/test/keras", command)
    assert done.code == 0, done.err
    found = re.findall(r"test accuracy: (\d\.\d{4})", done.out)
    assert len(found) == 1
    assert float(found[0]) >= ENOUGH


@pytest.mark.engine
def test_tensorboard_is_given_a_scalar(node: Node) -> None:
    done = node.run("~/test/tensorflow", "rm -rf tflog && python mnist.py --steps 20")
    assert done.code == 0, done.err
    code = (
        "import glob, tensorflow as tf; (log,) = glob.glob('tflog/*/events*');"
        " print(sorted({v.tag for e in tf.train.summary_iterator(log) for v in e.summary.value}))"
    )
    assert node.run("~/test/tensorflow", f'python -c "{code}"').out == "['loss', 'test accuracy']\n"


# Bad input

CLUSTER = "--ps_hosts=127.0.0.1:2221 --worker_hosts=127.0.0.1:2223,127.0.0.1:2224"
TAKE = "python -c 'import socket, time; s = socket.socket(); s.bind((\"\", {port})); s.listen(1); time.sleep(10)'"
HOSTS = "--job_name=ps --task_index=0 --worker_hosts=127.0.0.1:2223"
TOO_FEW = "a batch of 60001 from 60000 images"

BAD = [
    *[(f"{name}/mnist.py --data /nowhere", "no such folder") for name in ("pycaffe", "tensorflow", "pytorch", "keras")],
    *[(f"{name}/mnist.py --fast", "unrecognized arguments: --fast") for name in ("pycaffe", "tensorflow", "pytorch")],
    ("keras/mnist.py --epochs 0", "not a whole number from 1 to"),
    ("pytorch/mnist.py --steps 9999999999", "'9999999999' is not a whole number from 1 to"),
    *[(f"{name}/mnist.py --batch 60001", TOO_FEW) for name in ("pycaffe", "tensorflow", "pytorch")],
    (f"tensorflow/mnist_dist.py {CLUSTER} --job_name=worker --task_index=0 --batch 30001", "30001 from 30000 images"),
    ("pytorch/mnist_dist.py --world-size 3 --batch 20001", "a batch of 20001 from 20000 images"),
    ("keras/mnist.py --data /etc", "/etc/train-images-idx3-ubyte.gz: cannot be read"),
    ("tensorflow/mnist_dist.py", "--ps_hosts"),
    (f"tensorflow/mnist_dist.py {CLUSTER} --job_name=worker --task_index=2", "--task_index 2: there are 2 of worker"),
    (f"tensorflow/mnist_dist.py {CLUSTER} --job_name=chief --task_index=0", "invalid choice: 'chief'"),
    (f"tensorflow/mnist_dist.py {CLUSTER} --job_name=ps --task_index=0 --fast", "unrecognized arguments: --fast"),
    (f"tensorflow/mnist_dist.py {CLUSTER} --job_name=worker --task_index=0 --data /nowhere", "no such folder"),
    (f"tensorflow/mnist_dist.py --ps_hosts=127.0.0.1 {HOSTS}", "argument --ps_hosts: invalid"),
    (f"tensorflow/mnist_dist.py --ps_hosts=127.0.0.1:99999 {HOSTS}", "argument --ps_hosts"),
    (f"tensorflow/mnist_dist.py --ps_hosts=127.0.0.1:2223 {HOSTS}", "an address stands twice"),
    (f"tensorflow/mnist_dist.py --ps_hosts=192.0.2.1:2221 {HOSTS}", "192.0.2.1 is not an address of this node"),
    (f"tensorflow/mnist_dist.py --ps_hosts=nowhere.invalid:2221 {HOSTS}", "there is no host nowhere.invalid"),
    ("pytorch/mnist_dist.py --master-addr 127.0.0.1 --rank 2", "--rank 2: a run of 2 has ranks from 0"),
    ("pytorch/mnist_dist.py --master-addr 127.0.0.1 --rank one", "invalid int value: 'one'"),
    ("pytorch/mnist_dist.py --rank 0", "--master-addr and --rank go together"),
    ("pytorch/mnist_dist.py --master-port 0", "not a port"),
    ("pytorch/mnist_dist.py --fast", "unrecognized arguments: --fast"),
    ("pytorch/mnist_dist.py --data /nowhere", "no such folder"),
    ("pytorch/mnist_dist.py --start-timeout 2", "only 1 of 2 processes called within 2 s"),
    ("pytorch/mnist_dist.py --master-addr 127.0.0.1 --rank 0 --start-timeout 2", "rank 1 has not come within 2 s"),
    ("pytorch/mnist_dist.py --master-addr 127.0.0.1 --rank 1 --start-timeout 2", "was not complete within 2 s"),
]


def says_one_sentence(done: Done, words: str) -> bool:
    """Whether a sample failed with one line on standard error that has the words."""
    # Keras tells its backend on standard error, in every version.
    lines = [line for line in done.err.splitlines() if line != "Using TensorFlow backend."]
    return done.code != 0 and len(lines) == 1 and words in lines[0]


@pytest.mark.engine
@pytest.mark.parametrize(("line", "words"), BAD)
def test_bad_input_is_told_in_a_sentence(node: Node, line: str, words: str) -> None:
    folder, _, command = line.partition("/")
    done = node.run(f"~/test/{folder}", f"python {command}", "py2" if len(line) % 2 else "py3", seconds=60)
    assert says_one_sentence(done, words), done


@pytest.mark.engine
@pytest.mark.parametrize(
    ("port", "line"),
    [
        (2231, f"tensorflow/mnist_dist.py --ps_hosts=127.0.0.1:2231 {HOSTS}"),
        (2232, "pytorch/mnist_dist.py --master-addr 127.0.0.1 --rank 0 --master-port 2232"),
    ],
)
def test_a_taken_port_is_told_in_a_sentence(node: Node, port: int, line: str) -> None:
    holder = node.start("~/test", TAKE.format(port=port))
    time.sleep(2)
    folder, _, command = line.partition("/")
    done = node.run(f"~/test/{folder}", f"python {command}", seconds=60)
    assert says_one_sentence(done, f"port {port} of this node is taken"), done
    assert holder.process.poll() is None
    holder.wait(60)


@pytest.mark.engine
def test_damaged_data_are_told_in_a_sentence(node: Node) -> None:
    make = "rm -rf /tmp/cut && cp -rL ../mnist /tmp/cut && truncate -s 1000 /tmp/cut/t10k-images-idx3-ubyte"
    done = node.run("~/test/pytorch", f"{make} && python mnist.py --data /tmp/cut")
    assert says_one_sentence(done, "t10k-images-idx3-ubyte: is cut short or damaged"), done
    done = node.run("~/test/pytorch", "echo hello > /tmp/cut/train-labels-idx1-ubyte; python mnist.py --data /tmp/cut")
    assert says_one_sentence(done, "is not a file in MNIST's format"), done


# Distributed


def losses(done: Done) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", done.out)]


@dataclass(frozen=True)
class TensorFlowRun:
    """A parameter server and two workers on one node."""

    server: Started
    workers: list[Started]


def tensorflow_run(node: Node, python: str, flags: str) -> TensorFlowRun:
    def start(job: str, index: int) -> Started:
        line = f"python mnist_dist.py {CLUSTER} --job_name={job} --task_index={index} {flags}"
        return node.start(f"{SAMPLES}/tensorflow", line, python)

    return TensorFlowRun(start("ps", 0), [start("worker", index) for index in range(2)])


@pytest.mark.engine
@pytest.mark.parametrize("python", PYTHONS)
def test_tensorflows_workers_share_the_work(node: Node, python: str) -> None:
    run = tensorflow_run(node, python, "--steps 300")
    workers = [worker.wait(200) for worker in run.workers]
    server = run.server.wait(30)
    assert [done.code for done in (server, *workers)] == [0, 0, 0], (server, workers)
    shares = re.findall(r"worker (\d) \(127.0.0.1:222[34]\) made (\d+) of", workers[0].out)
    assert [number for number, _ in shares] == ["0", "1"]
    for (_, share), done in zip(shares, workers, strict=True):
        assert int(share) > 30
        assert f"made {share} of the cluster's 300 steps" in done.out
        assert losses(done)[-1] < losses(done)[0]
    assert workers[0].accuracy > 0.85


@pytest.mark.engine
def test_a_killed_worker_ends_tensorflows_run(node: Node) -> None:
    run = tensorflow_run(node, "py3", "--steps 100000 --timeout 8")
    time.sleep(20)
    node.kill("--job_name=worker --task_index=1")
    killed = time.monotonic()
    first, server = run.workers[0].wait(60), run.server.wait(60)
    assert time.monotonic() - killed < 40
    assert says_one_sentence(first, "worker 1 (127.0.0.1:2224) is lost"), first
    assert says_one_sentence(server, "worker 1 (127.0.0.1:2224) is lost"), server
    assert run.workers[1].wait(10).code != 0


@pytest.mark.engine
def test_a_killed_parameter_server_ends_tensorflows_run(node: Node) -> None:
    run = tensorflow_run(node, "py3", "--steps 100000 --timeout 8")
    time.sleep(20)
    node.kill("--job_name=ps --task_index=0")
    for worker in run.workers:
        done = worker.wait(60)
        assert done.code == 1
        assert re.search(r"is lost|connection to another process broke", done.err)
        assert "Traceback" not in done.err


WAYS = {"plain": ("", ""), "env": ("--master-addr 127.0.0.1 --rank 0", "--master-addr 127.0.0.1 --rank 1")}


@pytest.mark.engine
@pytest.mark.parametrize(("way", "python"), [("plain", "py2"), ("plain", "py3"), ("env", "py2"), ("env", "py3")])
def test_pytorchs_ranks_end_with_the_same_weights(node: Node, way: str, python: str) -> None:
    ranks = [
        node.start("~/test/pytorch", f"python mnist_dist.py {flags} --steps 150 --master-port 2235", python)
        for flags in WAYS[way]
    ]
    done = [rank.wait(150) for rank in ranks]
    assert [each.code for each in done] == [0, 0], done
    told = "".join(each.out for each in done)
    checksums = dict(re.findall(r"rank (\d), checksum of the weights: ([0-9a-f]{8})", told))
    assert set(checksums) == {"0", "1"}
    assert len(set(checksums.values())) == 1
    for each in done:
        assert losses(each)[-1] < losses(each)[0]
    assert [accuracy > "0.8" for accuracy in re.findall(r"test accuracy: (\S+)", told)] == [True]


@pytest.mark.engine
def test_a_rank_keeps_to_its_gpu(node: Node) -> None:
    """On a node with two, which this machine need not be."""
    script = """
import mnist_dist as m, argparse
done, cuda = [], m.torch.cuda
cuda.is_available, cuda.device_count = lambda: True, lambda: 2
cuda.set_device = lambda number: done.append(number)
m.LeNet.cuda = lambda net, *device: done.append(device)
m.Rank(argparse.Namespace(world_size=4), 3, m.mnist_data.load())
assert done == [1, ()], done
"""
    done = node.run("~/test/pytorch", f"python -B -c '{script}'")
    assert done.code == 0, done.err


@pytest.mark.engine
def test_three_ranks_find_each_other(node: Node) -> None:
    line = "python mnist_dist.py --steps 20 --world-size 3 --master-port 2236"
    done = [started.wait(150) for started in [node.start("~/test/pytorch", line) for _ in range(3)]]
    told = "".join(each.out for each in done)
    assert sorted(re.findall(r"rank (\d) of 3,", told)) == ["0", "1", "2"]
    assert len(set(re.findall(r"weights: (\S+)", told))) == 1


@pytest.mark.engine
def test_a_killed_rank_ends_pytorchs_run(node: Node) -> None:
    ranks = [
        node.start("~/test/pytorch", f"python mnist_dist.py {flags} --steps 100000 --master-port 2237 --timeout 20")
        for flags in WAYS["env"]
    ]
    time.sleep(15)
    node.kill("--rank 1 --steps 100000")
    first = ranks[0].wait(40)
    assert says_one_sentence(first, "another rank is lost, so rank 0 ends too"), first
    assert ranks[1].wait(10).code != 0


@pytest.mark.engine
def test_a_stopped_rank_ends_pytorchs_run(node: Node) -> None:
    """Nothing closes its connections: only time tells."""
    ranks = [
        node.start("~/test/pytorch", f"python mnist_dist.py {flags} --steps 100001 --master-port 2238 --timeout 5")
        for flags in WAYS["env"]
    ]
    time.sleep(15)
    node.target.shell("pkill -STOP --full '^python .*--rank 1 --steps 100001'")
    first = ranks[0].wait(40)
    assert says_one_sentence(first, "another rank is lost, so rank 0 ends too"), first
    node.kill("--rank 1 --steps 100001")
    # su stops with the program that it waits for.
    node.target.shell(f"pkill -CONT --full '^su --login {USER}'")
    assert ranks[1].wait(10).code != 0


@pytest.mark.engine
def test_ranks_that_do_not_fit_are_refused(node: Node) -> None:
    address = "--master-addr 127.0.0.1 --master-port 2239"
    first = node.start("~/test/pytorch", f"python mnist_dist.py {address} --rank 0 --world-size 3")
    second = node.run("~/test/pytorch", f"python mnist_dist.py {address} --rank 1 --world-size 2", seconds=60)
    assert says_one_sentence(second, "rank 1 of 2 came to a run of 3"), second
    assert says_one_sentence(first.wait(60), "rank 1 of 2 came to a run of 3")


@pytest.mark.long
@pytest.mark.engine
def test_the_distributed_samples_learn(node: Node) -> None:
    run = tensorflow_run(node, "py3", "")
    assert run.workers[0].wait(300).accuracy >= ENOUGH
    assert (run.workers[1].wait(60).code, run.server.wait(60).code) == (0, 0)
    ranks = [node.start("~/test/pytorch", f"python mnist_dist.py {flags}", "py2") for flags in WAYS["env"]]
    assert ranks[0].wait(300).accuracy >= ENOUGH
    assert ranks[1].wait(60).code == 0
