"""The topology's template, rendered as the platform does: a choice is written as JSON, without HTML's escapes."""

from __future__ import annotations

import json
import re
from typing import Any

import pystache
from pystache.common import PystacheError, TemplateNotFoundError
from pystache.context import KeyNotFoundError
from pystache.parser import ParsingError

from kiln.package_corners import GROUPS, Choices

_SECTION = re.compile(r"\{\{\s*([#^/])\s*([^\s{}]+)\s*\}\}")


_TAG = re.compile(r"\{\{\{.*?\}\}\}|\{\{.*?\}\}", re.DOTALL)
# A line of the template, in what is rendered; no JSON holds the signs around it.
_MARK = re.compile("\0([0-9]+)\1")


class TemplateError(Exception):
    """Why the template cannot be rendered, in a part of a sentence, and the line of the tag at fault."""

    def __init__(self, said: str, line: int = 1) -> None:
        super().__init__(said)
        self.line = line


class _Written(str):
    """A value as JSON that a section still takes for what it is."""

    value: Any

    def __new__(cls, value: Any) -> _Written:
        made = super().__new__(cls, json.dumps(value, ensure_ascii=False))
        made.value = value
        return made

    def __bool__(self) -> bool:
        return bool(self.value)


class Template:
    """One ``cluster.json.mustache``."""

    def __init__(self, text: str) -> None:
        self._text = text
        try:
            self._parsed = pystache.parse(_marked(text))
        except (ParsingError, RecursionError) as error:
            found = _wrong_section(text)
            said = f"it is no Mustache template ({error})"
            raise TemplateError(said, _line(text, found.start()) if found else 1) from None
        if (found := _wrong_section(text)) and found[1] != "/":
            said = f"it is no Mustache template (the section {{{{#{found[2]}}}}} has no end)"
            raise TemplateError(said, _line(text, found.start()))
        # No partials: a package has one template, and the checker's own files are none of its business.
        self._renderer = pystache.Renderer(escape=str, partials={}, missing_tags="strict")

    def render(self, choices: Choices) -> str:
        """The topology for what a user chose; raises TemplateError where the template asks for something else."""
        return self.render_with_marks(choices)[0]

    def render_with_marks(self, choices: Choices) -> tuple[str, list[tuple[int, int]]]:
        """The same, and places in it with their lines in the template, as ``package_json.parse`` takes them."""
        try:
            rendered = self._renderer.render(self._parsed, _nested(choices))
        except KeyNotFoundError as error:
            said = f"it names {{{{{error.key}}}}}, which the form does not have"
            raise TemplateError(said, self._line(rf"[#^&{{]?\s*{re.escape(error.key)}\s*\}}")) from None
        except TemplateNotFoundError:
            said = "it includes another template, which a package cannot have"
            raise TemplateError(said, self._line(">")) from None
        except (PystacheError, ParsingError, RecursionError) as error:
            raise TemplateError(f"it cannot be rendered ({error})") from None
        marks: list[tuple[int, int]] = []
        parts = _MARK.split(rendered)
        length = len(parts[0])
        for line, part in zip(parts[1::2], parts[2::2], strict=True):
            marks.append((length, int(line)))
            length += len(part)
        return "".join(parts[::2]), marks

    def _line(self, tag: str) -> int:
        """The line of the first tag that begins like the pattern ``tag``."""
        found = re.search(rf"\{{\{{\s*{tag}", self._text)
        return _line(self._text, found.start()) if found else 1


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _marked(text: str) -> str:
    """``text`` with a mark at the begin of each line and behind each tag, but none within a tag."""
    made: list[str] = []
    line, place = 1, 0
    for tag in [*_TAG.finditer(text), None]:
        between = text[place : tag.start() if tag else len(text)]
        for number, part in enumerate(between.split("\n")):
            made.append(f"{chr(10) * bool(number)}\0{line + number}\1{part}")
        line += between.count("\n")
        if tag:
            made.append(tag[0])
            line += tag[0].count("\n")
            place = tag.end()
    return "".join(made)


def _wrong_section(text: str) -> re.Match[str] | None:
    """The begin of a section that is not closed, which pystache lets pass, or an end where another is due."""
    opened: list[re.Match[str]] = []
    for found in _SECTION.finditer(text):
        if found[1] != "/":
            opened.append(found)
        elif not opened or opened.pop()[2] != found[2]:
            return found
    return opened[-1] if opened else None


def _nested(choices: Choices) -> dict[str, Any]:
    """``{"cluster.name": …}`` as the nested mappings that Mustache walks through."""
    top: dict[str, Any] = {group: {} for group in GROUPS}
    for name, value in choices.items():
        *groups, last = name.split(".")
        below = top
        for group in groups:
            held = below.setdefault(group, {})
            if not isinstance(held, dict):
                break
            below = held
        else:
            below[last] = _Written(value)
    return top
