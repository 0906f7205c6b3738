"""kiln elf on the baked images, and on what becomes of them when something is broken."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from elf_maker import lay_out, make_elf
from kiln import elf_image
from kiln.elf import Elf
from kiln.elf_command import elf
from kiln.elf_image import read_layers
from kiln.elf_loader import Linker
from kiln.elf_report import Report, read_rules
from kiln.elf_target import judge_container, judge_target
from kiln.elf_tree import Tree
from kiln.engine import Engine
from kiln.errors import KilnError
from kiln.matrix import Matrix
from kiln.project import Project, find_project
from kiln.store import Store
from tabled import PYTHON_PATH

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PROJECT = find_project(Path(__file__).resolve().parent.parent)
MATRIX = Matrix(PROJECT, "registry")
RELEASE = MATRIX.releases()[-1]
CPU = f"deeplearning:{RELEASE}-cpu"

Break = Callable[[str], Report]


def kiln_elf(*words: str) -> Result:
    return CliRunner().invoke(elf, words, obj=lambda: PROJECT)


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def broken() -> Iterator[Break]:
    """Runs a command in a container of the CPU image; the report on what is left."""
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    docker("run", "--detach", "--name", name, "--network", "none", CPU, "sleep", "infinity")

    def report(command: str) -> Report:
        docker("exec", name, "bash", "-euc", command)
        return judge_container(PROJECT, name, "cpu")

    yield report
    docker("rm", "--force", name)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[str]:
    """An image of a program that needs what is not there, and a library that has all it needs."""
    files: dict[str, bytes | str] = {
        "/usr/lib/libx.so.1": make_elf(soname="libx.so.1"),
        "/lib": "usr/lib",
        "/a/well.so": make_elf(needed=("libx.so.1",)),
        "/a/ill.so": make_elf(needed=("libnone.so.1",)),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(lay_out(tmp_path / "root", files), arcname=".")
    name = f"kiln-test:{uuid.uuid4().hex}"
    command = ["docker", "import", "--change", 'CMD ["true"]', "-", name]
    subprocess.run(command, input=packed.getvalue(), capture_output=True, check=True)
    yield name
    docker("rmi", name)


@pytest.mark.alone
@pytest.mark.parametrize("image", MATRIX.images(RELEASE))
def test_nothing_is_missing_in_an_image(image: str) -> None:
    began = time.monotonic()
    result = kiln_elf(f"deeplearning:{RELEASE}-{image}", "--json")
    assert time.monotonic() - began < 30
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["findings"] == []
    assert data["files"] > 2000
    rows = read_rules(PROJECT)
    driver = {miss["library"] for miss in data["not_run"]}
    excepted = {miss["library"] for miss in data["excepted"]}
    if image == "cpu":
        # No GPU, no driver; and an exception that nothing needs any more is none.
        assert driver == set()
        assert excepted == {row.library for row in rows.exceptions}
    else:
        assert driver <= set(rows.driver.libraries)


@pytest.mark.alone
def test_a_whole_image_is_read_in_time_and_kept(tmp_path: Path) -> None:
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        judge_target(Project(PROJECT.root, tmp_path / "store"), CPU, None, "registry")
        seconds.append(time.monotonic() - began)
    assert seconds[0] < 30
    assert seconds[1] < 3


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rm /usr/lib/x86_64-linux-gnu/libpng16.so.16", "needs libpng16.so.16: /etc/ld.so.cache names"),
        (
            "d=/usr/lib/x86_64-linux-gnu/tc; mv $d /tmp/old; mkdir $d; cp /tmp/old/q_atm.so $d/x.so",
            "/tc/x.so needs libatm.so.1",
        ),
        (
            f"rm -r {PYTHON_PATH}/2.7; ln -s /nowhere {PYTHON_PATH}/2.7",
            "libpython2.7.so.1.0",
        ),
        ("echo x > $(readlink -f /usr/lib/x86_64-linux-gnu/libpng16.so.16)", "is no library"),
        (
            "cp /usr/lib/x86_64-linux-gnu/libz.so.1 $(readlink -f /usr/lib/x86_64-linux-gnu/libcrypto.so.3)",
            "needs libcrypto.so.3 with OPENSSL_3.0.0",
        ),
    ],
    ids=["link gone", "folder made anew", "folder gone", "another file", "another library's versions"],
)
def test_what_a_container_changed_is_seen(broken: Break, command: str, says: str) -> None:
    report = broken(command)
    assert report.exit_code == 1
    assert any(says in str(miss) for miss in report.findings), report.as_text()


def test_a_container_as_it_was_is_clean(broken: Break) -> None:
    assert broken("true").findings == ()


@pytest.mark.alone
@pytest.mark.parametrize("whole", [True, False], ids=["layers", "export"])
def test_layers_and_export_tell_the_same(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(elf_image, "_whole", lambda: whole)
    project = Project(PROJECT.root, tmp_path / "store")
    for _ in range(2):
        report = judge_target(project, small, None, "registry")
        assert [str(miss) for miss in report.findings] == [
            "/a/ill.so needs libnone.so.1: no such library is where the loader looks"
        ]
        assert report.files == 3
    kinds = [path.name for path in (tmp_path / "store" / "elf").glob("*/*")]
    assert kinds == ["layers" if whole else "images"]
    assert Engine().containers("kiln-elf-") == []


def test_what_cannot_run_is_told() -> None:
    result = kiln_elf("no-such-image")
    assert isinstance(result.exception, KilnError)
    assert "there is no image and no container no-such-image" in str(result.exception)


@pytest.mark.alone
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_soon_and_in_one_line(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = "from kiln import cli; cli.main.lazy = {'elf': 'kiln.elf_command:elf'}; cli.main()"
    command = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-c",
        script,
        "--store",
        str(tmp_path / "store"),
        "elf",
        CPU,
    ]
    with subprocess.Popen(command, cwd=PROJECT.root, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        time.sleep(1.5)
        began = time.monotonic()
        # As a terminal does: every process of the command gets it.
        os.killpg(run.pid, number)
        _, errors = run.communicate(timeout=30)
        assert time.monotonic() - began < 3
    assert run.returncode == code
    assert len(errors.strip().splitlines()) == 1, errors
    assert list((tmp_path / "store").rglob("*/.*")) == []


@pytest.mark.long
def test_the_loader_itself_says_the_same() -> None:
    layers = read_layers(Store.of(PROJECT), CPU, "image")
    linker = Linker(Tree(layers))
    libraries = sorted(path for path, node in linker.judged.items() if isinstance(node, Elf) and node.needed)
    script = """
while read -r file; do
    LD_TRACE_LOADED_OBJECTS=1 LD_WARN=1 LD_BIND_NOW= /lib64/ld-linux-x86-64.so.2 "$file" 2>&1 |
        grep -qE 'not found|cannot open shared|version .* not found' && echo "$file"
done
true
"""
    run = subprocess.run(
        ["docker", "run", "--rm", "--interactive", "--network", "none", CPU, "bash", "-c", script],
        input="\n".join(libraries) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    told = {path for path in libraries if linker.load(path, linker.elves[path])[1]}
    assert told == set(run.stdout.splitlines())
    assert len(libraries) > 1500
    assert told
