"""Real bakes of a tiny project: what comes out, what a failure says, what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bake_project import CHECKOUT, Row, make_plan, remove_images, seed_store, write_project
from file_server import closed_port
from kiln import bootstrap, recipe
from kiln.ansible.connection import connection
from kiln.bake import StageError, bake, way_out
from kiln.bootstrap import Base, carried_settings, sources_list
from kiln.cli import main
from kiln.engine import Engine, cached_stages, stage_tags, unreachable
from kiln.errors import KilnError
from kiln.plan import Plan, Stage
from kiln.progress import JsonReporter
from kiln.project import Project
from kiln.standin import serving
from kiln.store import Store
from kiln.supplies import Supplies

HOST = "developer.download.nvidia.com"
FIRST = """
- name: Note the environment
  ansible.builtin.command: env
  register: noted
  changed_when: false
- name: Keep it
  ansible.builtin.copy: {content: "{{ noted.stdout }}", dest: /etc/environment-noted, mode: "0644"}
"""
MAKER = """
- name: Make a file as if of the host
  ansible.builtin.file: {path: /run/kiln/out/HOST, state: directory, mode: "0755"}
- name: Fill it
  ansible.builtin.copy: {content: "{{ words }}", dest: /run/kiln/out/HOST/words, mode: "0644"}
""".replace("HOST", HOST)
LAST = """
- name: Fetch it the way apt does
  ansible.builtin.command: /usr/lib/apt/apt-helper download-file http://HOST/words /etc/served
  args: {creates: /etc/served}
- name: Take the product
  ansible.builtin.copy: {src: /run/kiln/products/maker/HOST/words, dest: /etc/taken, remote_src: true, mode: "0644"}
- name: Install a package
  ansible.builtin.apt: {name: [less], update_cache: true, cache_valid_time: 86400, install_recommends: false}
""".replace("HOST", HOST)
FAILING = """
- name: Go well
  ansible.builtin.command: "true"
  changed_when: false
- name: Break
  ansible.builtin.command: sh -c 'echo "the disk of Theseus" >&2; exit 3'
  changed_when: false
"""
SLEEP = """
- name: Sleep
  ansible.builtin.command: sleep 4
  changed_when: false
"""

engine = pytest.mark.engine


@pytest.fixture
def store(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store of the test's own; what was baked with it goes with the test, and nothing else."""
    store = seed_store(tmp_path / "store", tmp_path_factory.getbasetemp() / "seed")
    yield store
    remove_images(store)


@pytest.fixture
def nonce() -> tuple[tuple[str, str], ...]:
    """A variable that makes a test's stages its own."""
    return (("nonce", uuid.uuid4().hex), ("words", "of the host"))


def run(rows: tuple[Row, ...], project: Project, store: Store, jobs: int = 2) -> list[dict[str, str]]:
    """Bakes and returns the events."""
    stream = io.StringIO()
    try:
        bake(make_plan(rows, project, store), project, store, reporter=JsonReporter(stream), jobs=jobs)
    finally:
        events = [json.loads(line) for line in stream.getvalue().splitlines()]
    return events


def inside(stage: Stage, *command: str) -> str:
    """What a command says in the stage's image."""
    return subprocess.run(
        ["docker", "run", "--rm", stage.reference, *command], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.alone
@engine
def test_chain_with_product_and_served_host(tmp_path: Path, store: Store, nonce: tuple[tuple[str, str], ...]) -> None:
    tag = f"kiln-test:{nonce[0][1]}"
    rows = (
        Row("first", FIRST, variables=nonce),
        Row("maker", MAKER, kind="build", variables=nonce),
        Row("last", LAST, parent="first", products=("maker",), serve=((HOST, "maker"),), tag=tag),
    )
    project = write_project(tmp_path / "project", store.root, rows)
    events = run(rows, project, store)
    first, maker, last = make_plan(rows, project, store).stages[1:]
    assert {first.state, maker.state, last.state} == {"cached"}

    said = inside(first, "cat", "/etc/environment-noted").splitlines()
    assert {"APT_CONFIG=/run/kiln/apt.conf", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"} <= set(said)
    assert inside(last, "cat", "/etc/served", "/etc/taken") == "of the host" * 2
    assert "/usr/bin/less" in inside(last, "sh", "-c", "command -v less")

    # Nothing of the build itself is in the image.
    left = inside(last, "sh", "-c", "env; ls -A /run /tmp /var/lib/apt/lists /var/cache/apt /var/log/apt /root")
    for name in ("kiln", "APT_CONFIG", "pkgcache", ".deb", "Packages", "packer", ".ansible", "history.log"):
        assert name not in left
    described = json.loads(subprocess.run(["docker", "inspect", tag], check=True, capture_output=True).stdout)[0]
    assert described["Config"]["Labels"]["org.deeplearning.kiln.digest"] == last.digest
    assert described["Config"]["Labels"]["org.deeplearning.release"] == '0 "quoted" $HOME'
    assert not described["Config"]["Entrypoint"]
    assert tag in stage_tags()[last.digest]

    # Every stage is told, timed and recorded.
    assert {event["stage"] for event in events if event["event"] == "finished"} >= {"first", "maker", "last"}
    for stage in (first, maker, last):
        record = json.loads((store.root / "records" / f"{stage.digest}.json").read_text(encoding="utf-8"))
        assert record["seconds"] > 0
    assert [event["task"] for event in events if event["event"] == "task" and event["stage"] == "first"] == [
        "first : Note the environment", "first : Keep it",
    ]  # fmt: skip

    # Nothing missing: nothing happens, at once; a lost name comes back.
    subprocess.run(["docker", "rmi", tag], check=True, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    assert run(rows, project, store) == []
    assert time.monotonic() - began < 1
    assert tag in stage_tags()[last.digest]


@engine
def test_plain_connection_gives_the_same_environment(
    tmp_path: Path, store: Store, nonce: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILN_CONNECTION", "docker")
    rows = (Row("first", FIRST, variables=nonce),)
    project = write_project(tmp_path / "project", store.root, rows)
    run(rows, project, store)
    stage = make_plan(rows, project, store).stages[1]
    assert "APT_CONFIG=/run/kiln/apt.conf" in inside(stage, "cat", "/etc/environment-noted")
    assert "APT_CONFIG" not in inside(stage, "env")


@engine
def test_failure_shows_the_tasks_own_words_and_the_next_run_continues(
    tmp_path: Path, store: Store, nonce: tuple[tuple[str, str], ...]
) -> None:
    good = Row("good", SLEEP, variables=nonce)
    rows = (
        good,
        Row("bad", FAILING, variables=nonce),
        Row("product", FAILING.replace("exit 3", "exit 3 > /run/kiln/out/half"), kind="build", variables=nonce),
        Row("after", SLEEP, parent="bad"),
    )
    project = write_project(tmp_path / "project", store.root, rows)
    with pytest.raises(StageError) as caught:
        run(rows, project, store)
    words = str(caught.value)
    assert "stage bad: task “bad : Break” failed" in words
    assert "the disk of Theseus" in words
    assert caught.value.exit_code == 1
    log = Path(words.partition("log: ")[2].partition(";")[0])
    assert "the disk of Theseus" in log.read_text(encoding="utf-8")

    # What ran beside it was finished, nothing of the failed one stands, and only that one is left to do.
    states = {stage.name: stage.state for stage in make_plan(rows, project, store).stages}
    assert states["good"] == "cached"
    assert states["bad"] == states["product"] == states["after"] == "missing"
    assert list((store.root / "runs").iterdir()) == []
    assert list((store.root / "products" / ".new").glob("*")) == []
    mended = tuple(Row(**{**vars(row), "tasks": row.tasks.replace("exit 3", "exit 0")}) for row in rows)
    write_project(tmp_path / "project", store.root, mended)
    events = run(mended, project, store)
    assert {event["stage"] for event in events if event["event"] == "started"} == {"bad", "product", "after"}


@engine
def test_independent_stages_run_side_by_side(tmp_path: Path, store: Store, nonce: tuple[tuple[str, str], ...]) -> None:
    rows = (Row("left", SLEEP, variables=nonce), Row("right", SLEEP, variables=nonce))
    project = write_project(tmp_path / "project", store.root, rows)
    events = run(rows, project, store, jobs=2)
    order = [event["event"] for event in events if event["event"] in ("started", "finished")]
    assert order == ["started", "started", "finished", "finished"]


@engine
def test_second_bake_waits_and_finds_the_work_done(
    tmp_path: Path, store: Store, nonce: tuple[tuple[str, str], ...]
) -> None:
    rows = (Row("first", SLEEP, variables=nonce),)
    project = write_project(tmp_path / "project", store.root, rows)
    script = [sys.executable, str(Path(__file__).with_name("bake_project.py")), str(project.root), str(store.root)]
    first = subprocess.Popen([*script, "--json"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    # It may first say what it removed of another's remains.
    assert any(json.loads(line)["event"] == "begin" for line in first.stdout)
    second = subprocess.run([*script, "--json"], capture_output=True, text=True, check=True, timeout=60)
    first.communicate(timeout=60)
    assert first.returncode == 0
    events = [json.loads(line) for line in second.stdout.splitlines()]
    assert [event["event"] for event in events] == ["waiting"]
    assert f"process {first.pid}" in events[0]["holder"]


@engine
def test_full_disk_is_refused_before_work(
    tmp_path: Path, store: Store, nonce: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (Row("first", SLEEP, variables=nonce),)
    project = write_project(tmp_path / "project", store.root, rows)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**20, 2**20))
    with pytest.raises(KilnError, match=r"less than 3\.0 GiB free") as caught:
        run(rows, project, store)
    assert caught.value.exit_code == 2
    assert not (store.root / "logs").exists()


@engine
def test_a_disk_too_small_for_every_image_is_refused_before_anything_is_fetched(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40, 4 * 2**30))
    # Whoever asks for a file before the disks are looked at fails here.
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}/simple")
    done = CliRunner().invoke(main, ["--root", str(project.root), "--store", str(project.store), "bake"])
    assert done.exit_code == 2
    assert "GiB free on its disk, which this bake may need; make room" in done.output
    assert not (project.store / "blobs").exists()


@engine
def test_plugins_that_packer_cannot_have_are_told(
    tmp_path: Path, store: Store, nonce: tuple[tuple[str, str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    packer = tmp_path / "bin" / "packer"
    packer.parent.mkdir()
    answer = (
        'case $1 in version) echo "Packer v1.11.2" ;; init) echo "1,,ui,error,no way to the plugins"; exit 1 ;; esac'
    )
    packer.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
    packer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{packer.parent}:{os.environ['PATH']}")
    rows = (Row("first", SLEEP, variables=nonce),)
    with pytest.raises(StageError, match=r"packer init ended with code 1\n    no way to the plugins\n"):
        run(rows, write_project(tmp_path / "project", store.root, rows), store)


def test_missing_engine_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    for ask in (cached_stages, Engine().check):
        with pytest.raises(KilnError, match=r"no Docker engine answers .* start it") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_missing_permission_is_told_apart() -> None:
    error = unreachable(PermissionError(13, "Permission denied"), "unix:///run/docker.sock")
    assert "no permission" in str(error)
    assert "group" in error.fix


def test_engine_answers_are_read_fast() -> None:
    """``kiln plan`` asks this way: no SDK may be imported for it."""
    code = "import sys; import kiln.engine; sys.exit('docker' in sys.modules or 'requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_standin_answers_for_its_own_host_only(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "Release").write_text("signed", encoding="utf-8")
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    with serving("127.0.0.1", {HOST: tmp_path / "repo"}) as proxy:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy}))
        assert opener.open(f"http://{HOST}/Release").read() == b"signed"
        for url in (
            f"http://{HOST}/none",
            "http://example.org/Release",
            f"http://{HOST}/..%2fsecret",
            f"http://{HOST}/",
        ):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                opener.open(url)
    with pytest.raises(urllib.error.URLError):
        opener.open(f"http://{HOST}/Release")


BASE = Base("mmdebstrap", "debian-12", "one", ("one", "one-security"), ("main", "contrib"), ("python3",), {})


def test_sources_are_the_machines_mirrors(tmp_path: Path) -> None:
    keys = tmp_path / "keys.gpg"
    keys.touch()
    mirrors = {"one": "http://mirror.test/a", "one-security": "http://mirror.test/s", "other": "http://else.test"}
    assert sources_list(BASE, mirrors, keys) == (
        f"deb [signed-by={keys}] http://mirror.test/a one main contrib\n"
        f"deb [signed-by={keys}] http://mirror.test/s one-security main contrib\n"
    )


def test_host_of_another_release_has_the_same_archive(tmp_path: Path) -> None:
    keys = tmp_path / "keys.gpg"
    keys.touch()
    mirrors = {"two-security": "http://mirror.test/s", "two": "http://mirror.test/a"}
    assert "http://mirror.test/a one main" in sources_list(BASE, mirrors, keys)
    assert "http://mirror.test/s one-security main" in sources_list(BASE, mirrors, keys)


def test_no_mirror_is_refused() -> None:
    with pytest.raises(KilnError, match="knows no mirror for one; add a source"):
        sources_list(BASE, {}, None)


def test_channels_own_mirror_goes_first() -> None:
    base = Base("tarball", "ubuntu-16", "x", ("x",), ("main",), (), {"x": "http://channel.test"})
    assert sources_list(base, {"x": "http://mirror.test"}, None) == "deb http://channel.test x main\n"


def test_proxy_of_the_machine_is_carried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "apt.conf"
    config.write_text(
        'Acquire::http::Proxy "http://proxy.test:3128";\nAcquire::https::CaInfo "/here/ca.crt";\nDir::Etc::x "y";\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("APT_CONFIG", str(config))
    monkeypatch.setenv("https_proxy", "http://other.test:8080")
    carried = dict(carried_settings())
    assert carried["Acquire::http::Proxy"] == "http://proxy.test:3128"
    assert carried["Acquire::https::Proxy"] == "http://other.test:8080"
    assert "Acquire::https::CaInfo" not in carried, "its path means nothing in a container"
    assert not any(name.startswith("Dir::") for name in carried)


def test_missing_mmdebstrap_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KilnError, match="mmdebstrap is not installed; install"):
        bootstrap.make_root(BASE, tmp_path, tmp_path / "root.tar", tmp_path, lambda command, extra: 0)


def test_locked_index_is_kept_until_it_is_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    fetched: list[str] = []

    def refresh(store: Store, base: Base, *, tarball: Path | None = None) -> str:
        fetched.append(base.suite)
        (bootstrap.index_folder(store, "d" * 64) / "lists").mkdir(parents=True, exist_ok=True)
        store.set_machine_lock(bootstrap.lock_name(base), "d" * 64)
        return "d" * 64

    monkeypatch.setattr(bootstrap, "refresh_index", refresh)
    assert bootstrap.lock_index(store, BASE) == bootstrap.lock_index(store, BASE) == "d" * 64
    assert fetched == ["one"]
    shutil.rmtree(tmp_path / "apt")
    bootstrap.lock_index(store, BASE)
    assert fetched == ["one", "one"]
    for other in ({"components": ("main",)}, {"suites": ("one",)}, {"mirrors": {"one": "http://mirror.test"}}):
        bootstrap.lock_index(store, replace(BASE, **other))
    assert len(fetched) == 5


def test_lists_of_other_components_are_another_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def update(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        lists = Path(options["env"]["APT_CONFIG"]).parent / "lists"
        (lists / "mirror.test_dists_one_Release").write_text("the same for every component\n", encoding="utf-8")
        return subprocess.CompletedProcess(command, 0, "", "")

    keys = tmp_path / "keys.gpg"
    keys.touch()
    monkeypatch.setattr(bootstrap, "KEYRINGS", {"debian": keys})
    monkeypatch.setattr(
        bootstrap, "host_mirrors", lambda: {"one": "http://mirror.test", "one-security": "http://s.test"}
    )
    monkeypatch.setattr(bootstrap, "carried_settings", list)
    monkeypatch.setattr("subprocess.run", update)
    first = bootstrap.lock_index(store, BASE)
    second = bootstrap.refresh_index(store, replace(BASE, components=("main",)))
    assert first != second
    assert bootstrap.lock_index(store, BASE) == first
    text = (bootstrap.index_folder(store, second) / "sources.list").read_text(encoding="utf-8")
    assert "contrib" not in text


def test_a_base_that_is_none_is_refused() -> None:
    for variables in ({}, {"kind": "mmdebstrap", "distribution": "debian-12", "suite": None}):
        with pytest.raises(KilnError, match=r"images/stages\.yml: the variables of the bootstrap stage are no base"):
            Base.of(variables)


@engine
def test_a_stage_gets_the_index_that_it_was_planned_with(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    plan = make_plan((), write_project(tmp_path / "project", store.root, ()), store)
    root = replace(plan.stages[0], inputs={bootstrap.INDEX_INPUT: "a" * 64})
    store.set_machine_lock(bootstrap.lock_name(Base.of(root.variables)), "b" * 64)
    supplies = Supplies(Plan((root,)), store)
    with pytest.raises(KilnError, match="the apt index that was planned with is gone; run it again"):
        supplies.index(root)
    index = bootstrap.index_folder(store, "a" * 64)
    (index / "lists").mkdir(parents=True)
    assert supplies.index(root) == index


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "E: Failed to fetch http://mirror.test/pool/a_1.deb  404  Not Found [IP: 10.0.0.1 80]",
            "run kiln bake --refresh",
        ),
        ("E: Failed to fetch http://mirror.test/pool/a_1.deb  503  Busy", "run it again to continue"),
        ("tar: x: Cannot write: No space left on device", "make room on the disk"),
    ],
)
def test_a_failure_names_its_way_out(words: str, says: str) -> None:
    assert says in way_out(["E: first", words])


def test_the_callers_ansible_and_packer_settings_stay_outside(tmp_path: Path) -> None:
    caller = {
        "ANSIBLE_ROLES_PATH": "/elsewhere",
        "ANSIBLE_COLLECTIONS_PATH": "/elsewhere",
        "PACKER_CONFIG": "/elsewhere",
        "PKR_VAR_parent": "other",
        "PACKER_PLUGIN_PATH": "/plugins",
        "https_proxy": "http://proxy.test",
        "PATH": "/bin",
    }
    assert recipe.environment(caller, {"KILN_RUN": "a"}, tmp_path) == {
        "PACKER_PLUGIN_PATH": "/plugins",
        "https_proxy": "http://proxy.test",
        "PATH": "/bin",
        "KILN_RUN": "a",
        "TMPDIR": str(tmp_path),
        "LC_ALL": "C.UTF-8",
    }


def test_ansible_events_hide_what_is_not_to_be_logged(tmp_path: Path) -> None:
    play = tmp_path / "play.yml"
    play.write_text(
        json.dumps(
            [
                {
                    "name": "Fail quietly",
                    "hosts": "all",
                    "gather_facts": False,
                    "tasks": [
                        {"name": "Show", "ansible.builtin.debug": {"msg": "open"}},
                        {"name": "Hide", "ansible.builtin.command": "false p12c", "no_log": True},
                    ],
                }
            ]
        ),
        encoding="utf-8",
    )
    events = tmp_path / "events.jsonl"
    environment = {**os.environ, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "KILN_EVENTS": str(events)}
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local", str(play)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    noted = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    assert [(event["event"], event.get("task")) for event in noted] == [
        ("task", "Show"), ("ok", "Show"), ("task", "Hide"), ("failed", "Hide"), ("recap", None),
    ]  # fmt: skip
    assert "p12c" not in events.read_text(encoding="utf-8")
    assert noted[-1]["hosts"]["localhost"]["failures"] == 1


def test_connection_keeps_the_targets_interpreter() -> None:
    for mitogen in (True, False):
        entry = connection("c", "/usr/bin/python2.7", mitogen=mitogen)
        assert entry["ansible_python_interpreter"].endswith("/usr/bin/python2.7")
