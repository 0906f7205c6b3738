"""One thing that is wrong with a package, in words for a person."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jsonschema.exceptions import ValidationError

from kiln.package_json import Path

_MOST_SHOWN = 80
"""Characters of a value in a sentence."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong, told in one sentence."""

    file: str
    line: int
    path: str
    said: str

    def __str__(self) -> str:
        place = f"{self.path}: " if self.path else ""
        return printable(f"{self.file}:{self.line}: {place}{self.said}")


def printable(text: str) -> str:
    """``text`` on one line that every terminal takes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def shown(value: Any) -> str:
    """``value`` as JSON, short enough for a sentence."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"


def words(error: ValidationError) -> Iterator[tuple[Path, str]]:
    """A schema's finding for a person: where below the place of the finding, and a sentence."""
    value: Any = error.instance
    limit: Any = error.validator_value
    match error.validator:
        case "required":
            for key in limit:
                if key not in value:
                    yield (), f"{key} is missing"
        case "additionalProperties":
            known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
            for key in value:
                if key not in known:
                    yield (key,), "the platform knows no such key here"
        case "type":
            kinds = limit if isinstance(limit, list) else [limit]
            yield (), f"{shown(value)} is not of type {' or '.join(kinds)}"
        case "enum":
            yield (), f"{shown(value)} is none of {', '.join(map(str, limit))}"
        case "const":
            yield (), f"{shown(value)} is not {shown(limit)}"
        case "minimum":
            yield (), f"{shown(value)} is below {limit}"
        case "maximum":
            yield (), f"{shown(value)} is above {limit}"
        case "exclusiveMinimum":
            yield (), f"{shown(value)} is not above {limit}"
        case "multipleOf":
            yield (), f"{shown(value)} is no multiple of {limit}"
        case "minItems":
            yield (), f"it holds {len(value)}, and at least {limit} are wanted"
        case "maxItems" | "maxProperties":
            yield (), f"it holds {len(value)}, and at most {limit} are allowed"
        case "minLength":
            yield (), "it is empty"
        case _:
            yield (), f"{shown(value)} does not have the form {limit}"
