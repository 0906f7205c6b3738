"""The packages of a release, as the tables and the release-ids file make them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from kiln.errors import KilnError
from kiln.package import Files, Packages, archive
from kiln.package_check import check
from kiln.package_command import package
from kiln.package_corners import rows
from kiln.package_template import Template
from kiln.project import Project
from kiln.release_ids import ReleaseIds
from tabled import DATA, GPU_MONITOR, PASSWORD

NAMES = ("cuda91-basic", "cuda91-advance", "cuda80-basic", "cuda80-advance", "cpu")
GPU_NAMES = NAMES[:4]
CHECKOUT = Path(__file__).resolve().parent.parent


def packages_of(project: Project, release: str = "1.2", upgrades_from: tuple[str, ...] = ("1.1",)) -> Packages:
    ids = project.images / "release-ids.example.yml"
    return Packages(project, ReleaseIds(ids, project.root, release, upgrades_from))


@pytest.fixture(scope="module")
def made() -> dict[str, Files]:
    """This checkout's packages with the example's ids."""
    packages = packages_of(Project(CHECKOUT, CHECKOUT / "none"))
    return {name: packages.make(name) for name in packages.appcenter.packages}


def form_of(files: Files) -> dict[str, dict[str, Any]]:
    """The properties of a node by key."""
    cluster = json.loads(files["config.json"])["properties"][0]
    (node,) = (item for item in cluster["properties"] if item["key"] == "dl_node")
    return {item["key"]: item for item in node["properties"]}


def topology_of(files: Files, **choices: Any) -> dict[str, Any]:
    """The topology for the form's defaults, but for ``choices`` of a node."""
    plain = next(rows(json.loads(files["config.json"])))
    plain |= {f"cluster.dl_node.{key}": value for key, value in choices.items()}
    topology = json.loads(Template(files["cluster.json.mustache"]).render(plain))
    assert isinstance(topology, dict)
    return topology


def run(project: Project, *arguments: str) -> Result:
    return CliRunner().invoke(package, arguments, obj=lambda: project)


def test_there_are_five(made: dict[str, Files]) -> None:
    assert tuple(made) == NAMES
    wanted = {"config.json", "cluster.json.mustache", "locale/en.json", "locale/zh-cn.json"}
    assert all(files.keys() == wanted for files in made.values())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_them(made: dict[str, Files], name: str) -> None:
    assert check({path: text.encode() for path, text in made[name].items()}) == []


ADVANCE = ([4, 8, 12, 16], 8, [1, 2], [32768, 49152, 65536], 32768)


@pytest.mark.parametrize(
    ("name", "cpu", "cpu_default", "gpu", "memory", "memory_default"),
    [
        *((f"{cuda}-basic", [1, 2, 4], 1, [1], [2048, 4096, 8192, 16384], 2048) for cuda in ("cuda91", "cuda80")),
        *((f"{cuda}-advance", *ADVANCE) for cuda in ("cuda91", "cuda80")),
        ("cpu", [2, 4, 8, 12, 16], 2, None, [4096, 8192, 16384, 32768, 65536], 4096),
    ],
)
def test_ranges_of_the_form(
    made: dict[str, Files],
    name: str,
    cpu: list[int],
    cpu_default: int,
    gpu: list[int] | None,
    memory: list[int],
    memory_default: int,
) -> None:
    form = form_of(made[name])
    assert (form["cpu"]["range"], form["cpu"]["default"]) == (cpu, cpu_default)
    assert (form["memory"]["range"], form["memory"]["default"]) == (memory, memory_default)
    assert form.get("gpu", {}).get("range") == gpu
    assert ("gpu_class" in form) == (gpu is not None)
    assert (form["instance_class"]["range"], form["instance_class"]["default"]) == ([0, 1], 1)
    assert (form["count"]["min"], form["count"]["max"]) == (1, 4)
    volume = form["volume_size"]
    assert (volume["min"], volume["max"], volume["step"], volume["default"]) == (10, 1000, 10, 10)


def test_environment_of_the_form(made: dict[str, Files]) -> None:
    for files in made.values():
        env = {item["key"]: item for item in json.loads(files["config.json"])["properties"][1]["properties"]}
        assert list(env) == ["QingStor", "access_key", "secret_key"]
        assert (env["QingStor"]["type"], env["QingStor"]["default"]) == ("boolean", False)
        for key, good in (("access_key", "A" * 20), ("secret_key", "aB3" * 13 + "x")):
            pattern = env[key]["pattern"]
            assert re.search(pattern, good)
            assert re.search(pattern, "")
            assert not re.search(pattern, good[:-1])
            assert not re.search(pattern, good + "A")
        assert not re.search(env["access_key"]["pattern"], "a" * 20)


@pytest.mark.parametrize("name", NAMES)
def test_topology(made: dict[str, Files], name: str) -> None:
    topology = topology_of(made[name], count=3, volume_size=500)
    (node,) = topology["nodes"]
    image = name.partition("-")[0]
    ids = yaml.safe_load((CHECKOUT / "images/release-ids.example.yml").read_text(encoding="utf-8"))
    assert node["container"] == {
        "type": "kvm",
        "image": ids["images"][image]["id"],
        "zone": ids["images"][image]["zone"],
    }
    assert (node["count"], node["volume"]) == (3, {"size": 500, "mount_point": DATA})
    assert node["user_access"] is True
    assert "role" not in node, "release 1.1 had no role, and an upgrade wants the same roles"
    assert node["services"].keys() == {"init", "start", "stop", "upgrade"}
    assert node["services"]["init"]["post_start_service"] is True
    assert not node["services"]["upgrade"].get("post_start_service")
    assert topology["advanced_actions"] == ["change_vxnet", "scale_horizontal"]
    assert topology["upgrade_policy"] == ids["upgrades_from"]["1.1"][name]
    assert topology["env"] == {"QingStor": False, "access_key": "", "secret_key": ""}
    assert topology["health_check"]["enable"] is True
    assert ("monitor" in topology) == ("gpu" in node) == ("gpu_class" in node) == (name != "cpu")


def test_both_cpu_packages_of_1_1_have_a_way_up(made: dict[str, Files]) -> None:
    assert topology_of(made["cpu"])["upgrade_policy"] == ["appv-00000015", "appv-00000016"]


@pytest.mark.parametrize("name", GPU_NAMES)
def test_monitor(made: dict[str, Files], name: str) -> None:
    monitor = topology_of(made[name])["monitor"]
    assert monitor["cmd"] == f"/usr/bin/python {GPU_MONITOR}"
    assert len(monitor["items"]) == 14
    assert {item["statistics_type"] for item in monitor["items"].values()} == {"latest"}
    assert {item["value_type"] for item in monitor["items"].values()} == {"int"}
    chinese = json.loads(made[name]["locale/zh-cn.json"])
    groups = {chinese[group]: items for group, items in monitor["groups"].items()}
    for gpu in (1, 2):
        assert groups[f"GPU-{gpu} 使用率"] == [f"GPUUtil_{gpu}", f"MemoryUtil_{gpu}"]
        assert groups[f"GPU-{gpu} 显存"] == [f"MemoryTotal_{gpu}", f"MemoryUsed_{gpu}"]
    assert monitor["items"].keys() == {item for items in groups.values() for item in items}


def test_users_are_told_what_an_upgrade_keeps(made: dict[str, Files]) -> None:
    for files in made.values():
        assert f"Only the files in {DATA} are kept" in json.loads(files["locale/en.json"])["notice_when_upgrade"]
        assert f"仅 {DATA} 目录下的文件能够保留" in json.loads(files["locale/zh-cn.json"])["notice_when_upgrade"]


def test_every_exit_code_of_the_node_has_a_text(made: dict[str, Files]) -> None:
    lifecycle = (CHECKOUT / "roles/appcenter/files/root/opt/dl/lib/lifecycle").read_text(encoding="utf-8")
    (line,) = re.findall("^readonly (.*=[0-9].*)$", lifecycle, re.MULTILINE)
    codes = {f"err_code{code}" for code in re.findall(r"=(\d+)", line)}
    assert codes
    # Of the commands that the commands run.
    codes.add("err_code1")
    for language in ("en", "zh-cn"):
        texts = json.loads(made["cpu"][f"locale/{language}.json"])
        assert {key for key in texts if key.startswith("err_code")} == codes


def test_the_roles_install_what_the_packages_run(made: dict[str, Files]) -> None:
    topology = topology_of(made["cuda91-advance"])
    wanted = {service["cmd"] for service in topology["nodes"][0]["services"].values()}
    wanted |= {topology["health_check"]["check_cmd"], topology["health_check"]["action_cmd"]}
    bin_folder = CHECKOUT / "roles/appcenter/files/root/opt/dl/bin"
    assert {f"/opt/dl/bin/{path.name}" for path in bin_folder.iterdir()} >= wanted
    node = yaml.safe_load((CHECKOUT / "images/node.yml").read_text(encoding="utf-8"))
    assert topology["monitor"]["cmd"].split()[1] == node["paths"]["gpu_monitor"]


def test_no_secret_and_no_byte_order_mark(made: dict[str, Files]) -> None:
    for files in made.values():
        for text in files.values():
            assert not text.startswith("\ufeff")
            assert PASSWORD not in text


def test_a_release_without_forerunners_has_no_upgrade_policy(project: Project) -> None:
    ids = project.images / "release-ids.example.yml"
    ids.write_text(ids.read_text(encoding="utf-8").replace('release: "1.2"', 'release: "1.1"'), encoding="utf-8")
    topology = topology_of(packages_of(project, "1.1", ()).make("cpu"))
    assert "upgrade_policy" not in topology
    assert "services" not in topology["nodes"][0], "release 1.1's package had none"


def test_a_service_that_no_table_has_is_refused(project: Project) -> None:
    release = project.images / "releases/1.2.yml"
    release.write_text(release.read_text(encoding="utf-8").replace("services: [init,", "services: [initialise,"))
    with pytest.raises(KilnError, match="service initialise is not in") as caught:
        packages_of(project)
    assert caught.value.where.startswith("images/releases/1.2.yml:")
    assert "init, start, stop, upgrade" in caught.value.fix


def test_the_archive_depends_on_nothing_but_its_content(made: dict[str, Files]) -> None:
    content = archive(made["cpu"])
    assert content == archive(dict(reversed(made["cpu"].items())))
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == sorted(made["cpu"])
        assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}
        stream = tar.extractfile("locale/zh-cn.json")
        assert stream is not None
        assert stream.read().decode() == made["cpu"]["locale/zh-cn.json"]
    assert content[4:8] == b"\0\0\0\0", "gzip's time"


def test_command_writes_the_archives(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    arguments = ("--release", "1.2", "--ids", str(project.images / "release-ids.example.yml"), "--out", str(out))
    result = run(project, *arguments)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == sorted(f"deeplearning-1.2-{name}.tar.gz" for name in NAMES)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(project, *arguments).exit_code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    for path in out.iterdir():
        checked = run(project, "--check", str(path))
        assert checked.exit_code == 0
        assert checked.output.endswith("nothing found\n")
    # Another reader than Python's.
    listed = subprocess.run(["tar", "-tzf", out / "deeplearning-1.2-cpu.tar.gz"], capture_output=True, check=True)
    assert listed.stdout.split() == [b"cluster.json.mustache", b"config.json", b"locale/en.json", b"locale/zh-cn.json"]


def test_command_writes_nothing_when_something_is_wrong(project: Project, tmp_path: Path) -> None:
    table = project.images / "appcenter.yml"
    table.write_text(
        table.read_text(encoding="utf-8").replace("interval_sec: 60", "interval_sec: 30"), encoding="utf-8"
    )
    out = tmp_path / "dist"
    result = run(project, "--ids", str(project.images / "release-ids.example.yml"), "--out", str(out))
    assert result.exit_code == 1
    assert "health_check.interval_sec: 30 is below 60" in result.output
    assert not out.exists()


Edit = Callable[[dict[str, Any]], None]


def drop(*keys: str) -> Edit:
    def edit(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return edit


def put(value: Any, *keys: Any) -> Edit:
    def edit(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return edit


WRONG_IDS: dict[str, tuple[Edit, str]] = {
    "no image": (drop("images", "cuda80"), "images.cuda80.id is missing"),
    "no images": (drop("images"), "images.cuda91.id is missing"),
    "no image id": (drop("images", "cpu", "id"), "images.cpu.id is missing"),
    "empty image id": (put(None, "images", "cpu", "id"), "images.cpu.id is missing"),
    "no zone": (drop("images", "cuda91", "zone"), "images.cuda91.zone is missing"),
    "no app versions": (drop("upgrades_from"), 'upgrades_from."1.1".cuda91-basic is missing'),
    "no app versions of a release": (drop("upgrades_from", "1.1"), 'upgrades_from."1.1".cuda91-basic is missing'),
    "no app version": (drop("upgrades_from", "1.1", "cpu"), 'upgrades_from."1.1".cpu is missing'),
    "app version, no list": (put("appv-00000000", "upgrades_from", "1.1", "cpu"), "must be a list"),
    "no such image id": (put("ami-00000001", "images", "cpu", "id"), "images.cpu.id is 'ami-00000001'"),
    "no such zone": (put(3, "images", "cpu", "zone"), "images.cpu.zone is 3"),
    "no such app version": (put("1.1", "upgrades_from", "1.1", "cpu", 0), "cpu.0 is '1.1'"),
    "same image id": (put("img-00000001", "images", "cpu", "id"), "have the same id img-00000001"),
    "other release": (put("1.3", "release"), "the ids are those of release '1.3', not of '1.2'"),
    "release as a number": (put(1.2, "release"), "a string, in quotes"),
    "no release": (drop("release"), "release is missing"),
    "unknown key": (put([], "imagse"), "unknown key imagse"),
}


@pytest.mark.parametrize(("edit", "words"), WRONG_IDS.values(), ids=WRONG_IDS)
def test_wrong_ids_are_named(project: Project, tmp_path: Path, edit: Edit, words: str) -> None:
    ids = tmp_path / "ids.yml"
    data = yaml.safe_load((project.images / "release-ids.example.yml").read_text(encoding="utf-8"))
    edit(data)
    ids.write_text(yaml.safe_dump(data), encoding="utf-8")
    result = run(project, "--release", "1.2", "--ids", str(ids), "--out", str(tmp_path / "dist"))
    assert isinstance(result.exception, KilnError)
    said = str(result.exception)
    assert re.match(rf"{re.escape(str(ids))}:\d+: ", said)
    assert words in said
    assert result.exception.fix
    assert "\n" not in said
    assert not (tmp_path / "dist").exists()


def test_a_package_may_follow_on_none(project: Project) -> None:
    ids = project.images / "release-ids.example.yml"
    text = ids.read_text(encoding="utf-8").replace("cuda91-basic: [appv-00000011]", "cuda91-basic: []")
    ids.write_text(text, encoding="utf-8")
    assert "upgrade_policy" not in topology_of(packages_of(project).make("cuda91-basic"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no release-ids file"),
        (("--ids", "none.yml"), "none.yml does not exist"),
        (("--release", "9.9", "--ids", "none.yml"), "9.9"),
        (("--check", "here", "--release", "1.2"), "--check goes with --image only"),
        (("--check", "here", "--out", "there"), "--check goes with --image only"),
        (("--image", "x"), "--image goes with --check only"),
        (("--check", "/nowhere"), "/nowhere: cannot be read"),
    ],
)
def test_command_that_cannot_run(project: Project, arguments: tuple[str, ...], words: str) -> None:
    result = run(project, *arguments)
    assert isinstance(result.exception, KilnError)
    assert words in str(result.exception)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{en: CPU, zh-cn: CPU}", "{en: CPU}", "'CPU' has no text in zh-cn"),
        ("{en: Memory, zh-cn: 内存}", "{en: CPU, zh-cn: 内存}", "'CPU' has two texts in zh-cn"),
        (
            "cpu: {default: 2, range: [2, 4, 8, 12, 16]}",
            "cpus: {default: 2}",
            "cpus, which the form of a node",
        ),
    ],
)
def test_wrong_table_is_named(project: Project, old: str, new: str, words: str) -> None:
    table = project.images / "appcenter.yml"
    text = table.read_text(encoding="utf-8")
    assert old in text
    table.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(KilnError, match=re.escape(words)):
        packages_of(project).make("cpu")
