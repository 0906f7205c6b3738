"""The user guide, typed into nodes: the images keep it, and a broken image is caught at the promise that it breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiln import owner
from kiln.guide import Guide, read_guide
from kiln.guide_run import Runner, choose
from kiln.guide_terminal import Shell, Terminal
from kiln.matrix import Matrix
from kiln.owner import OWNER_LABEL
from kiln.platform import LABEL, NODE_OWNER_LABEL, Cluster, docker
from kiln.project import find_project
from kiln.verify import Check, Report
from tabled import DATA, MNIST, SAMPLES, USER

PROJECT = find_project(Path(__file__).resolve().parent.parent)
MATRIX = Matrix(PROJECT, "registry")
RELEASE = MATRIX.releases()[-1]
KILN = [sys.executable, "-c", "from kiln.cli import main; main()"]


def guide_of(image: str = "cpu") -> Guide:
    return read_guide(PROJECT, MATRIX.resolve(RELEASE, image))


def names(checks: tuple[Check, ...], verdict: str) -> list[str]:
    return [check.check.partition(": ")[0] for check in checks if check.verdict == verdict]


def failures(report: Report) -> list[str]:
    return [f"{check.check}: {check.reason}" for check in report.checks if check.verdict == "failed"]


def held() -> dict[str, str]:
    """Container, network or volume of a cluster to the process that it was made for."""
    found = {}
    for kind, called, label, options in (
        ("container", "Names", NODE_OWNER_LABEL, ["--all"]),
        ("network", "Name", OWNER_LABEL, []),
        ("volume", "Name", OWNER_LABEL, []),
    ):
        shape = f'--format={kind}:{{{{.{called}}}}} {{{{.Label "{label}"}}}}'
        for line in docker(
            kind, "ls", *options, shape, f"--filter=label={LABEL}", f"--filter=label={label}"
        ).splitlines():
            thing, maker = line.split()
            found[thing] = maker
    return found


def left() -> set[str]:
    """What this process or dead ones hold; others of this machine may be at work."""
    return {thing for thing, maker in held().items() if maker == owner.myself() or owner.is_dead(maker)}


def assert_every_command_has_a_verdict(guide: Guide, report: Report) -> None:
    wanted = {
        entry.name + (f" [{workspace}]" if workspace else "")
        for block in guide.every
        for entry in block.entries
        for workspace in block.row.workspaces or [""]
    }
    told = [check.check.partition(": ")[0] for check in report.checks]
    assert sorted(told) == sorted(wanted)
    assert all(check.reason for check in report.checks if check.verdict != "passed")


# On the images


@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_the_cpu_image_keeps_the_whole_guide() -> None:
    guide = guide_of()
    report = Runner(PROJECT, guide).run(choose(guide, None))
    assert failures(report) == []
    assert_every_command_has_a_verdict(guide, report)
    assert [check.check for check in report.checks if "--quick" in check.reason] == []
    assert report.counts()["passed"] >= 40
    assert "object-store/3" in names(report.checks, "substituted")
    assert left() == set()


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("image", ["cuda91", "cuda80"])
def test_a_gpu_image_keeps_the_quick_part(image: str) -> None:
    guide = guide_of(image)
    report = Runner(PROJECT, guide, quick=True).run(choose(guide, None))
    assert failures(report) == []
    assert_every_command_has_a_verdict(guide, report)
    assert {"cuda-version/1", "cudnn-version/1", "object-store/3"} <= set(names(report.checks, "substituted"))
    assert "gpu-monitor/1" in names(report.checks, "passed")


@pytest.mark.engine
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("image", ["cuda91", "cuda80"])
def test_a_gpu_image_keeps_the_whole_guide(image: str) -> None:
    guide = guide_of(image)
    report = Runner(PROJECT, guide).run(choose(guide, None))
    assert failures(report) == []
    assert_every_command_has_a_verdict(guide, report)


# On broken images: each line breaks one promise, and what rests on it

BREAKS: dict[str, tuple[str, set[str]]] = {
    "the prompt hides py3": (
        f"sed -i '1i VIRTUAL_ENV_DISABLE_PROMPT=1' ~{USER}/workspaces/py3/bin/activate",
        {"activation/3", "activation-at-login/2", "facenet/1"},
    ),
    "a short path is gone": (f"rm ~{USER}/tensorflow", {"object-store/1"}),
    "Caffe's tree is elsewhere": (f"mv ~{USER}/caffe-py2 ~{USER}/caffe", {"caffe-train/1", "caffe-version/1 [py2]"}),
    "TensorBoard is gone": (f"rm ~{USER}/workspaces/py2/bin/tensorboard", {"tensorboard/1 [py2]"}),
    "a sample is gone": (
        f"rm ~{USER}/test/pytorch/mnist_dist.py",
        {"samples/1", "pytorch-world/1 [py2]", "pytorch-world/1 [py3]"},
    ),
    "the folder of a sample is gone": (f"rm -r ~{USER}/test/pycaffe", {"pycaffe/2", "samples/1"}),
    "the password is another": (f"echo {USER}:another | chpasswd", {"login/1"}),
    "python is another": (
        f"echo 'alias python=/usr/bin/python3' >>~{USER}/workspaces/py3/bin/activate",
        {
            "python/1 [py3]",
            "tools/1 [py3]",
            "tensorflow-version/1 [py3]",
            "caffe-version/1 [py3]",
            "pytorch-version/1 [py3]",
            "keras-version/1 [py3]",
        },
    ),
    "a tool is gone": (f"rm -r ~{USER}/workspaces/py2/lib/python2.7/site-packages/nltk", {"tools/1 [py2]"}),
    "the system's Python has packages": (
        "mkdir -p /usr/lib/python3/dist-packages/numpy; : >/usr/lib/python3/dist-packages/numpy/__init__.py",
        {"clean-system-python/1"},
    ),
    "the digits are cut": (f"truncate --size=-784 {MNIST}/train-images-idx3-ubyte", {"digits/1"}),
    # The agent would mend it within a minute.
    "everybody reads the keys": (
        f"systemctl stop confd; chmod 644 ~{USER}/.qingstor/config.yaml",
        {"object-store-keys/1"},
    ),
    "qsctl is gone": ("rm $(command -v qsctl)", {"object-store-tool/1"}),
    "the volume is root's": (f"chown root: {DATA}; chmod 755 {DATA}", {"data-volume/1"}),
    "PyTorch is another": (
        f"echo \"__version__ = '9'\" >>~{USER}/workspaces/py2/lib/python2.7/site-packages/torch/version.py",
        {"pytorch-version/1 [py2]"},
    ),
}


@pytest.fixture(scope="module")
def broken() -> Report:
    """The quick part on a node that all of these have befallen."""

    def break_it(made: Cluster) -> None:
        for script, _ in BREAKS.values():
            made.execute(made.nodes[0], f"set -e; {script}")

    guide = guide_of()
    servers = {"jupyter", "jupyter-address", "jupyter-port"}
    groups = [group for group in choose(guide, None) if group[0].name not in servers]
    return Runner(PROJECT, guide, quick=True, before=break_it).run(groups)


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_promise_fails_by_name(broken: Report, what: str) -> None:
    assert set(names(broken.checks, "failed")) >= BREAKS[what][1]
    assert broken.exit_code() == 1


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_nothing_else_fails(broken: Report) -> None:
    wanted = set.union(*(caught for _, caught in BREAKS.values()))
    more = set(names(broken.checks, "failed")) - wanted
    assert [line for line in failures(broken) if line.partition(": ")[0] in more] == []
    assert "object-store/2" in names(broken.checks, "not run")


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("script", "block", "caught", "says"),
    [
        (
            "printf '#!/bin/sh\\necho inet 10.0.0.1\\n' >/usr/local/bin/ifconfig",
            "facenet",
            "facenet/6",
            "did not print",
        ),
        ("printf '#!/bin/sh\\n' >$(command -v qsctl)", "object-store", "object-store/3", "one.txt is not there"),
        (f"rm -r ~{USER}/.qingstor", "object-store", "object-store/3", ".qingstor/config.yaml"),
        (
            "sed -i '/NotebookApp.ip/s/=.*/= \"127.0.0.1\"/' /etc/jupyter/jupyter_notebook_config.py",
            "jupyter-port",
            "jupyter-port/1 [py2]",
            "does not answer",
        ),
    ],
)
def test_what_is_wrong_at_a_command_is_told_of_it(script: str, block: str, caught: str, says: str) -> None:
    def break_it(made: Cluster) -> None:
        made.execute(made.nodes[0], script)

    guide = guide_of()
    report = Runner(PROJECT, guide, before=break_it).run(choose(guide, block))
    assert names(report.checks, "failed") == [caught]
    assert says in "".join(failures(report))


@pytest.mark.engine
def test_what_an_earlier_run_has_left_is_not_made() -> None:
    def break_it(made: Cluster) -> None:
        script = f"cd {SAMPLES}/tensorflow; mkdir -p tflog/old; : >tflog/old/events.out.tfevents.1"
        made.execute(made.nodes[0], f"{script}; echo 'print(\"accuracy: 0.99\")' >mnist.py", user=USER)

    report = Runner(PROJECT, guide_of(), before=break_it).run(choose(guide_of(), "tensorflow"))
    assert names(report.checks, "failed") == ["tensorflow/2 [py2]", "tensorflow/2 [py3]"]
    assert all(line.endswith(" is not new") for line in failures(report))


# The command


def kiln(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KILN_ROOT": str(PROJECT.root)}
    return subprocess.run([*KILN, "guide", *words], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.engine
def test_the_command_tells_verdicts_and_ends_with_0() -> None:
    done = kiln("--only", "activation")
    assert done.returncode == 0, done.stderr
    assert "cpu     passed      activation/1: source " in done.stdout
    assert done.stdout.splitlines()[-1] == f"deeplearning:{RELEASE}-cpu: 4 passed, 0 failed, 0 substituted, 0 not run"


@pytest.mark.engine
def test_the_command_prints_json() -> None:
    done = kiln("--only", "gpu-use", "--json")
    (report,) = json.loads(done.stdout)
    assert report["counts"] == {"not run": 1}
    assert done.returncode == 1, "nothing was executed"


@pytest.mark.engine
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--only", "nothing"), "the guide has no command nothing"),
        (("--image", "tpu"), "image tpu is not in release"),
        (("--release", "9.9"), "release '9.9' does not exist"),
        (("--image", "all", "--image", "tpu"), "image tpu is not in release"),
        (("--docs", "--image", "tpu"), "image tpu is not in release"),
        (("--channel", "upstream", "--only", "digits"), "was baked on channel registry, not upstream"),
    ],
)
def test_what_cannot_be_run_ends_with_2(words: tuple[str, ...], says: str) -> None:
    done = kiln(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.engine
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, code: int) -> None:
    environment = {**os.environ, "KILN_ROOT": str(PROJECT.root)}
    # Run in the background, this test's own processes would ignore Ctrl-C.
    command = ["env", "--default-signal=INT", *KILN, "guide", "--only", "tools"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    ends = time.monotonic() + 60
    while not any(f"/{process.pid}:" in maker for maker in held().values()) and time.monotonic() < ends:
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert left() == set()


SLOW_ENGINE = """#!/bin/sh
export PATH={path}
case "$1 $2" in "{verb}"*) ;; *) exec docker "$@" ;; esac
mkdir {folder}/came || exec docker "$@"
group=$(ps -o pgid= -p $PPID | tr -d ' ')
setsid sh -c 'sleep {delay}; exec docker "$@"' - "$@" &
sleep 0.3
kill -s INT -- "-$group"
wait $!
"""
"""A docker on whose verb comes Ctrl-C, as a terminal sends it; what has begun is made, whoever has asked is gone."""


@pytest.mark.engine
@pytest.mark.parametrize("verb", ["network create", "volume create", "run", "rm", "volume rm", "network rm"])
def test_ctrl_c_in_a_terminal_leaves_nothing(tmp_path: Path, verb: str) -> None:
    # What is asked to be made comes when all else has been removed.
    delay = 0.5 if verb.endswith("rm") else 3
    script = SLOW_ENGINE.format(path=os.environ["PATH"], verb=verb, delay=delay, folder=tmp_path)
    (tmp_path / "docker").write_text(script)
    (tmp_path / "docker").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["env", "--default-signal=INT", *KILN, "guide", "--only", "activation"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KILN_ROOT": str(PROJECT.root), "PATH": path},
        start_new_session=True,
    )
    assert (tmp_path / "came").exists()
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    time.sleep(delay + 1)
    assert left() == set()


# The terminal


@pytest.fixture
def shell() -> Iterator[Shell]:
    environment = ["TERM=xterm", f"PATH={os.environ['PATH']}", "PS1=at home\\$ "]
    opened = Shell(["env", "-i", "--default-signal=INT", *environment, "bash", "--norc", "--noprofile"])
    assert opened.in_
    yield opened
    opened.close()


def test_a_shell_tells_output_code_and_prompt(shell: Shell) -> None:
    answer = shell.run("echo one; echo two >&2; (exit 3)", 10)
    assert (answer.output.splitlines(), answer.code) == (["one", "two"], 3)
    assert answer.prompt in ("at home$ ", "at home# ")
    assert shell.run("PS1='(py2) '$PS1", 10).prompt.startswith("(py2) at home")


def test_a_shell_is_a_terminal(shell: Shell) -> None:
    assert shell.run("[ -t 0 ] && [ -t 1 ]", 10).code == 0
    line = "echo " + "x" * 1500
    assert shell.run(line, 10).output == "x" * 1500 + "\n"


def test_a_command_that_does_not_end_is_interrupted(shell: Shell) -> None:
    answer = shell.run("echo begun; sleep 100", 1)
    assert (answer.code, answer.output) == (None, "begun\n")
    assert shell.interrupt()
    assert shell.run("echo back", 10).output == "back\n"


def test_a_program_that_cannot_be_logged_into_is_told() -> None:
    opened = Shell(["sh", "-c", "echo no way in; exit 1"])
    assert not opened.in_
    assert "no way in" in opened.said
    opened.close()


def test_much_output_is_read_while_nobody_waits() -> None:
    terminal = Terminal(["sh", "-c", "seq 100000; echo done"])
    assert terminal.process.wait(30) == 0
    terminal.close()
    assert terminal.text.endswith("100000\r\ndone\r\n")
