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


class TemplateError(Exception):
    """Why the template cannot be rendered, in a part of a sentence."""


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
        try:
            self._parsed = pystache.parse(text)
        except (ParsingError, RecursionError) as error:
            raise TemplateError(f"it is no Mustache template ({error})") from None
        open_section = _open_section(text)
        if open_section:
            raise TemplateError(f"it is no Mustache template (the section {{{{#{open_section}}}}} has no end)")
        # No partials: a package has one template, and the checker's own files are none of its business.
        self._renderer = pystache.Renderer(escape=str, partials={}, missing_tags="strict")

    def render(self, choices: Choices) -> str:
        """The topology for what a user chose; raises TemplateError where the template asks for something else."""
        try:
            return self._renderer.render(self._parsed, _nested(choices))
        except KeyNotFoundError as error:
            raise TemplateError(f"it names {{{{{error.key}}}}}, which the form does not have") from None
        except TemplateNotFoundError:
            raise TemplateError("it includes another template, which a package cannot have") from None
        except (PystacheError, ParsingError, RecursionError) as error:
            raise TemplateError(f"it cannot be rendered ({error})") from None


def _open_section(text: str) -> str:
    """The name of a section that is not closed, which pystache lets pass; empty where there is none."""
    names: list[str] = []
    for sign, name in _SECTION.findall(text):
        if sign == "/":
            names = names[:-1]
        else:
            names.append(name)
    return names[-1] if names else ""


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
