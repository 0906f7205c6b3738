"""The user guide as the platform published it, and how it and the table compare."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from kiln.errors import KilnError
from kiln.guide import Guide

_HEADING = re.compile(r"(#{2,4}) +(.*\S)")
_FENCE = re.compile(r"(?:[-*>] *|\d+\. +| +)*(```+|~~~+).*")
_INDENTED = re.compile(r"(?: {4}|\t)\s*\S")
_ADDRESS = re.compile(r"\]\([^)]*\)|https?://[^\s)\]]+")
_PROMISED = re.compile(
    r"(?<![\w./<-])/[A-Za-z][\w./-]*"  # a path on a node
    r"|(?<![\d.])\d+\.\d+(?:\.\d+)?(?![\d.])"  # a version; an IP address has more numbers
    r"|(?<=端口) *\d+|`\d+`"  # a port
    r"|(?<=节点登录信息\uff1a)\S+",  # the login
    re.ASCII,
)
"""What a sentence promises."""


@dataclass(frozen=True)
class Typed:
    """One command line of a fenced block."""

    section: str
    number: int
    """Its place in the block, from 1."""
    line: str
    at: int
    """Line of the file."""


@dataclass(frozen=True)
class Original:
    """The guide, read."""

    path: Path
    commands: tuple[Typed, ...]
    sections: dict[str, str]
    """Heading to the text below it, fenced blocks left out; ``A / B`` for the heading B below A."""
    tables: dict[str, list[list[list[str]]]]
    """Heading to the tables below it, as rows of cells, the head first."""

    @property
    def prose(self) -> str:
        return "\n".join(self.sections.values())


def read_original(path: Path) -> Original:
    """Parses the guide; raises KilnError when it is not there or a block does not end."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KilnError(f"cannot be read ({error})", where=str(path), fix="restore it from version control") from None
    heads: dict[int, str] = {}
    section, number, fence, mark = "", 0, 0, ""
    commands: list[Typed] = []
    sections: dict[str, list[str]] = {}
    for at, line in enumerate(lines, 1):
        edge = _FENCE.fullmatch(line)
        if edge and (not fence or edge[1].startswith(mark)):
            fence, number, mark = (0 if fence else at), 0, edge[1]
        elif fence or _INDENTED.match(line):
            if line.strip() and not line.lstrip().startswith("#"):
                number += 1
                commands.append(Typed(section, number, line.strip(), at))
        elif found := _HEADING.fullmatch(line):
            depth = len(found[1])
            heads = {level: name for level, name in heads.items() if level < depth} | {depth: found[2]}
            below = [name for level, name in sorted(heads.items()) if level > 2]
            section = " / ".join(below or [heads[2]])
        else:
            sections.setdefault(section, []).append(line)
    if fence:
        raise KilnError("a fenced block does not end", where=f"{path}:{fence}", fix="close it with ```")
    return Original(
        path,
        tuple(commands),
        {name: "\n".join(text) for name, text in sections.items()},
        {name: _tables(text) for name, text in sections.items()},
    )


def _tables(lines: list[str]) -> list[list[list[str]]]:
    tables: list[list[list[str]]] = []
    for above, line in zip(["", *lines], lines, strict=False):
        if re.fullmatch(r"[-| ]+", line) and "|" in line:
            tables.append([_cells(above)])
        elif tables and " | " in line and (above == "" or tables[-1]) and "|" in above:
            tables[-1].append(_cells(line))
    return tables


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def find_gaps(guide: Guide, original: Original) -> list[str]:
    """What the guide has and the table lacks, and the other way round; one sentence each."""
    return [*_commands(guide, original), *_quotes(guide, original), *_promised(guide, original)]


def _commands(guide: Guide, original: Original) -> list[str]:
    wanted = [(typed.section, typed.number, typed.line) for typed in original.commands]
    entries = [(block, entry) for block in guide.blocks for entry in block.entries if not entry.command.added]
    numbers: dict[str, int] = {}
    have = []
    for block, entry in entries:
        numbers[block.name] = numbers.get(block.name, 0) + 1
        have.append((block.row.section, numbers[block.name], guide.line(entry)))
    found = []
    for kind, first, last, start, end in SequenceMatcher(None, wanted, have, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        found += [
            f"{original.path.name}:{typed.at}: {typed.line}: the table lacks it"
            for typed in original.commands[first:last]
        ]
        found += [
            f"{entry.where}: {entry.name}: the guide has no such line there: {guide.line(entry)}"
            for _, entry in entries[start:end]
        ]
    return found


def _quotes(guide: Guide, original: Original) -> list[str]:
    quotes = [(block.where, block.row.section, block.row.quote) for block in guide.promises]
    typed = "\n".join(typed.line for typed in original.commands)
    found = [
        f"{where}: the guide does not say so in {section}: {text}"
        for where, section, quote in quotes
        if (text := guide.text(quote, where)) not in original.sections.get(section, "")
    ]
    for name, erratum in guide.errata.items():
        wrong = guide.text(erratum.wrong, name)
        if wrong not in original.sections.get(erratum.section, "") and wrong not in typed:
            found.append(f"erratum {name}: the guide does not say so in {erratum.section}: {wrong}")
    return found


def _promised(guide: Guide, original: Original) -> list[str]:
    """Every path, port, version and login of the prose stands in a command or a quote."""
    told = [guide.text(block.row.quote, block.where) for block in guide.promises]
    told += [guide.text(erratum.wrong, name) for name, erratum in guide.errata.items()]
    told += [guide.line(entry) for entry in guide.entries]
    known = {promise for text in told for promise in _promises(text)}
    return [
        f"{original.path.name}: {promise}: no entry speaks of it"
        for promise in sorted(_promises(original.prose) - known)
    ]


def _promises(text: str) -> set[str]:
    """What ``text`` promises, tables' rows and addresses of downloads left out."""
    lines = [line for line in text.splitlines() if " | " not in line]
    return {found.strip() for found in _PROMISED.findall(_ADDRESS.sub(" ", "\n".join(lines)))}
