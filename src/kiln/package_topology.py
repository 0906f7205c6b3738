"""The topology of a package: what its shape does not show to be wrong, its commands, and the names that a user sees."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kiln.package_finding import shown
from kiln.package_json import Path
from kiln.package_schema import SYSTEM_SERVICES, TEXT_STATISTICS

Faults = Iterator[tuple[Path, str]]
"""A place, and a sentence."""

# Of a shell's command line, as far as it decides where programs stand.
_TOKEN = re.compile(
    r"""
    (?:[ \t\r]|\\\n)+ | (?<![^\s;&|()])\#[^\n]*
    | (?P<redirection>[0-9]*(?:<<<|<<-?|<>|[<>]&|&>>?|>>|>\||[<>]))
    | (?P<sign>&&|\|\||;;|[;&|()\n])
    | (?P<word>(?:
        [^\s;&|<>()'"\\`$] | \\. | '[^']*' | "(?:[^"\\]|\\.)*" | `[^`]*`
        | \$\((?:[^()]|\([^()]*\))*\) | \$
      )+)
    """,
    re.VERBOSE | re.DOTALL,
)
_BEFORE_PROGRAM = {*("if", "then", "elif", "else", "fi", "while", "until", "do", "done", "esac", "{", "}", "!"), "exec"}
_BUILTINS = {
    *(".", ":", "[", "[[", "alias", "break", "cd", "command", "continue", "echo", "eval", "exit", "export", "false"),
    *("kill", "local", "printf", "pwd", "read", "readonly", "return", "set", "shift", "source", "test", "trap", "true"),
    *("type", "ulimit", "umask", "unset", "wait"),
}
"""What a shell runs by itself, wherever programs lie."""


@dataclass(frozen=True)
class Command:
    """A program that the platform is told to run on a node."""

    path: Path
    program: str
    script: str
    """What the program is told to run, where it is an interpreter; else empty."""


def topology_faults(topology: dict[str, Any]) -> Faults:
    """What is wrong with a topology of the right shape."""
    nodes = topology["nodes"]
    yield from _health_faults(topology)
    for place, part in _parts(topology):
        if "monitor" in part:
            yield from _monitor_faults((*place, "monitor"), part["monitor"])
    for index, node in enumerate(nodes):
        if len(nodes) > 1 and "role" not in node:
            yield ("nodes", index), "role is missing, and there is more than one kind of node"
        yield from _node_faults(("nodes", index), node)
    if topology.get("upgrade_policy"):
        yield from _upgrade_faults(topology)
    for path, line in command_lines(topology):
        yield from _command_faults(path, line)


def _parts(topology: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The cluster and each kind of node: both may have a monitor and a health check."""
    yield (), topology
    for index, node in enumerate(topology["nodes"]):
        yield ("nodes", index), node


def _node_faults(place: Path, node: dict[str, Any]) -> Faults:
    container = node["container"]
    if container["type"] == "kvm":
        if not re.fullmatch(r"img-[a-z0-9]+", container["image"]):
            yield (*place, "container", "image"), f"{shown(container['image'])} is no image of the platform (img-…)"
        if not container.get("zone"):
            yield (*place, "container"), "zone is missing, and a kvm image stands in one zone"
    for name, service in node.get("services", {}).items():
        path = (*place, "services", name)
        if name not in SYSTEM_SERVICES and service.get("type") != "custom":
            yield path, "it is no service of the platform, and its type is not custom"
        if "cmd" not in service and name not in ("backup", "restore", "delete_snapshot"):
            yield path, "cmd is missing"
        for key, services in (
            ("post_start_service", ("init", "upgrade")),
            ("post_stop_service", ("destroy",)),
            ("pre_check", ("scale_in", "scale_out", "upgrade")),
        ):
            if key in service and name not in services:
                yield (*path, key), f"only {' and '.join(services)} may have it"


def _health_faults(topology: dict[str, Any]) -> Faults:
    checks = [(place, part["health_check"]) for place, part in _parts(topology) if "health_check" in part]
    if not any(check.get("enable") and check.get("check_cmd") for _, check in checks):
        yield ("health_check",), "there is no health check that is enabled and has a check_cmd"
    for place, check in checks:
        if check.get("timeout_sec", 10) > check.get("interval_sec", 60):
            yield (*place, "health_check", "timeout_sec"), "it is longer than interval_sec"


def _upgrade_faults(topology: dict[str, Any]) -> Faults:
    for index, node in enumerate(topology["nodes"]):
        if "upgrade" not in node.get("services", {}):
            said = "there is an upgrade_policy, but no service upgrade, and init does not run on an upgrade"
            yield ("nodes", index, "services"), said
    versions = topology["upgrade_policy"]
    for index, version in enumerate(versions):
        if version in versions[:index]:
            yield ("upgrade_policy", index), f"{version} stands twice"


def _monitor_faults(path: Path, monitor: dict[str, Any]) -> Faults:
    items, groups = monitor.get("items", {}), monitor.get("groups", {})
    display = monitor.get("display", [])
    if monitor.get("enable") and not monitor.get("cmd"):
        yield path, "cmd is missing"
    grouped = {name for group in groups.values() for name in group}
    for name, item in items.items():
        if name not in grouped and name not in display:
            yield (*path, "items", name), "the item is in no group and not in display, so nobody sees it"
        statistics = item.get("statistics_type", "latest")
        if item.get("value_type") == "str" and statistics not in TEXT_STATISTICS:
            said = f"{statistics} does not fit the value_type str, only {' and '.join(TEXT_STATISTICS)} do"
            yield (*path, "items", name, "statistics_type"), said
    for group, names in groups.items():
        for index, name in enumerate(names):
            place = (*path, "groups", group, index)
            if name not in items:
                yield place, f"group {group} names {shown(name)}, which is no item"
            elif name in names[:index]:
                yield place, f"group {group} names {shown(name)} twice"
    for key, known, what in (("display", {*items, *groups}, "item or group"), ("alarm", {*items}, "item")):
        for index, name in enumerate(monitor.get(key, [])):
            if name not in known:
                yield (*path, key, index), f"{shown(name)} is no {what}"


def _command_faults(path: Path, line: str) -> Faults:
    try:
        found = list(simple_commands(line))
    except ValueError as error:
        yield path, f"{shown(line)} is no command that a shell takes ({error})"
        return
    if not found:
        yield path, "the command is empty"
    for words in found:
        if not words[0].startswith("/") and words[0] not in _BUILTINS:
            yield path, f"{shown(words[0])} is not a full path, and the node's environment is not seen"


def commands(topology: dict[str, Any]) -> Iterator[Command]:
    """Every program that a topology without faults names by its full path."""
    for path, line in command_lines(topology):
        try:
            found = list(simple_commands(line))
        except ValueError:
            continue
        for words in found:
            if words[0].startswith("/"):
                script = words[1] if len(words) > 1 and _is_interpreter(words[0]) and words[1][:1] == "/" else ""
                yield Command(path, words[0], script)


def command_lines(topology: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every command line and its place."""
    places: list[tuple[Path, dict[str, Any]]] = [((), topology)]
    for index, node in enumerate(topology["nodes"]):
        places.append((("nodes", index), node))
        for name, service in node.get("services", {}).items():
            for key in ("cmd", "pre_check"):
                if key in service:
                    yield ("nodes", index, "services", name, key), service[key]
        if "custom_metadata" in node:
            yield ("nodes", index, "custom_metadata", "cmd"), node["custom_metadata"]["cmd"]
    for place, part in places:
        for key in ("check_cmd", "action_cmd"):
            if key in part.get("health_check", {}):
                yield (*place, "health_check", key), part["health_check"][key]
        if "cmd" in part.get("monitor", {}):
            yield (*place, "monitor", "cmd"), part["monitor"]["cmd"]
    for name, tab in topology.get("display_tabs", {}).items():
        yield ("display_tabs", name, "cmd"), tab["cmd"]


def simple_commands(command: str) -> Iterator[list[str]]:
    """The simple commands of a command line, each as its words, the program first.

    Redirections, assignments before a program and the shell's own words around it are left out.
    """
    words: list[str] = []
    depth, place = 0, 0
    skips_word = False
    while place < len(command):
        found = _TOKEN.match(command, place)
        if found is None:
            raise ValueError("No closing quotation")
        place = found.end()
        word, sign = found["word"], found["sign"]
        if word and skips_word:
            skips_word = False
        elif word:
            words.append(word)
        elif found["redirection"]:
            skips_word = True
        elif sign:
            # A bracket that nothing opened ends a pattern of case; one behind a word, a function's name.
            is_pattern = sign == ")" and depth == 0
            depth += (sign == "(") - (sign == ")" and depth > 0)
            if (program := _program(words)) and not is_pattern and sign != "(":
                yield program
            words = []
    if program := _program(words):
        yield program


def _program(words: list[str]) -> list[str]:
    """The words from the program's on, unquoted; none where the shell runs no program."""
    for index, word in enumerate(words):
        if word in ("for", "case", "select", "function"):
            break
        if word not in _BEFORE_PROGRAM and not re.match(r"[A-Za-z_]\w*\+?=", word):
            return [" ".join(shlex.split(one)) for one in words[index:]]
    return []


def _is_interpreter(program: str) -> bool:
    return re.fullmatch(r"(?:python[0-9.]*|perl|ruby|(?:ba|da|z)?sh)", program.rpartition("/")[2]) is not None


def topology_texts(topology: Any) -> dict[str, str]:
    """The names in a topology that a user sees."""
    found: dict[str, str] = {}
    if not isinstance(topology, dict):
        return found
    if topology.get("upgrade_policy"):
        found["notice_when_upgrade"] = "which a user reads before an upgrade"
    nodes = topology.get("nodes")
    parts = [topology, *(nodes if isinstance(nodes, list) else [])]
    for part in parts:
        monitor = part.get("monitor") if isinstance(part, dict) else None
        for kind in ("items", "groups"):
            held = monitor.get(kind) if isinstance(monitor, dict) else None
            found |= dict.fromkeys(held if isinstance(held, dict) else {}, f"one of the monitor's {kind}")
        services = part.get("services") if isinstance(part, dict) else None
        for name, service in (services if isinstance(services, dict) else {}).items():
            if isinstance(service, dict) and service.get("type") == "custom":
                found[name] = "a custom service"
    return found
