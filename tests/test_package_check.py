"""The checker of packages: every defect is found at its place, and nothing makes it fall over."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiln.errors import KilnError
from kiln.package import Packages
from kiln.package_check import check
from kiln.package_command import package
from kiln.package_corners import corners, leaves, rows
from kiln.package_files import read_package
from kiln.package_json import JsonError, parse
from kiln.package_topology import simple_commands
from kiln.project import Project
from kiln.release_ids import ReleaseIds
from tabled import DATA, USER

CHECKOUT = Path(__file__).resolve().parent.parent
FORM, TOPOLOGY = "config.json", "cluster.json.mustache"
ENGLISH, CHINESE = "locale/en.json", "locale/zh-cn.json"


def make_good() -> dict[str, bytes]:
    project = Project(CHECKOUT, CHECKOUT / "none")
    ids = ReleaseIds(CHECKOUT / "images/release-ids.example.yml", CHECKOUT, "1.2", ["1.1"])
    return {path: text.encode() for path, text in Packages(project, ids).make("cuda91-advance").items()}


GOOD = make_good()
SIX_ITEMS = [f"{name}_{gpu}" for gpu in (1, 2) for name in ("GPUUtil", "MemoryUtil", "PowerUsage")]


def edited(name: str, old: str, new: str) -> dict[str, bytes]:
    """The good package with one text replaced, once."""
    text = GOOD[name].decode()
    assert old in text, f"{name} has no {old}"
    return {**GOOD, name: text.replace(old, new, 1).encode()}


def with_form(edit: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """The good package with another form; ``edit`` gets its properties by key."""
    form = json.loads(GOOD[FORM])
    by_key: dict[str, Any] = {"": form}

    def walk(item: dict[str, Any]) -> None:
        for below in item.get("properties", []):
            by_key[below["key"]] = below
            walk(below)

    walk(form)
    edit(by_key)
    return {**GOOD, FORM: json.dumps(form).encode()}


def with_topology(edit: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """The good package with another topology, choices of the form kept."""
    text = re.sub(r"(\{\{[\w.]+\}\})", r'"\1"', GOOD[TOPOLOGY].decode())
    topology = json.loads(text)
    edit(topology)
    return {**GOOD, TOPOLOGY: re.sub(r'"(\{\{[\w.]+\}\})"', r"\1", json.dumps(topology, indent=1)).encode()}


def with_locale(name: str, edit: Callable[[dict[str, Any]], object]) -> dict[str, bytes]:
    locale = json.loads(GOOD[name])
    edit(locale)
    return {**GOOD, name: json.dumps(locale, ensure_ascii=False).encode()}


def without(name: str) -> dict[str, bytes]:
    return {path: content for path, content in GOOD.items() if path != name}


def monitor_items(count: int) -> Callable[[dict[str, Any]], None]:
    def edit(topology: dict[str, Any]) -> None:
        names = [f"Item_{number}" for number in range(count)]
        topology["monitor"] |= {
            "items": {name: {"unit": ""} for name in names},
            "groups": {f"Group_{n}": names[n : n + 5] for n in range(0, count, 5)},
            "display": [],
            "alarm": [],
        }

    return edit


def services(topology: dict[str, Any]) -> dict[str, Any]:
    found = topology["nodes"][0]["services"]
    assert isinstance(found, dict)
    return found


def put(where: Callable[[dict[str, Any]], dict[str, Any]], **values: Any) -> Callable[[dict[str, Any]], None]:
    def edit(data: dict[str, Any]) -> None:
        where(data).update(values)

    return edit


def drop(where: Callable[[dict[str, Any]], dict[str, Any]], key: str) -> Callable[[dict[str, Any]], None]:
    def edit(data: dict[str, Any]) -> None:
        del where(data)[key]

    return edit


def health(topology: dict[str, Any]) -> dict[str, Any]:
    found = topology["health_check"]
    assert isinstance(found, dict)
    return found


def monitor(topology: dict[str, Any]) -> dict[str, Any]:
    found = topology["monitor"]
    assert isinstance(found, dict)
    return found


def itself(data: dict[str, Any]) -> dict[str, Any]:
    return data


def item(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def find(by_key: dict[str, Any]) -> dict[str, Any]:
        found = by_key[key]
        assert isinstance(found, dict)
        return found

    return find


# What is wrong, the package, the file it is found in, and words of the sentence.
DEFECTS: dict[str, tuple[dict[str, bytes], str, str]] = {
    # Files
    "no form": (without(FORM), FORM, "lacks this file"),
    "no topology": (without(TOPOLOGY), TOPOLOGY, "lacks this file"),
    "no Chinese": (without(CHINESE), CHINESE, "lacks this file"),
    "byte-order mark, form": ({**GOOD, FORM: b"\xef\xbb\xbf" + GOOD[FORM]}, FORM, "byte-order mark"),
    "byte-order mark, topology": ({**GOOD, TOPOLOGY: b"\xef\xbb\xbf" + GOOD[TOPOLOGY]}, TOPOLOGY, "byte-order mark"),
    "byte-order mark, locale": ({**GOOD, ENGLISH: b"\xef\xbb\xbf" + GOOD[ENGLISH]}, ENGLISH, "byte-order mark"),
    "UTF-16": ({**GOOD, FORM: GOOD[FORM].decode().encode("utf-16")}, FORM, "byte-order mark"),
    "Latin-1": ({**GOOD, ENGLISH: b'{"CPU": "\xe9"}'}, ENGLISH, "is not UTF-8"),
    "broken JSON": (edited(FORM, '"type": "array",', '"type": "array"'), FORM, "it is not JSON: expected ','"),
    "comment": (edited(FORM, "{", "{ // form"), FORM, "expected a key in double quotes"),
    # The form
    "key twice in the form": (edited(FORM, '"key": "cpu",', '"key": "cpu", "key": "cpu",'), FORM, "stands twice"),
    "property twice": (with_form(put(item("memory"), key="cpu")), FORM, "key cpu stands twice in this group"),
    "unknown type": (with_form(put(item("cpu"), type="int")), FORM, '"int" is none of'),
    "unknown setting": (with_form(put(item("cpu"), defualt=8)), FORM, "no such key"),
    "required is no word": (with_form(put(item("cpu"), required=True)), FORM, "true is none of yes, no"),
    "no default where not required": (with_form(drop(item("QingStor"), "default")), FORM, "needs a default"),
    "default outside the range": (with_form(put(item("cpu"), default=3)), FORM, "3 is not in range"),
    "default of another type": (with_form(put(item("cpu"), default="8")), FORM, '"8" is not of type integer'),
    "default against the pattern": (with_form(put(item("access_key"), default="abc")), FORM, "does not match"),
    "default above max": (with_form(put(item("count"), default=9)), FORM, "9 is above max, 4"),
    "range of another type": (with_form(put(item("gpu"), range=[1, True])), FORM, "true is not of type integer"),
    "min above max": (with_form(put(item("count"), min=5)), FORM, "5 is above max"),
    "broken pattern": (with_form(put(item("access_key"), pattern="[A-Z")), FORM, "no regular expression"),
    "endless pattern": (
        with_form(put(item("access_key"), pattern="^(a+)+$", default="a" * 40 + "!")),
        FORM,
        "takes more than",
    ),
    "volume in odd steps": (with_form(put(item("volume_size"), step=5)), FORM, "5 is no multiple of 10"),
    "volume without steps": (with_form(drop(item("volume_size"), "step")), FORM, "volume's size goes in steps"),
    "volume range": (with_form(put(item("volume_size"), range=[10, 25])), FORM, "no multiple of 10"),
    "no vxnet": (with_form(put(item("vxnet"), key="net")), FORM, "the group cluster lacks vxnet"),
    "unknown group": (with_form(put(item("env"), key="environment")), FORM, '"environment" is none of cluster'),
    "key with a blank": (with_form(put(item("QingStor"), key="Qing Stor")), FORM, "does not have the form"),
    # The topology
    "unquoted text": (edited(TOPOLOGY, '"kvm"', "kvm"), TOPOLOGY, "it is not JSON"),
    "quoted choice": (edited(TOPOLOGY, "{{cluster.name}}", '"{{cluster.name}}"'), TOPOLOGY, "it is not JSON"),
    "JSON only for some choices": (
        edited(TOPOLOGY, '"user_access": true', '"user_access": {{#env.QingStor}}yes{{/env.QingStor}}true'),
        TOPOLOGY,
        "when env.QingStor = true",
    ),
    "choice that the form lacks": (
        edited(TOPOLOGY, "dl_node.cpu", "dl_node.cpus"),
        TOPOLOGY,
        "{{cluster.dl_node.cpus}}",
    ),
    "section without an end": (edited(TOPOLOGY, "{", "{ {{#env}}"), TOPOLOGY, "Mustache"),
    "part of another file": (edited(TOPOLOGY, "{", "{ {{> other}}"), TOPOLOGY, "includes another template"),
    "Temperature_1 twice": (
        edited(TOPOLOGY, '"Temperature_1": {', '"Temperature_1": {"unit": ""}, "Temperature_1": {'),
        TOPOLOGY,
        "monitor.items.Temperature_1: the key stands twice",
    ),
    "no upgrade": (with_topology(drop(services, "upgrade")), TOPOLOGY, "no service upgrade"),
    "no health check": (with_topology(drop(itself, "health_check")), TOPOLOGY, "no health check"),
    "health check off": (with_topology(put(health, enable=False)), TOPOLOGY, "no health check"),
    "health check too often": (with_topology(put(health, interval_sec=59)), TOPOLOGY, "59 is below 60"),
    "health check too short": (with_topology(put(health, timeout_sec=2)), TOPOLOGY, "2 is below 3"),
    "health check too long": (with_topology(put(health, timeout_sec=90)), TOPOLOGY, "longer than interval_sec"),
    "action too short": (with_topology(put(health, action_timeout_sec=1)), TOPOLOGY, "1 is below 3"),
    "threshold": (with_topology(put(health, unhealthy_threshold=1)), TOPOLOGY, "1 is below 2"),
    "timeout too long": (with_topology(put(lambda t: services(t)["stop"], timeout=86401)), TOPOLOGY, "above 86400"),
    "no timeout at all": (with_topology(put(lambda t: services(t)["stop"], timeout=0)), TOPOLOGY, "0 is below 1"),
    "command without a path": (
        with_topology(put(lambda t: services(t)["init"], cmd="init.sh")),
        TOPOLOGY,
        'nodes[0].services.init.cmd: "init.sh" is not a full path',
    ),
    "second command without a path": (
        with_topology(put(lambda t: services(t)["init"], cmd=f"/bin/true && chown {USER} {DATA}")),
        TOPOLOGY,
        '"chown" is not a full path',
    ),
    "monitor command without a path": (
        with_topology(put(monitor, cmd="python /opt/m.py")),
        TOPOLOGY,
        '"python" is not',
    ),
    "health command without a path": (with_topology(put(health, check_cmd="check")), TOPOLOGY, '"check" is not a full'),
    "open quote": (with_topology(put(health, check_cmd="/bin/sh -c 'x")), TOPOLOGY, "no command that a shell takes"),
    "service without a command": (
        with_topology(drop(lambda t: services(t)["start"], "cmd")),
        TOPOLOGY,
        "cmd is missing",
    ),
    "unknown service": (
        with_topology(put(services, reboot={"cmd": "/bin/true"})),
        TOPOLOGY,
        "no service of the platform",
    ),
    "post_start_service elsewhere": (
        with_topology(put(lambda t: services(t)["stop"], post_start_service=True)),
        TOPOLOGY,
        "only init and upgrade may have it",
    ),
    "51 items": (with_topology(monitor_items(51)), TOPOLOGY, "it holds 51, and at most 50 are allowed"),
    "6 items in a group": (
        with_topology(put(lambda t: monitor(t)["groups"], GPU1Usage=SIX_ITEMS)),
        TOPOLOGY,
        "monitor.groups.GPU1Usage: it holds 6, and at most 5",
    ),
    "empty group": (with_topology(put(lambda t: monitor(t)["groups"], GPU1Usage=[])), TOPOLOGY, "at least 1"),
    "item in no group": (
        with_topology(put(lambda t: monitor(t)["groups"], GPU1Usage=["GPUUtil_1"])),
        TOPOLOGY,
        "monitor.items.MemoryUtil_1: the item is in no group",
    ),
    "group of an unknown item": (
        with_topology(put(lambda t: monitor(t)["groups"], GPU1Usage=["GPUUtil_1", "MemoryUtil_1", "GPUUtil_3"])),
        TOPOLOGY,
        'group GPU1Usage names "GPUUtil_3", which is no item',
    ),
    "display of the unknown": (with_topology(put(monitor, display=["GPU3"])), TOPOLOGY, '"GPU3" is no item or group'),
    "alarm of a group": (with_topology(put(monitor, alarm=["GPU1Usage"])), TOPOLOGY, '"GPU1Usage" is no item'),
    "statistics": (
        with_topology(put(lambda t: monitor(t)["items"]["GPUUtil_1"], statistics_type="last")),
        TOPOLOGY,
        '"last" is none of min, max',
    ),
    "statistics of text": (
        with_topology(put(lambda t: monitor(t)["items"]["GPUUtil_1"], value_type="str", statistics_type="avg")),
        TOPOLOGY,
        "avg does not fit the value_type str",
    ),
    "volume fixed at 15": (edited(TOPOLOGY, "{{cluster.dl_node.volume_size}}", "15"), TOPOLOGY, "no multiple of 10"),
    "three CPUs": (edited(TOPOLOGY, "{{cluster.dl_node.cpu}}", "3"), TOPOLOGY, "nodes[0].cpu: 3 is none of 1, 2, 4"),
    "image by name": (edited(TOPOLOGY, "img-00000001", "deeplearning:1.2"), TOPOLOGY, "no image of the platform"),
    "no zone": (edited(TOPOLOGY, '"zone": "pek3a"', '"zone": ""'), TOPOLOGY, "zone is missing"),
    "upgrade from no id": (edited(TOPOLOGY, "appv-00000012", "1.1"), TOPOLOGY, "upgrade_policy[0]"),
    "upgrade twice": (edited(TOPOLOGY, '"appv-00000012"', '"appv-1", "appv-1"'), TOPOLOGY, "appv-1 stands twice"),
    "unknown action": (edited(TOPOLOGY, "scale_horizontal", "scale"), TOPOLOGY, '"scale" is none of'),
    "unknown key": (edited(TOPOLOGY, '"env"', '"envs"'), TOPOLOGY, "envs: the platform knows no such key"),
    "no nodes": (with_topology(put(itself, nodes=[])), TOPOLOGY, "at least 1"),
    # The texts
    "label without Chinese": (
        with_locale(CHINESE, lambda texts: texts.pop("Memory")),
        CHINESE,
        'no translation of "Memory"',
    ),
    "label without English": (
        with_locale(ENGLISH, lambda texts: texts.pop("Memory")),
        ENGLISH,
        'no translation of "Memory"',
    ),
    "item without Chinese": (
        with_locale(CHINESE, lambda texts: texts.pop("GPUUtil_2")),
        CHINESE,
        'translation of "GPUUtil_2"',
    ),
    "group without English": (
        with_locale(ENGLISH, lambda texts: texts.pop("GPU1Power")),
        ENGLISH,
        'translation of "GPU1Power"',
    ),
    "notice missing": (
        with_locale(CHINESE, lambda texts: texts.pop("notice_when_upgrade")),
        CHINESE,
        "notice_when_upgrade",
    ),
    "exit code without Chinese": (with_locale(CHINESE, lambda texts: texts.pop("err_code10")), CHINESE, '"err_code10"'),
    "exit code without a number": (with_locale(CHINESE, lambda texts: texts.update(err_code="x")), CHINESE, "err_code"),
    "empty translation": (with_locale(CHINESE, lambda texts: texts.update(CPU="")), CHINESE, "CPU: it is empty"),
    "translation that is no text": (
        with_locale(CHINESE, lambda texts: texts.update(CPU=1)),
        CHINESE,
        "not of type string",
    ),
    "translation twice": (edited(CHINESE, '"CPU": "CPU"', '"CPU": "CPU", "CPU": "处理器"'), CHINESE, "stands twice"),
}


def test_the_good_package_is_good() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(("files", "file", "words"), DEFECTS.values(), ids=DEFECTS)
def test_defect_is_found(files: dict[str, bytes], file: str, words: str) -> None:
    findings = check(files)
    told = [str(finding) for finding in findings]
    assert [line for line in told if line.startswith(f"{file}:") and words in line], told
    for line in told:
        assert re.match(r"[\w./-]+:[1-9]\d*: ", line)
        assert "\n" not in line


# These let the rules on other defects rest until they are mended.
HIDE_OTHERS = ("no topology", "no form", "no Chinese", "Latin-1", "UTF-16")


@pytest.mark.parametrize(
    ("line", "programs"),
    [
        ("/a >/dev/null 2>&1 &", ["/a"]),
        (">/a /b </c", ["/b"]),
        ("/a 2>>'/b c' || /d", ["/a", "/d"]),
        ("USER=root LANG='a b' /opt/x y", ["/opt/x"]),
        ("A=1", []),
        ("(cd /x && /y)", ["cd", "/y"]),
        ("if /a; then /b -x; else exec /c; fi", ["/a", "/b", "/c"]),
        ("while ! /a; do /b; done", ["/a", "/b"]),
        ("for x in a b; do /c $x; done", ["/c"]),
        ("case $1 in a|b) /c;; *) /d;; esac", ["/c", "/d"]),
        ("f() { /a; }\n/b # c; d", ["/a", "/b"]),
        ("/a $(/b (c) d) `e f` g#h", ["/a"]),
        ("/a ';' \"|\" \\; b", ["/a"]),
        ("/a &&\\\n/b", ["/a", "/b"]),
        ("'/a b' c", ["/a b"]),
    ],
)
def test_programs_are_found_in_a_command_line(line: str, programs: list[str]) -> None:
    assert [words[0] for words in simple_commands(line)] == programs
    told = [str(finding) for finding in check(with_topology(put(lambda t: services(t)["init"], cmd=line)))]
    assert not [one for one in told if "full path" in one]


@given(st.text(alphabet="ab/ ;&|<>()'\"\\`$#=\n{}", max_size=30))
def test_fuzz_of_command_lines(line: str) -> None:
    with contextlib.suppress(ValueError):
        assert all(words for words in simple_commands(line))


def test_a_defect_brings_no_crowd() -> None:
    for name, (files, _, _) in DEFECTS.items():
        if name not in HIDE_OTHERS and name != "51 items":
            assert len(check(files)) <= 6, (name, [str(finding) for finding in check(files)])


def test_the_line_of_a_finding_is_that_of_the_file() -> None:
    lines = GOOD[TOPOLOGY].decode().splitlines()
    number = next(n for n, line in enumerate(lines, 1) if '"healthy_threshold"' in line)
    (finding,) = check(edited(TOPOLOGY, '"healthy_threshold": 2', '"healthy_threshold": 1'))
    assert str(finding) == f"{TOPOLOGY}:{number}: health_check.healthy_threshold: 1 is below 2"


SHIFTS = {
    "nothing": "",
    "a section that is left out": "{{#env.QingStor}}\n\n\n{{/env.QingStor}}",
    "a section in the middle of a line": " {{#env.QingStor}}\n\n {{/env.QingStor}} \n",
    "a section that is kept": "{{^env.QingStor}}\n\n{{/env.QingStor}}\n",
    "a comment of two lines": "{{! one\ntwo }}\n",
    "a tag of two lines": "{{#env.QingStor\n}}\n{{/env.QingStor}}",
    "other delimiters": "{{=<% %>=}}\n<%! none\n%>\n<%={{ }}=%>",
}


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_the_line_of_a_finding_is_that_of_the_template(shift: str) -> None:
    text = GOOD[TOPOLOGY].decode().replace('"health_check"', shift + '"health_check"', 1)
    text = text.replace('"healthy_threshold": 2', '"healthy_threshold": 1')
    wanted = next(n for n, line in enumerate(text.splitlines(), 1) if '"healthy_threshold"' in line)
    assert {finding.line for finding in check({**GOOD, TOPOLOGY: text.encode()})} == {wanted}
    text = text.replace('"healthy_threshold": 1', "healthy_threshold: 1")
    assert {finding.line for finding in check({**GOOD, TOPOLOGY: text.encode()})} == {wanted}


@pytest.mark.parametrize(
    "tag",
    ["{{env.none}}", "{{ & env.none }}", "{{#env.none}}{{/env.none}}", "{{> other}}", "{{#env}}", "{{/env}}"],
)
def test_the_line_of_a_tag_at_fault_is_found(tag: str) -> None:
    text = GOOD[TOPOLOGY].decode().replace('"health_check"', f'{tag} "health_check"', 1)
    (wanted,) = (n for n, line in enumerate(text.splitlines(), 1) if tag in line)
    (finding,) = check({**GOOD, TOPOLOGY: text.encode()})
    assert finding.line == wanted, str(finding)


def test_several_defects_are_found_at_once() -> None:
    files = with_topology(put(health, healthy_threshold=1))
    files = {**files, TOPOLOGY: files[TOPOLOGY].replace(b"/opt/dl/bin/stop", b"stop")}
    assert len(check(files)) == 2


def test_an_older_package_is_told_its_defects() -> None:
    """One as the platform's 1.2 packages were: no upgrade, no health check, an item twice, no texts."""
    topology = json.loads(re.sub(r"(\{\{[\w.]+\}\})", r'"\1"', GOOD[TOPOLOGY].decode()))
    del topology["health_check"]
    node = topology["nodes"][0]
    node["services"] = {"init": {"post_start_service": True, "cmd": f"chown -R {USER}:{USER} {DATA}"}}
    text = re.sub(r'"(\{\{[\w.]+\}\})"', r"\1", json.dumps(topology))
    text = text.replace('"Temperature_1": {', '"Temperature_1": {}, "Temperature_1": {', 1)
    told = "\n".join(map(str, check({FORM: GOOD[FORM], TOPOLOGY: text.encode()})))
    for words in (
        "no service upgrade",
        "no health check",
        "stands twice",
        "not a full path",
        "locale/zh-cn.json:1: the",
    ):
        assert words in told


# The form's corners


def test_every_two_corners_meet() -> None:
    form = json.loads(GOOD[FORM])
    values = {name: corners(item) for name, _, item in leaves(form)}
    seen = list(rows(form))
    assert len(seen) < 100
    for one, found in values.items():
        for other, beside in values.items():
            if one < other:
                for first in found:
                    for second in beside:
                        assert any(row[one] == first and row[other] == second for row in seen), (
                            one,
                            first,
                            other,
                            second,
                        )


def test_corners_hold_each_value_of_a_range_and_both_ends() -> None:
    values = {name: corners(item) for name, _, item in leaves(json.loads(GOOD[FORM]))}
    assert sorted(values["cluster.dl_node.cpu"]) == [4, 8, 12, 16]
    assert sorted(values["cluster.dl_node.volume_size"]) == [10, 20, 1000]
    assert sorted(values["cluster.dl_node.count"]) == [1, 4]
    assert values["env.QingStor"] == [False, True]
    assert "" in values["cluster.name"]
    assert any('"' in text and "\\" in text and "\n" in text for text in values["cluster.name"])


# JSON with places


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_is_read_as_others_read_it(data: Any) -> None:
    for text in (json.dumps(data), json.dumps(data, indent=2, ensure_ascii=False)):
        try:
            wanted = json.loads(text)
        except ValueError:
            continue
        assert parse(text).data == wanted


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("{", 1),
        ('{\n"a" 1}', 2),
        ("[1,\n2,\n]", 3),
        ("1\n2", 2),
        ("NaN", 1),
        ("[" * 200, 1),
        ("1e400", 1),
        ("'a'", 1),
    ],
)
def test_what_is_no_json_has_a_line(text: str, line: int) -> None:
    with pytest.raises(JsonError) as raised:
        parse(text)
    assert raised.value.line == line


# Folders and archives


def as_tar(files: dict[str, bytes], mode: Literal["w", "w:gz", "w:xz"], folder: str = "") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def as_zip(files: dict[str, bytes], folder: str = "") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(folder + name, data)
    return content.getvalue()


ARCHIVES = {
    "tar": as_tar(GOOD, "w"),
    "tar.gz": as_tar(GOOD, "w:gz"),
    "tar.xz": as_tar(GOOD, "w:xz"),
    "tar.gz with a folder": as_tar(GOOD, "w:gz", "app/"),
    "tar.gz with a dot": as_tar(GOOD, "w:gz", "./"),
    "zip": as_zip(GOOD),
    "zip with a folder": as_zip(GOOD, "app/"),
}


@pytest.mark.parametrize("content", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_are_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "package"
    path.write_bytes(content)
    assert read_package(path) == GOOD


def test_folders_are_read(tmp_path: Path) -> None:
    for name, data in GOOD.items():
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / name).write_bytes(data)
    assert read_package(tmp_path / "app") == GOOD
    assert read_package(tmp_path) == GOOD


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no archive"),
        (b"hello", "is no archive"),
        (ARCHIVES["tar.gz"][:700], "is no archive"),
        (ARCHIVES["zip"][:-60], "is no archive"),
        (as_tar({"config.json": bytes(5_000_000)}, "w:gz"), "holds more than"),
        (as_zip({"config.json": bytes(5_000_000)}), "holds more than"),
        (bytes(5_000_000), "is larger than"),
        (as_tar({f"{n}": b"" for n in range(1100)}, "w:gz"), "holds more than"),
    ],
)
def test_what_is_no_package_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "package"
    path.write_bytes(content)
    with pytest.raises(KilnError, match=words):
        read_package(path)


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(KilnError, match="is neither a folder nor a file"):
            read_package(path)


def test_command_tells_findings_and_exits_with_1(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(as_zip({**GOOD, TOPOLOGY: GOOD[TOPOLOGY].replace(b'"interval_sec": 60', b'"interval_sec": 59')}))
    result = CliRunner().invoke(package, ["--check", str(path)])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == f"{path}: 1 findings"


# Nothing makes it fall over

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
EASY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def tell(files: dict[str, bytes]) -> None:
    """Checks the files; every sentence fits one line of any terminal."""
    for finding in check(files):
        line = str(finding)
        assert line.isprintable()
        line.encode()


@EASY
@given(
    st.dictionaries(
        st.sampled_from(sorted(GOOD)), st.binary(max_size=200) | JSON.map(lambda data: json.dumps(data).encode())
    )
)
def test_fuzz_of_anything(files: dict[str, bytes]) -> None:
    tell(files)
    tell({**GOOD, **files})


@EASY
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_fuzz_of_mangled_files(name: str, data: st.DataObject) -> None:
    broken = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(broken)))
        broken[begin : begin + data.draw(st.integers(0, 100))] = data.draw(st.binary(max_size=12))
    tell({**GOOD, name: bytes(broken)})


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every value inside ``data``, as its holder and its key there."""
    found: list[tuple[Any, Any]] = []
    keys = data.keys() if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        found += [(data, key), *places(data[key])]
    return found


@EASY
@given(st.data(), JSON)
def test_fuzz_of_forms(data: st.DataObject, value: Any) -> None:
    form = json.loads(GOOD[FORM])
    holder, key = data.draw(st.sampled_from(places(form)))
    holder[key] = value
    tell({**GOOD, FORM: json.dumps(form).encode()})


@EASY
@given(st.data(), JSON)
def test_fuzz_of_topologies(data: st.DataObject, value: Any) -> None:
    def edit(topology: dict[str, Any]) -> None:
        holder, key = data.draw(st.sampled_from(places(topology)))
        holder[key] = value

    tell(with_topology(edit))


@EASY
@given(st.text(alphabet='{}#/^&=>!. "cluster.nameenv\n', max_size=60))
def test_fuzz_of_templates(text: str) -> None:
    tell({**GOOD, TOPOLOGY: text.encode()})
    tell({**GOOD, TOPOLOGY: GOOD[TOPOLOGY] + text.encode()})


@EASY
@given(st.sampled_from(sorted(ARCHIVES)), st.data())
def test_fuzz_of_archives(tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject) -> None:
    broken = bytearray(ARCHIVES[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(broken)))
        broken[begin : begin + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=12))
    path = tmp_path_factory.mktemp("fuzz") / "package"
    path.write_bytes(bytes(broken))
    with contextlib.suppress(KilnError):
        tell(read_package(path))


# The image


@pytest.mark.engine
def test_commands_that_the_image_lacks_are_found(tmp_path: Path) -> None:
    files = with_topology(
        lambda topology: topology["nodes"][0].update(
            services={
                "init": {"cmd": f"/bin/ls {DATA}"},
                "start": {"cmd": "/opt/dl/bin/no-such-command; /bin/true"},
                "stop": {"cmd": "/etc/passwd"},
                "upgrade": {"cmd": "/bin/sh /opt/no-such-script"},
            }
        )
    )
    path = tmp_path / "package.zip"
    path.write_bytes(as_zip(files))
    image = "deeplearning:1.2-cpu"
    result = CliRunner().invoke(package, ["--check", str(path), "--image", image])
    lines = [line for line in result.output.splitlines() if "services" in line]
    assert result.exit_code == 1
    assert [line.partition(": ")[2] for line in lines] == [
        f"nodes[0].services.start.cmd: /opt/dl/bin/no-such-command does not exist in {image}, or cannot be run",
        f"nodes[0].services.stop.cmd: /etc/passwd does not exist in {image}, or cannot be run",
        f"nodes[0].services.upgrade.cmd: /opt/no-such-script does not exist in {image}, or cannot be run",
    ]


@pytest.mark.engine
def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "package.zip"
    path.write_bytes(ARCHIVES["zip"])
    result = CliRunner().invoke(package, ["--check", str(path), "--image", "deeplearning:9.9-none"])
    assert isinstance(result.exception, KilnError)
    assert "there is no image deeplearning:9.9-none" in str(result.exception)
