"""The GPU monitor under both Pythons, against answers of many drivers and an nvidia-smi that misbehaves."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tabled import PYTHON2

CHECKOUT = Path(__file__).resolve().parent.parent
MONITOR = CHECKOUT / "roles/gpu_monitor/files/gpu-monitor.py"
ANSWERS = CHECKOUT / "tests/gpu_monitor"
NAMES = ("GPUUtil", "MemoryUtil", "PowerUsage", "Temperature", "MemoryTotal", "MemoryUsed", "MemoryFree")
KEYS = {f"{name}_{gpu}" for name in NAMES for gpu in (1, 2)}
NONE = (0,) * len(NAMES)

# The values of the first two GPUs, in the order of NAMES.
EXPECTED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "375-one": ((97, 96, 182, 61, 16276, 15587, 689), NONE),
    "390-two": ((88, 76, 31, 57, 16280, 12345, 3935), (0, 0, 27, 34, 16280, 0, 16280)),
    "390-not-available": (NONE, NONE),
    "390-not-supported": ((0, 50, 0, 0, 16280, 8140, 8140), NONE),
    "390-lost": ((7, 50, 33, 51, 16280, 8140, 8140), NONE),
    "390-none": (NONE, NONE),
    "390-truncated": (NONE, NONE),
    "470-one": ((3, 25, 40, 45, 16280, 4070, 12210), NONE),
    "470-eight": ((5, 3, 50, 40, 32510, 1000, 31510), (15, 6, 52, 41, 32510, 2000, 30510)),
    "470-unescaped-process": ((64, 40, 120, 59, 16280, 6512, 9768), NONE),
    "535-one": ((42, 25, 143, 50, 81920, 20480, 60824), NONE),
    "535-mig": ((0, 0, 67, 33, 81920, 37, 81267), (5, 50, 71, 35, 81920, 40960, 40344)),
    "550-two": ((100, 96, 72, 78, 23034, 22000, 552), (0, 0, 16, 40, 23034, 1, 22551)),
    "570-eight": ((100, 10, 601, 60, 143771, 14377, 128786), (99, 20, 602, 61, 143771, 28754, 114409)),
    "580-one": ((12, 50, 56, 44, 16384, 8192, 8192), NONE),
    "garbage": (NONE, NONE),
    "no-devices": (NONE, NONE),
    "no-driver": (NONE, NONE),
    "nothing": (NONE, NONE),
}


@cache
def python2() -> str | None:
    """This machine's Python 2.7, where it has one."""
    from kiln.host_python import find_host_python

    old = find_host_python(PYTHON2)
    return str(old.prefix / "bin" / "python2.7") if old else None


@pytest.fixture(params=[2, 3], ids="python{}".format)
def python(request: pytest.FixtureRequest) -> str:
    """A Python of each of the two kinds that a node has."""
    found = sys.executable if request.param == 3 else python2()
    if found is None:
        pytest.skip(f"this machine has no Python {PYTHON2}")
    return found


@dataclass(frozen=True)
class Answer:
    values: dict[str, int]
    note: str
    seconds: float


class Node:
    """A place whose only nvidia-smi is ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "nvidia-smi"

    def answer_with(self, script: str) -> None:
        self.program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        self.program.chmod(stat.S_IRWXU)

    def monitor(self, python: str, **options: Any) -> Answer:
        """Runs the monitor as the platform does, but for the PATH."""
        begun = time.monotonic()
        run = subprocess.run(
            [python, str(MONITOR)],
            env={"PATH": f"{self.folder}:/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            check=False,
            **options,
        )
        seconds = time.monotonic() - begun
        note = run.stderr.decode()
        assert run.returncode == 0, note
        assert "Traceback" not in note
        lines = run.stdout.decode("ascii").splitlines()
        assert len(lines) == 1
        values = json.loads(lines[0])
        assert values.keys() == KEYS
        assert all(type(value) is int for value in values.values())
        return Answer(values, note, seconds)

    def quick(self, python: str, wanted: dict[str, int]) -> Answer:
        """The first answer that holds ``wanted`` within a second, of three: a busy machine may be late once."""
        for _ in range(3):
            answer = self.monitor(python)
            if answer.values == wanted and answer.seconds < 1:
                break
        return answer


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def flat(gpus: tuple[tuple[int, ...], ...]) -> dict[str, int]:
    return {
        f"{name}_{number}": value for number, gpu in enumerate(gpus, 1) for name, value in zip(NAMES, gpu, strict=True)
    }


def test_every_answer_has_its_values() -> None:
    assert {path.stem for path in ANSWERS.glob("*.xml")} == EXPECTED.keys()


@pytest.mark.parametrize("answer", EXPECTED)
def test_values_of_every_driver(node: Node, python: str, answer: str) -> None:
    node.answer_with(f'[ "$*" = "-q -x" ] && cat {ANSWERS / answer}.xml')
    assert node.quick(python, flat(EXPECTED[answer])).values == flat(EXPECTED[answer])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("470-eight", "8 GPUs, told about the first 2"),
        ("570-eight", "8 GPUs, told about the first 2"),
        ("390-none", "lists no GPU"),
        ("390-truncated", "is no XML"),
        ("no-devices", "No devices were found"),
        ("no-driver", "couldn't communicate with the NVIDIA driver"),
        ("nothing", "no output"),
    ],
)
def test_what_is_not_told_is_noted(node: Node, python: str, answer: str, words: str) -> None:
    node.answer_with(f"cat {ANSWERS / answer}.xml")
    assert words in node.monitor(python).note


def test_two_gpus_need_no_note(node: Node, python: str) -> None:
    node.answer_with(f"cat {ANSWERS / '390-two'}.xml")
    assert node.monitor(python).note == ""


def test_without_nvidia_smi(node: Node, python: str) -> None:
    answer = node.quick(python, flat((NONE, NONE)))
    assert answer.values == flat((NONE, NONE))
    assert "nvidia-smi cannot be run" in answer.note


def test_nvidia_smi_that_is_no_program(node: Node, python: str) -> None:
    node.program.write_bytes(b"\x7fELF\x00")
    node.program.chmod(stat.S_IRWXU)
    assert node.monitor(python).values == flat((NONE, NONE))


def test_nvidia_smi_that_fails(node: Node, python: str) -> None:
    node.answer_with("cat " + str(ANSWERS / "no-driver.xml") + "; exit 9")
    answer = node.quick(python, flat((NONE, NONE)))
    assert answer.values == flat((NONE, NONE))
    assert "exit code 9: NVIDIA-SMI has failed" in answer.note


HANGS = {
    "says nothing": "exec sleep 30",
    "stops halfway": f"head -c 4000 {ANSWERS}/390-two.xml; exec sleep 30",
    "ignores SIGTERM": "trap '' TERM; sleep 30; sleep 30",
    "says the same for ever": "exec yes",
    "says long nonsense for ever": "exec yes '<processes><a>'",
    "closes its output and stays": "exec >&-; sleep 30",
}


@pytest.mark.alone
@pytest.mark.parametrize("script", HANGS.values(), ids=HANGS)
def test_answers_within_a_second_when_nvidia_smi_hangs(node: Node, python: str, script: str) -> None:
    node.answer_with(f"echo $$ >{node.folder}/pid; {script}")
    answer = node.quick(python, flat((NONE, NONE)))
    assert answer.values == flat((NONE, NONE))
    assert answer.note
    assert answer.seconds < 1
    assert not lives(int((node.folder / "pid").read_text()))


@pytest.mark.alone
def test_what_was_said_before_the_hang_counts_when_it_is_whole(node: Node, python: str) -> None:
    node.answer_with(f"cat {ANSWERS}/390-two.xml; exec sleep 30")
    answer = node.quick(python, flat(EXPECTED["390-two"]))
    assert answer.values == flat(EXPECTED["390-two"])
    assert answer.seconds < 1


@pytest.mark.alone
def test_a_child_that_holds_the_output_is_not_waited_for(node: Node, python: str) -> None:
    node.answer_with(f"sleep 30 & echo $! >{node.folder}/child; cat {ANSWERS}/390-two.xml")
    answer = node.quick(python, flat(EXPECTED["390-two"]))
    assert answer.values == flat(EXPECTED["390-two"])
    assert answer.seconds < 1
    assert not lives(int((node.folder / "child").read_text()))


def lives(pid: int) -> bool:
    """Whether the process runs, a moment being given to one that was killed."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


def test_a_signal_ends_nvidia_smi_too(node: Node, python: str) -> None:
    node.answer_with(f"echo $$ >{node.folder}/new && mv {node.folder}/new {node.folder}/pid; exec sleep 30")
    with subprocess.Popen([python, str(MONITOR)], env={"PATH": f"{node.folder}:/usr/bin:/bin"}) as process:
        while not (node.folder / "pid").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
    assert not lives(int((node.folder / "pid").read_text()))


def test_a_closed_reader_is_no_traceback(node: Node, python: str) -> None:
    node.answer_with(f"cat {ANSWERS}/390-two.xml")
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [python, str(MONITOR)],
        env={"PATH": f"{node.folder}:/usr/bin:/bin"},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, b"")


def test_without_any_environment(python: str) -> None:
    run = subprocess.run([python, str(MONITOR)], env={}, capture_output=True, check=True)
    assert json.loads(run.stdout).keys() == KEYS


@cache
def monitor() -> Any:
    """The monitor as a module."""
    spec = importlib.util.spec_from_file_location("gpu_monitor", MONITOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def values_of(answer: bytes) -> dict[str, int]:
    """What the monitor makes of an answer."""
    module = monitor()
    try:
        values, _ = module.parse(answer)
    except module.MonitorError:
        values = {}
    complete = module.complete(values)
    assert isinstance(complete, dict)
    return complete


def assert_sound(values: dict[str, int]) -> None:
    assert values.keys() == KEYS
    for key, value in values.items():
        assert type(value) is int
        assert value >= 0 or key.startswith("Temperature")
        assert value <= 100 or not key.startswith("MemoryUtil")


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_fuzz_of_anything(answer: bytes) -> None:
    assert_sound(values_of(answer))


WHOLE = [path.read_bytes() for path in sorted(ANSWERS.glob("*.xml"))]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(WHOLE), st.data())
def test_fuzz_of_broken_answers(answer: bytes, data: st.DataObject) -> None:
    broken = bytearray(answer)
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(broken)))
        length = data.draw(st.integers(0, 200))
        broken[begin : begin + length] = data.draw(st.binary(max_size=20))
    assert_sound(values_of(bytes(broken)))


WORDS = st.one_of(
    st.sampled_from(
        [
            "N/A",
            "[Not Supported]",
            "[Unknown Error]",
            "",
            " ",
            "-5",
            "1e999",
            "9" * 400,
            "0x10",
            "٣ W",
            "3.",
            ".5",
            "1,5 W",
        ]
    ),
    st.floats().map(str),
    st.integers().map(str),
    st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="<&"), max_size=20),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(WORDS, min_size=6, max_size=6), max_size=4))
def test_fuzz_of_readings(gpus: list[list[str]]) -> None:
    answer = "<nvidia_smi_log>"
    for util, total, used, free, temperature, draw in gpus:
        answer += (
            f"<gpu><utilization><gpu_util>{util}</gpu_util></utilization><fb_memory_usage><total>{total}</total>"
            f"<used>{used}</used><free>{free}</free></fb_memory_usage><temperature><gpu_temp>{temperature}</gpu_temp>"
            f"</temperature><power_readings><power_draw>{draw}</power_draw></power_readings></gpu>"
        )
    assert_sound(values_of(f"{answer}</nvidia_smi_log>".encode()))


@pytest.mark.parametrize("depth", [100, 150_000])
def test_nested_and_swollen_answers(depth: int) -> None:
    assert_sound(values_of(b"<gpu>" * depth))
    assert_sound(values_of(b"<nvidia_smi_log>" + b"<gpu>" * depth + b"</gpu>" * depth + b"</nvidia_smi_log>"))
    laughs = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><nvidia_smi_log>&b;</nvidia_smi_log>'
    assert_sound(values_of(laughs.encode()))


def test_the_keys_are_those_of_the_package(root: Path) -> None:
    import yaml

    table = yaml.safe_load((root / "images/appcenter.yml").read_text(encoding="utf-8"))
    assert set(table["monitor"]["items"]) == KEYS == set(monitor().complete({}))
