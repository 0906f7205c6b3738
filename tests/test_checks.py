"""The checks themselves: what counts as passed, and that they know of the tables only what the tables say."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import testinfra

from kiln.checks.asking import lacks_module, lines
from kiln.checks.devices import nvidia_gpus
from kiln.checks.sockets import Open, reachable
from kiln.errors import KilnError
from kiln.matrix import Matrix
from kiln.project import find_project
from kiln.verify import CHECKS, as_text, verify

PROJECT = find_project(Path(__file__).resolve().parent.parent)
MATRIX = Matrix(PROJECT, "registry")
RELEASE = MATRIX.releases()[-1]


def literals(text: str) -> Iterator[tuple[int, str | int]]:
    """Strings and numbers of a Python file with their lines, docstrings left out."""
    tree = ast.parse(text)
    told = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int) and id(node) not in told:
            yield node.lineno, node.value


def leaves(data: Any) -> Iterator[Any]:
    """Every value of a nested table."""
    if isinstance(data, dict | list | tuple):
        for value in data.values() if isinstance(data, dict) else data:
            yield from leaves(value)
    else:
        yield data


def table_values() -> tuple[set[str], set[int]]:
    """What the tables hold: users, passwords, paths and versions; numbers of users and ports."""
    node = MATRIX.node
    parts = (node.user, node.workspaces, node.python, node.paths)
    texts = {value for part in parts for value in leaves(msgspec.to_builtins(part))}
    texts = {value for value in texts if isinstance(value, str)}
    for release in MATRIX.releases():
        for image in MATRIX.images(release):
            spec = MATRIX.resolve(release, image)
            names = spec.names()
            versions = [names["driver"], *(python["version"] for python in names["interpreters"])]
            versions += [
                component[key] for component in names["components"].values() for key in ("version", "installed")
            ]
            texts |= {value for value in versions if value and re.fullmatch(r"\d+(\.\w+)+", value)}
            texts |= {*names["workspaces"].values(), *names["caffe_trees"]}
    return texts, {*msgspec.to_builtins(node.ports).values(), node.user.uid, node.user.gid}


TEXTS, NUMBERS = table_values()


def repeated(text: str) -> list[str]:
    """What a Python file repeats of the tables, as ``line: value``."""
    found = []
    for line, value in literals(text):
        if isinstance(value, int):
            found += [f"{line}: {value}"] if value in NUMBERS else []
        else:
            found += [f"{line}: {held}" for held in TEXTS if re.search(rf"(?<![\w.]){re.escape(held)}(?![\w.])", value)]
    return found


@pytest.mark.parametrize("path", sorted(CHECKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_check_repeats_nothing_that_a_table_holds(path: Path) -> None:
    assert repeated(path.read_text(encoding="utf-8")) == []


# Tests of the tables themselves, which edit them; and words that mean something else: a distribution, Packer, ld.so,
# a wheel of the index.
OTHERS = {
    "edits tables": {"test_matrix", "test_package_check", "test_plan", "test_templating", "test_versions"},
    "the distribution": {"test_bake", "test_upstream"},
    "versions of Packer": {"test_packer"},
    "version of a cache of ld.so": {"elf_maker", "test_elf"},
    "the index's wheel, which does not fit": {"test_elf_wheels"},
    "as the guide's own table prints it": {"test_benchmark_node"},
}
TESTS = sorted(
    path for path in Path(__file__).parent.glob("*.py") if path.stem not in set[str]().union(*OTHERS.values())
)


def strings(text: str) -> Iterator[tuple[int, str]]:
    """Strings of a Python file as they are written, with their lines, docstrings left out."""
    tree = ast.parse(text)
    told = {
        (node.value.lineno, node.value.col_offset)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.STRING and token.start not in told:
            yield token.start[0], token.string


def repeated_texts(text: str) -> list[str]:
    """What the strings of a test repeat of the tables, as ``line: value``; what follows ``{HOME}`` is no path."""
    return [
        f"{line}: {held}"
        for line, string in strings(text)
        for held in sorted(TEXTS)
        if re.search(rf"(?<![\w.}}]){re.escape(held)}(?![\w.])", string)
    ]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_a_test_repeats_nothing_that_a_table_holds(path: Path) -> None:
    assert repeated_texts(path.read_text(encoding="utf-8")) == []


def test_what_a_test_repeats_is_found() -> None:
    node = MATRIX.node
    for value in (
        node.user.name,
        node.user.home,
        node.paths.data,
        MATRIX.resolve(RELEASE, "cpu").row.python[0],
    ):
        assert repeated_texts(f"x = f'su {value} -c {{y}}'"), value
    assert repeated_texts(f'"""{node.user.name}"""\nx = f"{{HOME}}/data"') == []
    assert len(TESTS) > 40


SCENARIOS = [*sorted((PROJECT.root / "molecule").glob("*/*")), CHECKS / "mutations.yml"]


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_scenario_repeats_nothing_that_a_table_holds(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [held for held in TEXTS if re.search(rf"(?<![\w.]){re.escape(held)}(?![\w.])", text)] == []


def test_what_repeats_a_table_is_found() -> None:
    user = MATRIX.node.user
    spec = MATRIX.resolve(RELEASE, "cpu").names()
    for value in (user.name, user.home, spec["components"]["keras"]["installed"], MATRIX.node.paths.mkl):
        assert repeated(f'"""{value}"""\nx = "su {value} -c id"'), value
    assert repeated(f"x = {user.uid}")
    assert repeated(f'"""{user.name}"""') == []


def test_every_substitution_has_a_check() -> None:
    marked = {
        component
        for path in CHECKS.glob("test_*.py")
        for component in re.findall(r"mark\.component\(\"(\w+)\"\)", path.read_text(encoding="utf-8"))
    }
    for release in MATRIX.releases():
        for image in MATRIX.images(release):
            substituted = set(MATRIX.resolve(release, image).manifest()["substitutions"])
            assert substituted
            assert substituted - marked == set()


# What the kernel writes for ssh on all addresses, a DHCP client, and a resolver of the loopback interface alone.
TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4124495 1 0 100 0 0 10 0
   1: 0B00007F:A0C7 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4124496 1 0 100 0 0 10 0
   2: 020011AC:0016 010011AC:D5A2 01 00000000:00000000 00:00000000 00000000     0        0 4124497 1 0 100 0 0 10 0
   3: 020011AC:22B8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4124498 1 0 100 0 0 10 0
   0: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 0:0 00:0 0     0        0 5 1 0
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0    33        0 6 1 0
"""
UDP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref
   0: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7 2 0 0
   1: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 8 2 0 0
"""


def test_what_others_can_reach_is_told_from_what_they_cannot() -> None:
    assert reachable("tcp", TCP) == {Open("tcp", 22, 0), Open("tcp", 8888, 1000), Open("tcp", 80, 33)}
    assert reachable("udp", UDP) == {Open("udp", 68, 0)}


(LOCAL,) = testinfra.get_hosts(["local://"])


def test_the_answer_of_a_program_that_did_not_answer_is_none() -> None:
    assert lines(LOCAL.run("printf 'a\\n\\nb c\\n'")) == ["a", "b c"]
    assert lines(LOCAL.run("exit 1"), codes=(0, 1)) == []
    blind = "echo \"find: '/root': Permission denied\" >&2; exit 1"
    assert lines(LOCAL.run(blind), blind=True) == []
    for command in ("no-such-program", "exit 3", blind, "find /no/such/folder"):
        with pytest.raises(AssertionError, match="could not be looked at"):
            lines(LOCAL.run(command))
    with pytest.raises(AssertionError, match="could not be looked at"):
        lines(LOCAL.run("find /no/such/folder"), blind=True)


def test_only_a_python_without_the_module_lacks_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n", encoding="utf-8")
    run = f"cd {tmp_path} && {sys.executable} -c 'import {{}}'"
    assert lacks_module(LOCAL.run(run.format("other")), "other")
    assert not lacks_module(LOCAL.run(run.format("broken")), "broken")
    assert not lacks_module(LOCAL.run(run.format("json")), "json")
    assert not lacks_module(LOCAL.run("no-such-python -c 'import other'"), "other")
    assert lacks_module(LOCAL.run("echo ImportError: No module named other >&2; exit 1"), "other")


def test_a_gpu_is_seen_without_its_driver(tmp_path: Path) -> None:
    assert nvidia_gpus(LOCAL, str(tmp_path)) == []
    # Vendor and class: NVIDIA's graphics, its sound, its 3D controller, Intel's graphics.
    for slot, ids in {"a": "10de 030000", "b": "10de 040300", "c": "10de 030200", "d": "8086 030000"}.items():
        device = tmp_path / "sys/bus/pci/devices" / slot
        device.mkdir(parents=True)
        for name, value in zip(("vendor", "class"), ids.split(), strict=True):
            (device / name).write_text(f"0x{value}\n", encoding="utf-8")
    assert [Path(path).name for path in nvidia_gpus(LOCAL, str(tmp_path))] == ["a", "c"]
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert Path(nvidia_gpus(LOCAL, str(tmp_path))[0]).name == "nvidiactl"


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of checks to write some into, in the place of the real ones."""
    folder = tmp_path / "checks"
    folder.mkdir()
    shutil.copy2(CHECKS / "conftest.py", folder)
    monkeypatch.setattr("kiln.verify.CHECKS", folder)
    return folder


HEAD = "import pytest\n\n"

VERDICTS = {
    "passed": ("def test_it():\n    pass\n", ["passed"], 0),
    "failed": ("def test_it():\n    assert False\n", ["failed"], 1),
    "skipped": ("def test_it():\n    pytest.skip('no device')\n", ["not run"], 1),
    "skipped beside passed": (
        "def test_it():\n    pytest.skip('no device')\n\ndef test_other():\n    pass\n",
        ["not run", "passed"],
        0,
    ),
    "broken fixture": (
        "@pytest.fixture\ndef broken():\n    raise OSError\n\ndef test_it(broken):\n    pass\n",
        ["failed"],
        1,
    ),
    "broken end": (
        "@pytest.fixture\ndef broken():\n    yield\n    raise OSError\n\ndef test_it(broken):\n    pass\n",
        ["failed", "passed"],
        1,
    ),
    "expected to fail": ("@pytest.mark.xfail\ndef test_it():\n    assert False\n", ["failed"], 1),
    "expected to fail, yet passed": ("@pytest.mark.xfail\ndef test_it():\n    pass\n", ["failed"], 1),
    "not called": ("def test_it():\n    import kiln\n    pytest.xfail('later')\n", ["failed"], 1),
    "nothing": ("", [], 1),
    "for the other device": ("@pytest.mark.device('gpu')\ndef test_it():\n    pass\n", [], 1),
    "substituted": ("@pytest.mark.component('digits')\ndef test_it():\n    pass\n", ["substituted"], 0),
    "substituted and failed": ("@pytest.mark.component('digits')\ndef test_it():\n    assert 0\n", ["failed"], 1),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_only_what_was_executed_and_right_is_passed(checks: Path, name: str) -> None:
    body, verdicts, code = VERDICTS[name]
    (checks / "test_it.py").write_text(HEAD + body, encoding="utf-8")
    report = verify(PROJECT, "local", as_=f"{RELEASE}/cpu")
    assert sorted(check.verdict for check in report.checks) == verdicts
    assert report.exit_code() == code
    assert all(check.reason for check in report.checks if check.verdict != "passed")


@pytest.mark.parametrize("body", ["import no_such_module\n", "def test_it(:\n"], ids=["import", "syntax"])
def test_checks_that_cannot_be_read_are_no_verdict_on_the_target(checks: Path, body: str) -> None:
    (checks / "test_it.py").write_text(body, encoding="utf-8")
    (checks / "test_other.py").write_text("def test_other(): pass\n", encoding="utf-8")
    with pytest.raises(KilnError, match="the checks could not run"):
        verify(PROJECT, "local", as_=f"{RELEASE}/cpu")


def test_what_a_check_measured_is_told(checks: Path) -> None:
    body = "def test_speed(note):\n    note('12 ms against 15 ms')\n"
    (checks / "test_it.py").write_text(body, encoding="utf-8")
    report = verify(PROJECT, "local", as_=f"{RELEASE}/cpu")
    assert "measured    it: speed: 12 ms against 15 ms" in as_text(report)


@pytest.mark.parametrize(
    ("body", "code"),
    [("import pytest\n\ndef test_it():\n    pytest.skip('no device')\n", 1), ("", 5), ("def test_it(): pass\n", 0)],
    ids=["not run", "nothing", "passed"],
)
def test_a_scenario_that_executes_nothing_fails(checks: Path, tmp_path: Path, body: str, code: int) -> None:
    (checks / "test_it.py").write_text(body, encoding="utf-8")
    expectations = tmp_path / "expectations.json"
    expectations.write_text(json.dumps(MATRIX.resolve(RELEASE, "cpu").names()), encoding="utf-8")
    # As Molecule's verifier calls them, without kiln verify around.
    command = [sys.executable, "-m", "pytest", str(checks), "--hosts=local://", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, f"--rootdir={tmp_path}"]
    environment = {**os.environ, "KILN_EXPECTATIONS": str(expectations), "KILN_TARGET_KIND": "node"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == code, run.stdout
