"""The corners of a form: what a user may choose, so that every two choices meet."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import combinations, product
from typing import Any, Literal

from kiln.package_json import Path

Choices = dict[str, Any]
"""Property, as the template names it, to the value that the user chose."""

MOST_PAIRS = 60_000
"""Larger forms are gone through one property at a time."""
MATCH_S = 5.0
"""For a pattern to say whether it lets a text pass; all sound ones take a millisecond, once Python has started."""
HARD_TEXT = 'a "quoted" \\ <b> & {{c}} \n深度学习'
GROUPS = ("cluster", "env", "service_params")
_ZEROS: dict[str, Any] = {"integer": 0, "number": 0.0, "boolean": False, "loadbalancer": []}


def leaves(form: Any) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """The properties a user fills in: name in the template, place in the form, settings."""
    if isinstance(form, dict):
        yield from _below(form.get("properties"), "", ("properties",))


def _below(properties: Any, prefix: str, path: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    for index, item in enumerate(properties if isinstance(properties, list) else []):
        if not isinstance(item, dict) or not isinstance(item.get("key"), str):
            continue
        name = prefix + item["key"]
        if item.get("type") == "array":
            yield from _below(item.get("properties"), f"{name}.", (*path, index, "properties"))
        else:
            yield name, (*path, index), item


def default(item: Mapping[str, Any]) -> Any:
    """What the form holds before the user touches it."""
    return item["default"] if "default" in item else _ZEROS.get(str(item.get("type")), "")


def corners(item: Mapping[str, Any]) -> list[Any]:
    """The default first, then the other values that may matter."""
    found = [default(item)]
    kind = item.get("type")
    if isinstance(item.get("range"), list):
        found += item["range"]
    elif kind in ("integer", "number"):
        ends = [item[key] for key in ("min", "max") if _is_number(item.get(key))]
        found += ends
        if ends and _is_number(item.get("step")):
            found.append(ends[0] + item["step"])
    elif kind == "boolean":
        found += [False, True]
    elif kind in ("string", "password"):
        # What a pattern lets pass is not hard, and one that is not ours had better see short text only.
        found += [
            text for text in ("", *([] if "pattern" in item else [HARD_TEXT])) if matches(item.get("pattern"), text)
        ]
    unique: list[Any] = []
    for value in found:
        if not any(type(value) is type(other) and value == other for other in unique):
            unique.append(value)
    return unique


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def matches(pattern: Any, text: str) -> bool:
    """Whether a property's pattern lets ``text`` pass; a broken pattern, a slow one and none let everything pass."""
    return not isinstance(pattern, str) or _search(pattern, text) is not False


def is_slow(pattern: str, text: str) -> bool:
    """Whether it takes longer than MATCH_S to say."""
    return _search(pattern, text) == "slow"


@lru_cache(maxsize=1000)
def _search(pattern: str, text: str) -> bool | Literal["broken", "slow"]:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return "broken"
    if not text:
        return re.search(pattern, text) is not None
    # In a process that can be ended: nothing else stops a search that takes years.
    program = "import json, re, sys; sys.exit(3 if re.search(*json.load(sys.stdin)) else 4)"
    try:
        done = subprocess.run(
            [sys.executable, "-ISc", program],
            input=json.dumps([pattern, text]),
            encoding="ascii",
            capture_output=True,
            timeout=MATCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "slow"
    return {3: True, 4: False}.get(done.returncode, "broken")


def rows(form: Any) -> Iterator[Choices]:
    """The defaults; each property's corners one at a time; then rows in which every two corners meet."""
    values = {name: corners(item) for name, _, item in leaves(form)}
    plain = {name: found[0] for name, found in values.items()}
    yield plain
    for name, found in values.items():
        for value in found[1:]:
            yield {**plain, name: value}
    pairs = sum(len(values[one]) * len(values[other]) for one, other in combinations(values, 2))
    if pairs <= MOST_PAIRS:
        for chosen in _pairwise({name: len(found) for name, found in values.items()}):
            yield {name: values[name][index] for name, index in chosen.items()}


def _pairwise(sizes: dict[str, int]) -> Iterator[dict[str, int]]:
    """Rows of indices in which every two indices of two names meet; greedy, so not the fewest."""
    names = list(sizes)
    open_pairs = {
        (one, i, other, j)
        for one, other in combinations(names, 2)
        for i, j in product(range(sizes[one]), range(sizes[other]))
        if i or j
    }
    order = {name: number for number, name in enumerate(names)}

    def pair(one: str, i: int, other: str, j: int) -> tuple[str, int, str, int]:
        return (one, i, other, j) if order[one] < order[other] else (other, j, one, i)

    def gain(row: dict[str, int], name: str, index: int) -> int:
        return sum(pair(name, index, other, chosen) in open_pairs for other, chosen in row.items())

    for first in sorted(open_pairs):
        if first not in open_pairs:
            continue
        row = {first[0]: first[1], first[2]: first[3]}
        for name in names:
            if name not in row:
                gains = [gain(row, name, index) for index in range(sizes[name])]
                row[name] = gains.index(max(gains))
        open_pairs -= {pair(one, row[one], other, row[other]) for one, other in combinations(names, 2)}
        yield row
