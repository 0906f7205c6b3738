"""The upgrade rehearsal on baked images: /data is kept, what is not is named, and every failure has a way back."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kiln import owner
from kiln.errors import KilnError, TerminatedError
from kiln.node_tools import data_manifest
from kiln.owner import OWNER_LABEL
from kiln.platform import LABEL, Cluster, Service, docker, remove_dead
from kiln.project import Project
from kiln.upgrade import Rehearsal
from stage_container import CHECKOUT, PROJECT, STORE
from tabled import DATA, HOME, USER

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

KILN = str(Path(sys.executable).with_name("kiln"))


@pytest.fixture(scope="module", autouse=True)
def both_releases() -> None:
    """The old release's image; the new one is baked before the tests."""
    subprocess.run(
        [KILN, "bake", "--release=1.1", "--image=cpu", "--json"], check=True, cwd=CHECKOUT, capture_output=True
    )


def others() -> tuple[str, ...]:
    """Clusters of processes that live, and are not this one: another run on this machine."""
    shape = f'{{{{.Name}}}} {{{{index .Labels "{OWNER_LABEL}"}}}}'
    networks = docker("network", "ls", "--quiet", f"--filter=label={OWNER_LABEL}").split()
    rows = [docker("network", "inspect", "--format", shape, name, check=False).split() for name in networks]
    return tuple(row[0] for row in rows if row and row[1] != owner.myself() and not owner.is_dead(row[1]))


def there() -> set[str]:
    """Containers and networks of clusters."""
    containers = docker("ps", "--all", "--format={{.Names}}", f"--filter=label={LABEL}").split()
    networks = docker("network", "ls", "--format={{.Name}}", f"--filter=label={OWNER_LABEL}").split()
    living = others()
    return {name for name in [*containers, *networks] if not name.startswith(living)}


def every_volume() -> list[str]:
    living = others()
    names = docker("volume", "ls", "--quiet", f"--filter=label={LABEL}").split()
    return [name for name in names if not name.startswith(living)]


BEFORE: dict[str, set[str]] = {"volumes": set(), "rest": set()}
"""What other rehearsals, not ours, had left or still used when the test began."""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    BEFORE.update(volumes=set(every_volume()), rest=there())
    yield
    remove_dead()
    if left := volumes():
        docker("volume", "rm", *left)
    assert there() <= BEFORE["rest"]


def rehearse(before_step: Callable[[str, Cluster], None] = lambda step, made: None, files: int = 50) -> Rehearsal:
    rehearsal = Rehearsal(PROJECT, STORE, "cpu", "1.1", "1.2", files=files, before_step=before_step)
    rehearsal.run()
    return rehearsal


def volumes() -> list[str]:
    """The volumes that the test made."""
    return [name for name in every_volume() if name not in BEFORE["volumes"]]


def test_the_upgrade_keeps_data_and_tells_what_is_lost(tmp_path: Path) -> None:
    command = [KILN, "upgrade", "--from=1.1", "--to=1.2", "--image=cpu", "--nodes=2", "--files=200", "--json"]
    done = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert report["verdict"] == "kept"
    assert report["differences"] == []
    assert len(report["given"]) == 2  # the top folder of each volume
    assert report["entries"] > 2 * 200
    assert {change["component"] for change in report["changes"]} == {"tensorflow", "keras"}
    assert report["samples"] == []
    for node in report["losses"]:
        assert [loss["name"] for loss in node["losses"]] == [f"{HOME}/experiments/notes.txt"]
    said = {entry["python"]: entry["says"] for entry in report["environments"]}
    assert said[f"{DATA}/miniconda2/bin/python"].startswith("Python 2.7")
    assert said[f"{DATA}/environments/py3/bin/python"].startswith("Python 3.6")
    assert volumes() == []
    page = Path(done.stderr.rpartition("report: ")[2].strip())
    assert "notes.txt" in page.read_text(encoding="utf-8")


def test_what_an_upgrade_does_to_data_is_named_entry_by_entry() -> None:
    def tamper(step: str, made: Cluster) -> None:
        if step == "manifest after":
            script = f"""
                cd {DATA}/work
                printf X | dd of=linked bs=1 seek=2 conv=notrunc,fsync status=none; touch -d @1534204800 linked
                chown 0:0 labelled; mv 'of another user' renamed; fallocate --dig-holes program || :
                truncate -s 5G sparse.img; rm deep/deep/deep -r
            """
            made.execute(made.nodes[0], script)

    rehearsal = rehearse(tamper)
    report = rehearsal.report
    assert report.verdict == "changed"
    assert report.exit_code == 1
    told = "\n".join(report.differences)
    for name in ("work/linked:", "work/labelled: group", "work/of another user", "work/renamed", "work/sparse.img"):
        assert name in told, told
    assert len([line for line in report.differences if "deep/deep/deep" in line]) > 50
    assert report.volumes == volumes() != []


def fails(made: Cluster) -> None:
    made.services["upgrade"] = Service("upgrade", "echo the new release is not ready; exit 9")


def times_out(made: Cluster) -> None:
    made.services["upgrade"] = Service("upgrade", "sleep 60", timeout_s=1)


def is_killed(made: Cluster) -> None:
    docker("kill", made.nodes[0].container)


def loses_its_volume(made: Cluster) -> None:
    node = made.nodes[0]
    docker("exec", node.container, "umount", DATA, check=False)
    made.discard(node)
    made.boot(node, volume_mode="none")
    made.publish()
    made.await_configuration(made.nodes[0])


def has_a_read_only_volume(made: Cluster) -> None:
    node = made.nodes[0]
    made.discard(node)
    made.boot(node, volume_mode="readonly")
    made.publish()
    made.await_configuration(made.nodes[0])


@pytest.mark.parametrize(
    ("step", "fault", "words"),
    [
        ("upgrade", fails, "upgrade ended with code 9: the new release is not ready"),
        ("upgrade", times_out, "upgrade ended with code 124"),
        ("upgrade", loses_its_volume, f"upgrade ended with code 10: no volume is mounted at {DATA}"),
        ("upgrade", has_a_read_only_volume, f"upgrade ended with code 11: the volume at {DATA} cannot be written to"),
        ("configuration", is_killed, "the configuration was not rendered"),
        ("start", is_killed, "start ended with code 137"),
        ("check", is_killed, "health-check ended with code 137"),
    ],
    ids=["fails", "times out", "no volume", "read-only volume", "killed in boot", "killed in start", "killed in check"],
)
def test_a_failed_upgrade_goes_back_with_the_data_untouched(
    step: str, fault: Callable[[Cluster], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiln.platform.AGENT_S", 5)
    rehearsal = rehearse(lambda name, made: fault(made) if name == step else None, files=5)
    report = rehearsal.report
    failed = [entry for entry in report.steps if entry.error]
    assert [entry.name for entry in failed] == [step]
    assert words in failed[0].error
    assert report.verdict == "rolled back"
    assert report.differences == []
    assert report.exit_code == 1
    assert report.steps[-1].name == "check after going back"
    assert volumes() == []


def test_an_upgrade_that_runs_after_start_does() -> None:
    def later(step: str, made: Cluster) -> None:
        if step == "configuration":
            made.services["upgrade"] = replace(made.services["upgrade"], after_start=True)

    report = rehearse(later, files=5).report
    names = [entry.name for entry in report.steps]
    assert names.index("upgrade") == names.index("start") + 1
    assert report.verdict == "kept"


def test_a_signal_is_no_reason_to_go_back() -> None:
    def terminate(step: str, made: Cluster) -> None:
        if step == "new root disks":
            raise TerminatedError

    rehearsal = Rehearsal(PROJECT, STORE, "cpu", "1.1", "1.2", files=5, before_step=terminate)
    with pytest.raises(TerminatedError):
        rehearsal.run()
    assert rehearsal.report.steps[-1].name == "new root disks"
    assert rehearsal.report.volumes == volumes() != []


class Swapped:
    """Another volume at the new node's /data; going back finds the cluster's own again."""

    def __init__(self, volume: str) -> None:
        self.volume = volume
        self.own = ""

    def __call__(self, step: str, made: Cluster) -> None:
        if step == "new root disks":
            self.own = made.nodes[0].volume
            made.nodes[0] = replace(made.nodes[0], volume=self.volume)
        elif step == "old root disks":
            made.nodes[0] = replace(made.nodes[0], volume=self.own)


def test_the_volume_of_another_cluster_is_noticed(tmp_path: Path) -> None:
    volume = f"kiln-test-{os.getpid()}"
    docker("volume", "create", volume)
    try:
        report = rehearse(Swapped(volume), files=5).report
    finally:
        docker("volume", "rm", "--force", volume)
    (failed,) = (entry for entry in report.steps if entry.error)
    assert failed.name == "manifest after"
    assert f"{DATA} differs in" in failed.error
    assert report.verdict == "rolled back"
    assert any("missing" in line or "gone" in line or "removed" in line for line in report.differences)


def test_a_volume_whose_file_system_cannot_be_mounted(tmp_path: Path) -> None:
    volume = f"kiln-test-{os.getpid()}"
    (tmp_path / "device").write_bytes(bytes(1 << 20))
    docker("volume", "create", "--opt=type=ext4", f"--opt=device={tmp_path}/device", volume)
    try:
        report = rehearse(Swapped(volume), files=5).report
    finally:
        docker("volume", "rm", "--force", volume)
    (failed,) = (entry for entry in report.steps if entry.error)
    assert failed.name == "new root disks"
    assert "mount" in failed.error
    assert report.verdict == "rolled back"
    assert report.differences == []


def test_a_full_volume_is_upgraded_and_kept(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], check=True)
    volume = f"kiln-test-{os.getpid()}"
    docker("volume", "create", "--opt=type=none", "--opt=o=bind", f"--opt=device={place}", volume)

    def fill_up(step: str, made: Cluster) -> None:
        node = made.nodes[0] if made.nodes else None
        if node and step == "fill":
            made.discard(node)
            made.nodes[0] = replace(node, volume=volume)
            made.boot(made.nodes[0])
            made.publish()
            made.await_configuration(made.nodes[0])
            made.execute(made.nodes[0], f"chown {USER}: {DATA}")
        if node and step == "stop":
            made.execute(node, f"head -c 100M /dev/zero >{DATA}/full || df --output=avail {DATA} | grep -qx ' *0'")

    try:
        rehearsal = rehearse(fill_up, files=5)
        full = (place / "full").stat().st_size
    finally:
        docker("volume", "rm", "--force", volume)
        subprocess.run(["umount", str(place)], check=True)
    report = rehearsal.report
    assert report.verdict == "kept", [entry for entry in report.steps if entry.error]
    assert report.differences == []
    assert full > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"old": "1.2", "new": "1.1"}, "release 1.1 accepts no upgrade from 1.2"),
        ({"old": "0.9"}, "release 1.2 accepts no upgrade from 0.9"),
        ({"new": "9.9"}, "release 9.9 does not exist"),
        ({"image": "tpu"}, "image 'tpu' is not in release 1.1"),
    ],
    ids=["backwards", "unknown old", "unknown new", "unknown image"],
)
def test_what_cannot_be_is_refused_before_anything_begins(change: dict[str, str], words: str) -> None:
    image, old, new = ({"image": "cpu", "old": "1.1", "new": "1.2"} | change).values()
    with pytest.raises(KilnError, match=words):
        Rehearsal(PROJECT, STORE, image, old, new)


def test_an_image_that_is_gone_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rehearsal, "_reference", lambda self, release: f"deeplearning:gone-{release}")
    with pytest.raises(KilnError, match=r"deeplearning:gone-1.1 is not baked; run make images RELEASE=1.1"):
        Rehearsal(project, STORE, "cpu", "1.1", "1.2")


def assert_survives_a_kill(number: signal.Signals, store: Path, delay: float) -> str:
    """Kills a rehearsal, and compares the volume with the manifest that it had made, if it came so far."""
    command = ["env", "--default-signal=INT", KILN, f"--store={store}", "upgrade", "--files=20"]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(delay)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert "Traceback" not in said
    remove_dead()
    assert there() <= BEFORE["rest"], said
    manifests = sorted(store.glob("rehearsals/*/node1-before.manifest"))
    for volume in volumes():
        if manifests and manifests[-1].read_bytes().rstrip().endswith(b'"}'):
            assert unchanged(volume, manifests[-1], store / "now.manifest") == [], said
        docker("volume", "rm", volume)
    for path in manifests:
        path.unlink()
    return said


def unchanged(volume: str, before: Path, after: Path) -> list[Any]:
    """What differs on the volume, but for the owner of its top folder."""
    with Path(data_manifest.__file__).open("rb") as program, after.open("wb") as output:
        mount = f"--mount=type=volume,source={volume},target={DATA},volume-nocopy"
        command = ["docker", "run", "--rm", "--interactive", mount, "deeplearning:1.2-cpu"]
        subprocess.run([*command, "/usr/bin/python3", "-", "make", DATA], stdin=program, stdout=output, check=True)
    found = data_manifest.differences(data_manifest.Manifest(str(before)), data_manifest.Manifest(str(after)))
    return [entry for entry in found if entry[1] != "."]


@pytest.fixture
def own_store(tmp_path: Path) -> Path:
    """A store of the test's own, with the baselines of the images."""
    store = tmp_path / "store"
    store.mkdir()
    if (STORE.root / "baselines").is_dir():
        (store / "baselines").symlink_to(STORE.root / "baselines")
    return store


def kill_at_random(times: int, store: Path) -> None:
    chance = random.SystemRandom()
    for _ in range(times):
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        assert_survives_a_kill(number, store, chance.uniform(0.5, 18))


@pytest.mark.timeout(600)
def test_killed_at_a_random_moment_it_loses_nothing(own_store: Path) -> None:
    kill_at_random(5, own_store)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_fifty_times_it_loses_nothing(own_store: Path) -> None:
    kill_at_random(50, own_store)


def test_interrupted_it_keeps_the_volumes_and_says_where(own_store: Path) -> None:
    command = ["env", "--default-signal=INT", KILN, f"--store={own_store}", "upgrade", "--files=20"]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "manifest before" in line:
            break
    os.kill(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    (volume,) = volumes()
    assert f"volumes kept: {volume}" in rest
    assert there() <= BEFORE["rest"]


def test_preflight_only_reads_and_exits_3(tmp_path: Path) -> None:
    name = f"kiln-test-{os.getpid()}"
    docker("run", "--detach", f"--name={name}", "deeplearning:1.1-cpu", "sleep", "infinity")
    try:
        command = [KILN, "upgrade", f"--preflight={name}", "--from=1.1", "--image=cpu"]
        done = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        docker("exec", f"--user={USER}", name, "sh", "-c", "echo mine > ~/thesis.tex")
        before = docker("diff", name)
        done = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)
        assert done.returncode == 3
        assert f"{HOME}/thesis.tex" in done.stdout
        assert docker("diff", name) == before
    finally:
        docker("rm", "--force", name)
