"""Reads the YAML tables under ``images/``: strict types, unknown keys refused, every finding with its line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from kiln.errors import KilnError

T = TypeVar("T")
Keys = tuple[str | int, ...]

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`")
_EMPTY = "must not be empty"
_STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d+|\.\.\.)\]")


@dataclass(frozen=True)
class Table:
    """One parsed YAML file: its data, and the line of every key and list item."""

    path: Path
    name: str
    """The path as a user names it."""
    data: Any
    lines: dict[Keys, int]

    def where(self, *keys: str | int) -> str:
        """``file:line`` of the deepest known part of ``keys``."""
        known = keys
        while known and known not in self.lines:
            known = known[:-1]
        return f"{self.name}:{self.lines.get(known, 1)}"

    def convert(self, kind: type[T], *keys: str | int) -> T:
        """The data below ``keys`` as ``kind``; raises KilnError with file and line when it does not fit."""
        data = self.data
        for key in keys:
            data = data[key]
        return self.fit(data, kind, *keys)

    def fit(self, data: Any, kind: type[T], *keys: str | int) -> T:
        """``data``, what the expressions below ``keys`` came out as, as ``kind``."""
        try:
            return msgspec.convert(data, kind)
        except msgspec.ValidationError as error:
            said, _, place = str(error).partition(" - at ")
            below = [step if step else index for step, index in _STEP.findall(place)]
            path = (*keys, *(int(step) if step.isdigit() else step for step in below if step != "..."))
            unknown = _UNKNOWN.fullmatch(said)
            path = (*path, unknown[1]) if unknown else path
            words = _plain(said)
            raise KilnError(
                f"{path[-1]} {words}" if path and words == _EMPTY else words,
                where=self.where(*path),
                fix="correct the table: images/README.md describes its keys",
            ) from None

    def entries(self, kind: type[T], *keys: str | int) -> dict[str, T]:
        """The mapping below ``keys`` with every value as ``kind``."""
        data = self.data
        for key in keys:
            data = data[key]
        if not isinstance(data, dict):
            raise KilnError(f"{keys[-1]} must be a mapping", where=self.where(*keys), fix="write name: {…} entries")
        for key in data:
            if not isinstance(key, str):
                raise KilnError(f"key {key!r} is not a string", where=self.where(*keys, key), fix=f'quote it: "{key}"')
        return {name: self.convert(kind, *keys, name) for name in data}


def _plain(said: str) -> str:
    """msgspec's words for a person: ``Object contains unknown field `x``` becomes ``unknown key x``."""
    for pattern, words in (
        (_UNKNOWN.pattern, r"unknown key \1"),
        (r"Object missing required field `(.+)`", r"key \1 is missing"),
        (r"Expected `(.+)`, got `(.+)`", r"expected \1, got \2"),
        (r"Expected `(.+)` of length >= 1", _EMPTY),
    ):
        said, count = re.subn(pattern, words, said)
        if count:
            break
    return said


def read_table(path: Path, root: Path) -> Table:
    """Parses one YAML file; raises KilnError for a missing file, broken YAML and a key that stands twice."""
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise KilnError(f"{name} does not exist", fix="restore it from version control") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KilnError(f"cannot be read ({error})", where=name, fix="make it a readable UTF-8 file") from None
    loader = SAFE_LOADER(text)
    try:
        node = loader.get_single_node()
        lines: dict[Keys, int] = {}
        if node is not None:
            _collect(node, (), lines, name)
        data = loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2018-13-01, which YAML takes for a date
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        said = getattr(error, "problem", None) or str(error)
        raise KilnError(f"is not valid YAML ({said})", where=f"{name}:{line}", fix="correct the line") from None
    except RecursionError:
        raise KilnError("is nested without end", where=name, fix="let no alias stand inside its own anchor") from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise KilnError("must hold a mapping", where=f"{name}:1", fix="write key: value lines")
    return Table(path, name, data, lines)


def _collect(node: yaml.Node, keys: Keys, lines: dict[Keys, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*keys, _key(key_node))
            line = key_node.start_mark.line + 1
            if key in lines:
                raise KilnError(
                    f"key {key_node.value} stands twice (first in line {lines[key]})",
                    where=f"{name}:{line}",
                    fix="keep one of them",
                )
            lines[key] = line
            _collect(value_node, key, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*keys, index)] = item.start_mark.line + 1
            _collect(item, (*keys, index), lines, name)


def _key(node: yaml.Node) -> str | int:
    if node.tag == "tag:yaml.org,2002:int":
        return int(node.value)
    return str(node.value)
