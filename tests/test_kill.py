"""Real bakes of a tiny project, killed: nothing half is ever taken for whole, and the next run cleans up."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bake_project import Row, make_plan, remove_images, seed_store, write_project
from kiln.engine import Engine, cached_stages
from kiln.plan import Plan
from kiln.project import Project
from kiln.store import Store

pytestmark = pytest.mark.engine

TASKS = """
- name: Begin
  ansible.builtin.copy: {{content: begun, dest: /etc/{name}-begun, mode: "0644"}}
- name: Work
  ansible.builtin.command: sleep {{{{ lookup('ansible.builtin.env', 'WORK_S') }}}}
  changed_when: true
- name: Be whole
  ansible.builtin.copy: {{content: whole, dest: {whole}, mode: "0644"}}
"""


@dataclass
class Tiny:
    """Two image stages on each other and a build stage beside the second."""

    project: Project
    store: Store
    rows: tuple[Row, ...]

    def start(self, *, work_s: float) -> subprocess.Popen[str]:
        """Starts a bake whose tasks called Work take that long; what it bakes is the same."""
        script = Path(__file__).with_name("bake_project.py")
        return subprocess.Popen(
            # A shell's background jobs ignore SIGINT, and so would a test started from one.
            [
                "env",
                "--default-signal=INT",
                f"WORK_S={work_s}",
                sys.executable,
                str(script),
                str(self.project.root),
                str(self.project.store),
                "--json",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def plan(self) -> Plan:
        return make_plan(self.rows, self.project, self.store)

    def missing(self) -> list[str]:
        return [stage.name for stage in self.plan().missing]

    def whole(self, name: str) -> bool:
        """Whether what stands under the stage's digest went through its last task."""
        stage = next(stage for stage in self.plan().stages if stage.name == name)
        if stage.kind == "build":
            product = self.store.product(stage.digest)
            return product is not None and (product / "whole").is_file()
        test = ["docker", "run", "--rm", stage.reference, "test", "-f", f"/etc/{name}-whole"]
        return subprocess.run(test, check=False).returncode == 0


@pytest.fixture
def tiny(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    store = seed_store(tmp_path / "store", tmp_path_factory.getbasetemp() / "seed")
    once = (("nonce", uuid.uuid4().hex),)
    first = TASKS.format(name="first", whole="/etc/first-whole")
    second = TASKS.format(name="second", whole="/etc/second-whole")
    maker = TASKS.format(name="maker", whole="/run/kiln/out/whole")
    rows = (
        Row("first", first, variables=once),
        Row("maker", maker, kind="build", parent="first", variables=once),
        Row("second", second, parent="first", variables=once),
        Row("last", TASKS.format(name="last", whole="/etc/last-whole"), parent="second", products=("maker",)),
    )
    project = write_project(tmp_path / "project", store.root, rows)
    tiny = Tiny(project, store, rows)
    yield tiny
    remove_images(store)


def follow(process: subprocess.Popen[str], stage: str, task: str) -> None:
    """Returns once ``stage`` has reached ``task``."""
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "task" and event["stage"] == stage and task in event["task"]:
            return
    raise AssertionError(f"{stage} never reached {task}: {process.stderr.read() if process.stderr else ''}")


def running(store: Store) -> dict[int, str]:
    """Process id to command line of everything that works for a bake on ``store``."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{store.root}/runs".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def victim(who: str, process: subprocess.Popen[str], store: Store) -> int:
    if who == "kiln":
        return process.pid
    marks = {"packer": "/packer build ", "ansible": "/ansible-playbook ", "mmdebstrap": "/mmdebstrap "}
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:  # between two stages there is none
        found = [pid for pid, command in sorted(running(store).items()) if marks[who] in command]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no {who} ran: {running(store)}")


def own_containers(store: Store) -> list[str]:
    """Containers that mount something of the store."""
    ids = subprocess.run(["docker", "ps", "-aq"], check=True, capture_output=True, text=True).stdout.split()
    found = []
    for identity in ids:
        said = subprocess.run(["docker", "inspect", identity], check=False, capture_output=True, text=True)
        if said.returncode == 0 and str(store.root) in said.stdout:
            found.append(identity)
    return found


def assert_continues(tiny: Tiny, before: list[str], *, orphaned: bool = False) -> None:
    """The next run succeeds, bakes only what was missing, and leaves nothing behind.

    ``orphaned``: a Packer that outlived kiln may end its stage before the next run ends it; then that is whole.
    """
    process = tiny.start(work_s=0)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (output == "") == (before == [])
    events = [json.loads(line) for line in output.splitlines()]
    begun = [stage["stage"] for event in events if event["event"] == "begin" for stage in event["stages"]]
    assert begun == before or (orphaned and len(begun) == len(before) - 1 and set(begun) < set(before)), begun
    assert tiny.missing() == []
    assert all(tiny.whole(row.name) for row in tiny.rows)
    assert_clean(tiny)


def assert_clean(tiny: Tiny) -> None:
    assert own_containers(tiny.store) == []
    assert running(tiny.store) == {}
    assert list((tiny.store.root / "runs").iterdir()) == []
    assert list((tiny.store.root / "products" / ".new").glob("*")) == []


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("who", ["kiln", "packer", "ansible"])
def test_killed_while_baking(tiny: Tiny, who: str, number: signal.Signals) -> None:
    process = tiny.start(work_s=2)
    chance = random.SystemRandom()
    stage, task = chance.choice([("first", "Work"), ("second", "Begin"), ("second", "Be whole")])
    delay = chance.uniform(0, 1.5)
    moment = f"{delay:.2f} s after {stage}: {task}"
    follow(process, stage, task)
    time.sleep(delay)
    os.kill(victim(who, process, tiny.store), number)
    _, errors = process.communicate(timeout=60)

    expected = {-number if number == signal.SIGKILL else 128 + number} if who == "kiln" else {1}
    if who != "kiln":
        # Packer takes its time over SIGINT, and whoever is hit in the last moment has done its work: then all is whole.
        expected.add(0)
    assert process.returncode in expected, (moment, errors)
    assert "Traceback" not in errors
    if number != signal.SIGKILL:
        assert_clean(tiny)
    missing = tiny.missing()
    assert bool(missing) == (process.returncode != 0), moment
    assert all(tiny.whole(row.name) for row in tiny.rows if row.name not in missing), moment
    assert_continues(tiny, missing, orphaned=who == "kiln" and number == signal.SIGKILL)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("who", "number"),
    [
        ("kiln", signal.SIGINT),
        ("kiln", signal.SIGTERM),
        ("kiln", signal.SIGKILL),
        # Other signals it ignores, unless its children get them too, and goes on.
        ("mmdebstrap", signal.SIGKILL),
    ],
)
def test_killed_while_the_base_is_made(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, who: str, number: signal.Signals
) -> None:
    store = seed_store(tmp_path / "store", tmp_path_factory.getbasetemp() / "seed")
    # A base of its own: the others' is there already.
    rows = (Row("bootstrap", "", kind="bootstrap", variables=(("nonce", uuid.uuid4().hex),)),)
    tiny = Tiny(write_project(tmp_path / "project", store.root, rows), store, rows)
    try:
        process = tiny.start(work_s=0)
        follow(process, "bootstrap", "mmdebstrap")
        target = victim(who, process, store)
        time.sleep(random.SystemRandom().uniform(0, 10))
        os.kill(target, number)
        _, errors = process.communicate(timeout=60)
        expected = (-number if number == signal.SIGKILL else 128 + number) if who == "kiln" else 1
        assert process.returncode == expected, errors
        assert "Traceback" not in errors
        if number != signal.SIGKILL or who != "kiln":
            assert_clean(tiny)
        assert tiny.missing() == ["bootstrap"]
        process = tiny.start(work_s=0)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert tiny.missing() == []
        assert_clean(tiny)
        base = tiny.plan().stages[0].reference
        whole = ["docker", "run", "--rm", base, "python3", "-c", "import apt"]
        subprocess.run(whole, check=True)
    finally:
        remove_images(store)


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_ends_in_one_line_and_seconds(tiny: Tiny, number: signal.Signals) -> None:
    started = time.monotonic()
    process = tiny.start(work_s=60)
    follow(process, "first", "Work")
    sent = time.monotonic()
    assert sent - started < 60, "the task was shown when it ended, not when it began"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert len(errors.splitlines()) == 1, errors
    assert number.name in errors
    assert time.monotonic() - sent < 10
    assert_clean(tiny)
    assert "first" in tiny.missing()


def test_killed_for_good_is_cleaned_up_by_the_next_run(tiny: Tiny) -> None:
    process = tiny.start(work_s=60)
    follow(process, "first", "Work")
    packer = victim("packer", process, tiny.store)
    process.kill()
    os.kill(packer, signal.SIGKILL)
    process.communicate(timeout=60)
    assert own_containers(tiny.store), "nothing was left to clean up: the test shows nothing"
    assert_continues(tiny, ["first", "maker", "second", "last"])


def test_engine_drops_the_container(tiny: Tiny) -> None:
    """What a restart of the engine does to a bake: the container dies, the connection to it breaks."""
    process = tiny.start(work_s=60)
    follow(process, "first", "Work")
    (container,) = own_containers(tiny.store)
    subprocess.run(["docker", "kill", container], check=True, stdout=subprocess.DEVNULL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "first" in tiny.missing()
    assert_continues(tiny, ["first", "maker", "second", "last"])


class SecondEngine:
    """A Docker engine of the test's own, in its own network namespace: restarting it disturbs nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = self.folder
        folder.mkdir(exist_ok=True)
        options = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", "--", "dockerd", f"--host={self.host}", *options, "--iptables=false"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while subprocess.run(["docker", "--host", self.host, "version"], check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)

    def stop(self, number: signal.Signals) -> None:
        """Ends the daemon; SIGKILL is what a crash is, SIGTERM ends its containers first."""
        assert self.process is not None
        os.kill(self.process.pid, number)
        self.process.wait(60)
        # Its containerd dies with it; where nobody reaps it, the next daemon would take the zombie for a live one.
        (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def load(self, reference: str) -> None:
        """Copies an image from the engine that the other tests use."""
        with subprocess.Popen(["docker", "save", reference], stdout=subprocess.PIPE) as save:
            subprocess.run(["docker", "--host", self.host, "load"], stdin=save.stdout, check=True, capture_output=True)
        assert save.returncode == 0


@pytest.fixture
def second_engine(tmp_path: Path) -> Iterator[SecondEngine]:
    # A socket's path may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="engine-"))
    engine = SecondEngine(folder)
    engine.start()
    yield engine
    engine.stop(signal.SIGTERM)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if f" {folder}/" in line]
    for mount in sorted(mounts, reverse=True):
        subprocess.run(["umount", mount], check=True)
    shutil.rmtree(folder)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "crashed"])
def test_engine_restarts_while_baking(
    tiny: Tiny, second_engine: SecondEngine, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    second_engine.load(tiny.plan().stages[0].reference)
    monkeypatch.setenv("DOCKER_HOST", second_engine.host)
    assert tiny.missing() == ["first", "maker", "second", "last"]
    process = tiny.start(work_s=60)
    follow(process, "first", "Work")
    second_engine.stop(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (1, 2), errors
    assert "Traceback" not in errors
    second_engine.start()
    assert "first" in tiny.missing()
    assert_continues(tiny, ["first", "maker", "second", "last"])
    monkeypatch.undo()


def test_paused_container_of_a_dead_run_goes(tiny: Tiny) -> None:
    """A commit that died once left its container paused, which the engine refuses to remove."""
    process = tiny.start(work_s=60)
    follow(process, "first", "Work")
    (container,) = own_containers(tiny.store)
    packer = victim("packer", process, tiny.store)
    os.kill(packer, signal.SIGSTOP)
    subprocess.run(["docker", "pause", container], check=True, stdout=subprocess.DEVNULL)
    process.kill()
    os.kill(packer, signal.SIGKILL)
    process.communicate(timeout=60)
    assert_continues(tiny, ["first", "maker", "second", "last"])


def test_untagged_stage_image_goes(tiny: Tiny) -> None:
    """An image that lost its name is no stage and goes; one that a container still uses is no obstacle."""
    with tiny.start(work_s=0) as process:
        process.communicate(timeout=120)
    last = next(stage for stage in tiny.plan().stages if stage.name == "last")
    made = [lost_image(last.reference) for _ in range(2)]
    user = subprocess.run(["docker", "create", made[0]], check=True, capture_output=True, text=True).stdout.strip()
    try:
        Engine().remove_untagged()
        assert [exists(image) for image in made] == [True, False]
    finally:
        subprocess.run(["docker", "rm", user], check=True, capture_output=True)
    Engine().remove_untagged()
    assert not exists(made[0])
    assert last.digest in cached_stages()


def lost_image(reference: str) -> str:
    """Commits a container of ``reference`` without a name; returns the image's id."""
    container = subprocess.run(
        ["docker", "create", reference], check=True, capture_output=True, text=True
    ).stdout.strip()
    image = subprocess.run(["docker", "commit", container], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["docker", "rm", container], check=True, capture_output=True)
    return image


def exists(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], check=False, capture_output=True).returncode == 0
