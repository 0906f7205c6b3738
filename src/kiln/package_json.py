"""JSON with places: the line of every value, and every key that stands twice."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isinf
from typing import Any, NoReturn

Path = tuple[str | int, ...]

DEEPEST = 100
"""Levels; deeper documents are no form and no topology."""
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonError(Exception):
    """What keeps a text from being JSON, and its line."""

    def __init__(self, said: str, line: int) -> None:
        super().__init__(said)
        self.said = said
        self.line = line


@dataclass(frozen=True)
class Repeated:
    """A key that stands twice in one object."""

    path: Path
    line: int
    first: int


@dataclass
class Document:
    """A parsed text. Of a key that stands twice the last value counts, as with most parsers."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    repeated: list[Repeated] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of the deepest known part of ``path``."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def dotted(path: Path) -> str:
    """``path`` as a person writes it: ``nodes[0].services.init``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def parse(text: str, marks: Sequence[tuple[int, int]] | None = None) -> Document:
    """Reads JSON; raises JsonError with a line where it is none.

    ``marks``: places of a text that was made from another, in their order, each with its line in that one.
    """
    if marks is None:
        marks = [(0, 1), *((found.end(), line) for line, found in enumerate(re.finditer("\n", text), 2))]
    return _Parser(text, marks).document()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class _Parser:
    def __init__(self, text: str, marks: Sequence[tuple[int, int]]) -> None:
        self.text = text
        self.made = Document()
        self.marks = marks
        self.decode = json.JSONDecoder(
            parse_constant=_refuse_constant, parse_int=_integer, parse_float=_number
        ).raw_decode

    def document(self) -> Document:
        self.made.data, end = self._value(self._skip(0), ())
        end = self._skip(end)
        if end != len(self.text):
            self._fail("something follows the end of the document", end)
        return self.made

    def _line(self, place: int) -> int:
        after = bisect_right(self.marks, place, key=lambda mark: mark[0])
        return self.marks[after - 1][1] if after else 1

    def _fail(self, said: str, place: int) -> NoReturn:
        raise JsonError(said, self._line(place))

    def _skip(self, place: int) -> int:
        found = _SPACE.match(self.text, place)
        assert found is not None
        return found.end()

    def _value(self, place: int, path: Path) -> tuple[Any, int]:
        if len(path) > DEEPEST:
            self._fail(f"it is nested more than {DEEPEST} levels deep", place)
        self.made.lines.setdefault(path, self._line(place))
        first = self.text[place : place + 1]
        if first == "{":
            return self._object(place, path)
        if first == "[":
            return self._array(place, path)
        return self._scalar(place)

    def _scalar(self, place: int) -> tuple[Any, int]:
        try:
            return self.decode(self.text, place)
        except json.JSONDecodeError as error:
            self._fail(error.msg[:1].lower() + error.msg[1:], min(error.pos, len(self.text)))
        except ValueError as error:
            self._fail(str(error), place)

    def _object(self, place: int, path: Path) -> tuple[dict[str, Any], int]:
        made: dict[str, Any] = {}
        place = self._skip(place + 1)
        if self.text[place : place + 1] == "}":
            return made, place + 1
        while True:
            if self.text[place : place + 1] != '"':
                self._fail("expected a key in double quotes", place)
            key, end = self._scalar(place)
            below = (*path, key)
            if key in made:
                self.made.repeated.append(Repeated(below, self._line(place), self.made.lines[below]))
            self.made.lines[below] = self._line(place)
            end = self._expect(":", self._skip(end))
            made[key], end = self._value(end, below)
            end = self._skip(end)
            if self.text[end : end + 1] == "}":
                return made, end + 1
            place = self._expect(",", end)

    def _array(self, place: int, path: Path) -> tuple[list[Any], int]:
        made: list[Any] = []
        place = self._skip(place + 1)
        if self.text[place : place + 1] == "]":
            return made, place + 1
        while True:
            value, end = self._value(place, (*path, len(made)))
            made.append(value)
            end = self._skip(end)
            if self.text[end : end + 1] == "]":
                return made, end + 1
            place = self._expect(",", end)

    def _expect(self, sign: str, place: int) -> int:
        if self.text[place : place + 1] != sign:
            self._fail(f"expected {sign!r}", place)
        return self._skip(place + 1)


def _integer(digits: str) -> int:
    # int() refuses longer ones with words about Python.
    if len(digits) > 100:
        raise ValueError("the number has more than 100 digits")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if isinf(number):
        raise ValueError("the number is too large")
    return number
