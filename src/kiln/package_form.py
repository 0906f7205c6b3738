"""The form of a package: what its shape alone does not show to be wrong, and the texts that a user sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kiln.package_corners import GROUPS, MATCH_S, default, is_slow, leaves, matches
from kiln.package_finding import shown
from kiln.package_json import Path

_MEANT: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "string": (str,),
    "password": (str,),
}


def form_faults(form: Any) -> Iterator[tuple[Path, str]]:
    """What is wrong with a form of the right shape: a place, and a sentence."""
    yield from _top_faults(form)
    for place, group in _groups(form, ()):
        keys: set[str] = set()
        for index, item in enumerate(group.get("properties", [])):
            if item["key"] in keys:
                yield (*place, "properties", index, "key"), f"key {item['key']} stands twice in this group"
            keys.add(item["key"])
    for name, path, item in leaves(form):
        for key, said in _property_faults(name, item):
            yield (*path, key), said


def _top_faults(form: Any) -> Iterator[tuple[Path, str]]:
    held: dict[str, set[str]] = {}
    for index, item in enumerate(form["properties"]):
        held[item["key"]] = {below["key"] for below in item.get("properties", [])}
        if item["key"] not in GROUPS:
            yield ("properties", index, "key"), f"{shown(item['key'])} is none of {', '.join(GROUPS)}"
    if "cluster" not in held:
        yield ("properties",), "the group cluster is missing"
        return
    for key in ("name", "description", "vxnet"):
        if key not in held["cluster"]:
            yield ("properties",), f"the group cluster lacks {key}"


def _groups(item: dict[str, Any], place: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The form and its groups at every depth."""
    yield place, item
    for index, below in enumerate(item.get("properties", [])):
        if below.get("type") == "array":
            yield from _groups(below, (*place, "properties", index))


def _fits(kind: str, value: Any) -> bool:
    types = _MEANT.get(kind)
    return types is None or (isinstance(value, types) and (kind == "boolean" or not isinstance(value, bool)))


def _property_faults(name: str, item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with one property of the form: its key at fault, and a sentence."""
    kind = item["type"]
    if item.get("required") == "no" and "default" not in item:
        yield "default", f"{name} is not required, so it needs a default"
    least, most = item.get("min"), item.get("max")
    if least is not None and most is not None and least > most:
        yield "min", f"{least} is above max, {most}"
    for value in item.get("range", []):
        if not _fits(kind, value):
            yield "range", f"{shown(value)} is not of type {kind}"
    pattern = item.get("pattern")
    if pattern is not None:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            yield "pattern", f"{shown(pattern)} is no regular expression ({error})"
    if "default" in item:
        yield from _default_faults(kind, item)
    if name.rpartition(".")[2] == "volume_size":
        yield from _volume_faults(item)


def _default_faults(kind: str, item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    value = default(item)
    if not _fits(kind, value):
        yield "default", f"{shown(value)} is not of type {kind}"
        return
    separator = item.get("separator") or ","
    chosen = value.split(separator) if item.get("multichoice") and isinstance(value, str) and value else [value]
    if "range" in item and not all(part in item["range"] for part in chosen):
        yield "default", f"{shown(value)} is not in range"
    if kind in ("integer", "number"):
        if item.get("min") is not None and value < item["min"]:
            yield "default", f"{value} is below min, {item['min']}"
        if item.get("max") is not None and value > item["max"]:
            yield "default", f"{value} is above max, {item['max']}"
    optional = item.get("required") == "yes" and value == ""
    pattern = item.get("pattern")
    if isinstance(value, str) and isinstance(pattern, str):
        if not optional and not matches(pattern, value):
            yield "default", f"{shown(value)} does not match the pattern"
        if is_slow(pattern, value):
            yield "pattern", f"{shown(pattern)} takes more than {MATCH_S:.0f} s to match the default"


def _volume_faults(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A volume grows in steps of 10 GiB."""
    for key in ("default", "min", "max", "step", "auto_scale_step"):
        if isinstance(item.get(key), int | float) and item[key] % 10:
            yield key, f"{item[key]} is no multiple of 10 GiB"
    if any(isinstance(value, int | float) and value % 10 for value in item.get("range", [])):
        yield "range", "it holds a size that is no multiple of 10 GiB"
    if "range" not in item and "step" not in item:
        yield "step", "it is missing, and a volume's size goes in steps of 10 GiB"


def form_texts(form: Any) -> dict[str, str]:
    """The texts of the form that a user sees, and where they stand; the groups at the top are not shown."""
    found: dict[str, str] = {}

    def walk(item: Any, name: str, depth: int) -> None:
        if not isinstance(item, dict):
            return
        name = f"{name}.{item.get('key')}".lstrip(".")
        for key in ("label", "description"):
            if depth > 1 and isinstance(item.get(key), str) and item[key].strip():
                found.setdefault(item[key], f"the {key} of {name}")
        below = item.get("properties")
        for part in below if isinstance(below, list) else []:
            walk(part, name if depth else "", depth + 1)

    walk(form, "", 0)
    return found
