"""The upgrade rehearsal on baked images: /data is kept, what is not is named, and every failure has a way back."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kiln import owner
from kiln.errors import KilnError, TerminatedError
from kiln.node_tools import data_manifest
from kiln.owner import OWNER_LABEL
from kiln.platform import LABEL, Cluster, Service, cluster, docker, remove_dead
from kiln.project import Project
from kiln.upgrade import GIVEN, Rehearsal, Report, as_html, moved, run_sample
from stage_container import CHECKOUT, PROJECT, STORE
from tabled import DATA, HOME, MATRIX, PYTHON2, PYTHON3, SAMPLES, USER

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
    living = others()
    containers = docker("ps", "--all", "--format={{.Names}}", f"--filter=label={LABEL}").split()
    networks = docker("network", "ls", "--format={{.Name}}", f"--filter=label={OWNER_LABEL}").split()
    living += others()  # another run may begin or end meanwhile
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
        assert {loss["name"] for loss in node["losses"]} == {
            f"{HOME}/experiments/notes.txt",
            f"{HOME}/own-python",
            f"{DATA}/environments/own (starts no more without {HOME}/own-python/bin)",
        }
    said = {entry["python"]: entry["says"] for entry in report["environments"] if entry["node"] == "node2"}
    series = {python.rpartition(".")[0]: f"Python {python}" for python in (PYTHON2, PYTHON3)}
    assert said == {
        f"{DATA}/miniconda2/bin/python": f"Python {PYTHON2}",
        f"{DATA}/environments/own/bin/python": f"does not start: {HOME}/own-python/bin/python{max(series)} is gone, "
        f"it lay outside {DATA}",
        **{f"{DATA}/environments/{name}/bin/python": python for name, python in series.items()},
    }
    assert volumes() == []
    page = Path(done.stderr.rpartition("report: ")[2].strip())
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8")) == report
    text = page.read_text(encoding="utf-8")
    assert all(words in text for words in ("notes.txt", "<h3>node1</h3>", "<h3>node2</h3>", "does not start: "))


def test_the_page_tells_what_is_gone_and_what_has_another_name() -> None:
    old = {"/opt/a": "1", "/opt/b": "2", "/opt/dir": "", "/opt/same": "3", "/opt/twice": "4"}
    new = {"/opt/c": "2", "/opt/new": "", "/opt/same": "5", "/opt/x": "4", "/opt/y": "4"}
    gone, renamed = moved(old, new)
    assert (gone, renamed) == (["/opt/a", "/opt/dir", "/opt/twice"], [("/opt/b", "/opt/c")])
    report = Report("cpu", "1", "2", 1, "now", removed=gone, renamed=renamed)
    text = as_html(PROJECT, asdict(report))
    assert "<code>/opt/b</code> → <code>/opt/c</code>" in text
    assert "<li><code>/opt/twice</code></li>" in text


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


def fails(service: str) -> Callable[[Cluster], None]:
    def fault(made: Cluster) -> None:
        made.services[service] = Service(service, "echo the new release is not ready; exit 9")

    return fault


def times_out(service: str) -> Callable[[Cluster], None]:
    def fault(made: Cluster) -> None:
        made.services[service] = Service(service, "sleep 60", timeout_s=1)

    return fault


def does_nothing(made: Cluster) -> None:
    made.services["upgrade"] = Service("upgrade", "true")


def gives_it_to_another(made: Cluster) -> None:
    made.services["upgrade"] = Service("upgrade", f"chown 4711:4711 {DATA}")


def has_no_sample(made: Cluster) -> None:
    made.execute(made.nodes[0], f"mv {SAMPLES}/pytorch/mnist.py {SAMPLES}/pytorch/renamed.py")


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
        ("upgrade", fails("upgrade"), "upgrade ended with code 9: the new release is not ready"),
        ("upgrade", times_out("upgrade"), "upgrade ended with code 124"),
        ("upgrade", loses_its_volume, f"upgrade ended with code 10: no volume is mounted at {DATA}"),
        ("upgrade", has_a_read_only_volume, f"upgrade ended with code 11: the volume at {DATA} cannot be written to"),
        ("check", has_no_sample, "the sample pytorch/mnist.py fails: python: can't open file 'mnist.py'"),
        ("configuration", is_killed, "the configuration was not rendered"),
        ("upgrade", is_killed, "upgrade ended with code 137"),
        ("start", fails("start"), "start ended with code 9: the new release is not ready"),
        ("start", times_out("start"), "start ended with code 124"),
        ("start", is_killed, "start ended with code 137"),
        ("manifest after", is_killed, f"no manifest of {DATA}"),
        ("check", is_killed, "health-check ended with code 137"),
    ],
    ids=[
        *("upgrade fails", "upgrade times out", "no volume", "read-only volume", "no sample", "killed in boot"),
        *("killed in upgrade", "start fails", "start times out", "killed in start", "killed in manifest"),
        "killed in check",
    ],
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


def test_the_report_is_there_before_the_volumes_go(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = Rehearsal(PROJECT, STORE, "cpu", "1.1", "1.2", files=5)
    found: list[dict[str, Any]] = []

    def remove(name: str) -> None:
        found.append(json.loads((rehearsal.folder / "report.json").read_text()))
        raise TerminatedError

    monkeypatch.setattr("kiln.upgrade.remove_volumes", remove)
    with pytest.raises(TerminatedError):
        rehearsal.run()
    found.append(json.loads((rehearsal.folder / "report.json").read_text()))
    assert [report["verdict"] for report in found] == ["kept", "kept"]
    assert [report["volumes"] for report in found] == [[], volumes()]
    assert volumes() != []


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


def manifest_of(volume: str, path: Path) -> Path:
    with Path(data_manifest.__file__).open("rb") as program, path.open("wb") as output:
        mount = f"--mount=type=volume,source={volume},target={DATA},volume-nocopy"
        command = ["docker", "run", "--rm", "--interactive", mount, "deeplearning:1.2-cpu"]
        subprocess.run([*command, "/usr/bin/python3", "-", "make", DATA], stdin=program, stdout=output, check=True)
    return path


def test_the_volume_of_another_cluster_is_noticed_and_kept(tmp_path: Path) -> None:
    volume = f"kiln-test-{os.getpid()}"
    docker("volume", "create", volume)
    mount = f"--mount=type=volume,source={volume},target={DATA},volume-nocopy"
    try:
        script = f"echo theirs > {DATA}/theirs; chown -R 4711:4711 {DATA}/theirs"
        docker("run", "--rm", mount, "deeplearning:1.1-cpu", "sh", "-c", script)
        before = manifest_of(volume, tmp_path / "before")
        report = rehearse(Swapped(volume), files=5).report
        assert unchanged(volume, before, tmp_path / "after") == []
    finally:
        docker("volume", "rm", "--force", volume)
    (failed,) = (entry for entry in report.steps if entry.error)
    assert failed.name == "manifest after"
    assert f"{DATA} differs in" in failed.error
    assert report.verdict == "rolled back"
    assert any("added    theirs (file)" in line for line in report.differences)


def test_an_old_image_that_goes_midway_leaves_the_data_where_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rehearsal, "_reference", lambda self, release: f"kiln-test:{os.getpid()}-{release}")
    names = {release: f"kiln-test:{os.getpid()}-{release}" for release in ("1.1", "1.2")}
    for release, name in names.items():
        docker("tag", f"deeplearning:{release}-cpu", name)

    def go(step: str, made: Cluster) -> None:
        if step == "upgrade":
            fails(step)(made)
        elif step == "old root disks":
            docker("rmi", names["1.1"])

    rehearsal = Rehearsal(PROJECT, STORE, "cpu", "1.1", "1.2", files=5, before_step=go)
    try:
        with pytest.raises(KilnError, match="docker run"):
            rehearsal.run()
    finally:
        docker("rmi", *names.values(), check=False)
    assert [entry.name for entry in rehearsal.report.steps if entry.error] == ["upgrade", "old root disks"]
    (volume,) = rehearsal.report.volumes
    assert (rehearsal.report.verdict, rehearsal.report.exit_code) == ("failed", 1)
    assert unchanged(volume, rehearsal.folder / "node1-before.manifest", tmp_path / "now") == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("image", MATRIX.images("1.1"))
def test_every_image_is_upgraded(image: str) -> None:
    for release in ("1.1", "1.2"):
        subprocess.run([KILN, "bake", f"--release={release}", f"--image={image}", "--json"], check=True, cwd=CHECKOUT)
    rehearsal = Rehearsal(PROJECT, STORE, image, "1.1", "1.2", files=50)
    report = rehearsal.run()
    assert report.verdict == "kept", [entry for entry in report.steps if entry.error]
    assert len(report.losses[0]["losses"]) == 3  # what the rehearsal itself made; nothing of the image's


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


@pytest.mark.parametrize(
    ("fault", "failed", "verdict"),
    [
        # The way back is whole; but a user of the new release could not write.
        (does_nothing, ("check", f"{DATA} belongs to 0:0 and not to the user"), "rolled back"),
        (gives_it_to_another, ("manifest after", "differs in 1 entries, first node1: changed  .: group"), "changed"),
    ],
    ids=["root's", "another's"],
)
def test_the_volume_becomes_the_users(fault: Callable[[Cluster], None], failed: tuple[str, str], verdict: str) -> None:
    report = rehearse(lambda name, made: fault(made) if name == "upgrade" else None, files=5).report
    (step,) = (entry for entry in report.steps if entry.error)
    assert step.name == failed[0]
    assert failed[1] in step.error
    assert report.verdict == verdict
    assert report.exit_code == 1


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


PREPARING = {"create": 8.0, "fill": 4, "preflight": 8, "stop": 0.2, "manifest before": 1, "power off": 2}
UPGRADING = {"new root disks": 4.0, "configuration": 0.2, "upgrade": 1, "start": 1, "manifest after": 1, "check": 6}
UPGRADING["what changed"] = 4
"""The steps of a rehearsal in their order, and about how many seconds each takes."""


def kill_one(number: signal.Signals, step: str, delay: float, store: Path, why: str, *, boot: bool) -> bool:
    """Kills a rehearsal ``delay`` seconds into a step: nothing but the volume is left, and that is whole.

    It is compared with the manifest that the rehearsal had made, if it came so far; with ``boot`` the old image then
    runs on it. False when the rehearsal had ended before.
    """
    before = [*PREPARING, *UPGRADING]
    before = before[: before.index(step)]
    command = ["env", "--default-signal=INT", KILN, f"--store={store}", "upgrade", "--files=20"]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline()]  # the title
    while before and f"] {before[-1]}: " not in said[-1]:
        said.append(process.stdout.readline())
        assert said[-1], f"{why}: {''.join(said)}"
    time.sleep(delay)
    process.send_signal(number)
    said += process.communicate(timeout=120)[0]
    why = f"{why}: {''.join(said)}"
    assert "Traceback" not in why
    remove_dead()
    assert there() <= BEFORE["rest"], why
    ended = process.returncode == 0
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert ended or process.returncode == codes[number], why
    manifests = sorted(store.glob("rehearsals/*/node1-before.manifest"))
    if step in UPGRADING:
        assert len(manifests) == 1, why
        assert is_whole(manifests[0]), why
        if not volumes():  # they go last, when it has said that nothing is lost
            assert json.loads((manifests[0].parent / "report.json").read_text())["verdict"] == "kept", why
            ended = True
    for volume in volumes():
        if manifests and is_whole(manifests[0]):
            assert unchanged(volume, manifests[0], store / "now.manifest") == [], why
            if boot:
                boot_old(volume)
                assert unchanged(volume, manifests[0], store / "now.manifest") == [], why
        docker("volume", "rm", volume)
    for path in manifests:
        path.unlink()
    return not ended


def is_whole(manifest: Path) -> bool:
    """Whether it was written to its end before the kill."""
    try:
        data_manifest.Manifest(str(manifest))
    except data_manifest.ManifestError:
        return False
    return True


def boot_old(volume: str) -> None:
    """The way back by hand: the old image boots on the volume, and a sample runs."""
    with cluster({}) as made:
        node = made.boot(made.add("deeplearning:1.1-cpu", volume=volume))
        made.publish()
        made.await_configuration(node)
        run_sample(made, node, msgspec.to_builtins(MATRIX.node))


def unchanged(volume: str, before: Path, after: Path) -> list[Any]:
    """What differs on the volume, but for its top folder's owner and group."""
    manifest_of(volume, after)
    found = data_manifest.differences(data_manifest.Manifest(str(before)), data_manifest.Manifest(str(after)))
    return [entry for entry in found if entry[1] != "." or {field for field, _, _ in entry[2]} - GIVEN]


@pytest.fixture
def own_store(tmp_path: Path) -> Path:
    """A store of the test's own, with the baselines of the images."""
    store = tmp_path / "store"
    store.mkdir()
    if (STORE.root / "baselines").is_dir():
        (store / "baselines").symlink_to(STORE.root / "baselines")
    return store


def kill_at_random(times: int, store: Path) -> None:
    """Of five kills one comes in the steps before the upgrade; KILN_SEED takes the seed of a run that failed."""
    seed = os.environ.get("KILN_SEED") or f"{secrets.randbits(32)}"
    kills = late = 0
    while kills < times:
        first, second, third = hashlib.sha256(f"{seed} {kills + late}".encode()).digest()[:3]
        steps = UPGRADING if kills % 5 else PREPARING
        step = list(steps)[first % len(steps)]
        delay = steps[step] * second / 256
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[third % 3]
        why = f"KILN_SEED={seed}, kill {kills + 1}, {number.name} {delay:.2f} s into {step}"
        if kill_one(number, step, delay, store, why, boot=kills % 5 == 1):
            kills += 1
        else:
            late += 1
            assert late < times, f"{why}: the rehearsal had ended, as others before"


@pytest.mark.timeout(1800)
def test_killed_at_a_random_moment_it_loses_nothing(own_store: Path) -> None:
    kill_at_random(5, own_store)


@pytest.mark.long
@pytest.mark.timeout(7200)
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
    assert f"volumes kept: {volume}; docker volume rm removes them" in rest
    assert there() <= BEFORE["rest"]


def preflight(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KILN, "upgrade", *words], cwd=CHECKOUT, check=False, capture_output=True, text=True)


@pytest.fixture
def started() -> Iterator[Callable[[str], str]]:
    names: list[str] = []

    def start(image: str) -> str:
        names.append(f"kiln-test-{os.getpid()}-{len(names)}")
        docker("run", "--detach", f"--name={names[-1]}", f"--volume={DATA}", image, "sleep", "infinity")
        return names[-1]

    yield start
    docker("rm", "--force", "--volumes", *names)


def test_preflight_only_reads_and_exits_3(started: Callable[[str], str]) -> None:
    name = started("deeplearning:1.1-cpu")
    done = preflight(f"--preflight={name}")
    assert (done.returncode, done.stderr) == (0, "")
    docker("exec", f"--user={USER}", name, "sh", "-c", "echo mine > ~/thesis.tex")
    before = docker("diff", name)
    done = preflight(f"--preflight={name}", "--from=1.1", "--image=cpu")
    assert done.returncode == 3
    assert f"{HOME}/thesis.tex" in done.stdout
    assert docker("diff", name) == before
    done = preflight(f"--preflight={name}", "--rescue", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["losses"][0]["name"] == f"{HOME}/thesis.tex"
    place = f"{DATA}/rescued-from-1.1"
    assert f"copied to {place}" in done.stderr
    assert docker("exec", name, "cat", f"{place}{HOME}/thesis.tex") == "mine"


def test_preflight_compares_a_node_with_its_own_image(started: Callable[[str], str]) -> None:
    name = started("deeplearning:1.2-cuda91")
    done = preflight(f"--preflight={name}")
    assert (done.returncode, done.stderr) == (0, "")
    script = f"cd {HOME}; touch -r .bashrc /tmp/r; sed -i 's/^# ~/# -/' .bashrc; touch -r /tmp/r .bashrc"
    docker("exec", name, "bash", "-c", script)
    assert preflight(f"--preflight={name}").returncode == 0
    assert preflight(f"--preflight={name}", "--thorough").returncode == 3
    for words, says in {
        ("--image=cpu",): f"{name} was made from 1.2/cuda91 and not from 1.2/cpu",
        ("--from=1.1",): f"{name} was made from 1.2/cuda91 and not from 1.1/cuda91",
        ("--image=all",): "a node was made from one image",
    }.items():
        done = preflight(f"--preflight={name}", *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert says in done.stderr
    docker("exec", name, "rm", "/etc/deeplearning/release")
    done = preflight(f"--preflight={name}")
    assert done.returncode == 2
    assert "does not say which image it was made from; add --from RELEASE and --image IMAGE" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--preflight="], "--preflight names no node"),
        (["--rescue"], "--rescue needs a node"),
        (["--thorough"], "--thorough needs a node"),
        (["--to=9.9"], "release '9.9' does not exist"),
        (["--to=1.1"], "release 1.1 accepts no upgrade"),
        (["--preflight=nothing"], "there is no container nothing"),
    ],
)
def test_an_order_that_makes_no_sense_begins_nothing(words: list[str], says: str) -> None:
    done = preflight(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr
