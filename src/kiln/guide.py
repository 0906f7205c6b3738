"""The user guide as a table: what it tells people to type and what it promises, for one image of a release."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kiln.components import Strict
from kiln.errors import KilnError
from kiln.image_spec import ImageSpec
from kiln.matrix import Matrix
from kiln.project import Project
from kiln.published_speed import read_published_speed
from kiln.tables import Table, read_table
from kiln.templating import render

TABLE = "guide.yml"
_EXPRESSION = re.compile(r"\{\{.*?\}\}")


class Serves(Strict, frozen=True):
    """What a command answers over HTTP while it runs."""

    port: int | str
    path: str
    """May name groups of the command's ``output``: ``{token}``."""
    contains: str


class Command(Strict, frozen=True, rename={"code": "exit", "placeholders": "with"}):
    """One line that a user types, and what must happen."""

    line: str
    images: Literal["all", "gpu", "cpu"] = "all"
    code: int = 0
    output: str = ""
    prints: str = ""
    prompt: str = ""
    makes: list[str] = []
    serves: Serves | None = None
    interrupted: bool = False
    """Whether Ctrl-C ends it once it has printed ``output``; so it is with all that serves."""
    seconds: float = 20
    slow: bool = False
    placeholders: dict[str, str] = {}
    prepared: Literal["", "object-store"] = ""
    component: list[str] = []
    regardless: bool = False
    """Whether it is typed although a line before it failed."""
    not_run: str = ""
    added: str = ""


class Words(Strict, frozen=True):
    """The same in both languages."""

    en: str
    zh: str


class Erratum(Strict, frozen=True):
    """A slip of the original."""

    section: str
    wrong: str
    why: Words
    right: str = ""


class _Row(Strict, frozen=True):
    section: str
    commands: list[Any]
    workspaces: list[str] = []
    folder: str = ""
    node: Literal[1, 2] = 1
    together: str = ""
    quote: str = ""
    login: Literal["console", "ssh"] = "console"


class _Head(Strict, frozen=True):
    original: str
    blocks: dict[str, Any]
    promises: dict[str, Any]
    errata: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One command of the table."""

    block: str
    number: int
    """Its place in the block, from 1."""
    command: Command
    where: str
    """``file:line``."""

    @property
    def name(self) -> str:
        return f"{self.block}/{self.number}"


@dataclass(frozen=True)
class Block:
    """What is typed into one login shell."""

    name: str
    row: _Row
    entries: tuple[Entry, ...]
    where: str

    @property
    def group(self) -> str:
        """Blocks of one group end at the same time."""
        return self.row.together or self.name


@dataclass(frozen=True)
class Guide:
    """The whole table, for one image."""

    spec: ImageSpec
    original: Path
    blocks: tuple[Block, ...]
    """The shell blocks of the guide, in its order."""
    promises: tuple[Block, ...]
    errata: dict[str, Erratum]
    names: dict[str, Any]
    """What expressions may name."""

    @property
    def every(self) -> tuple[Block, ...]:
        return (*self.blocks, *self.promises)

    @property
    def entries(self) -> Iterator[Entry]:
        for block in self.every:
            yield from block.entries

    def text(self, value: str, where: str, **more: Any) -> str:
        """``value`` with its expressions evaluated; ``more``: names that only a run knows."""
        return str(render(value, {**self.names, **more}, where))

    def line(self, entry: Entry) -> str:
        """What is typed, as the original writes it."""
        return self.text(entry.command.line, entry.where)

    def corrected(self, entry: Entry) -> str:
        """What is typed, without the original's slip."""
        line = self.line(entry)
        for erratum in self.errata.values():
            if erratum.right:
                line = line.replace(self.text(erratum.wrong, TABLE), self.text(erratum.right, TABLE))
        return line


def read_guide(project: Project, spec: ImageSpec) -> Guide:
    """The table ``images/guide.yml`` for an image; raises KilnError, with file and line, for what cannot be."""
    table = read_table(project.images / TABLE, project.root)
    head = table.convert(_Head)
    names = spec.names()
    names["addresses"] = [""] * 2
    _, release = Matrix(project, spec.channel.name).release(spec.release)
    names |= {"images": release.images, "upgrades_from": release.upgrades_from, "speed": read_published_speed(project)}
    blocks = tuple(_block(table, spec, "blocks", name) for name in head.blocks)
    promises = tuple(_block(table, spec, "promises", name) for name in head.promises)
    seen: set[str] = set()
    for key, group in (("blocks", blocks), ("promises", promises)):
        for block in group:
            if block.name in seen:
                raise KilnError(
                    f"{block.name} is a block and a promise", where=table.where(key, block.name), fix="rename one"
                )
            seen.add(block.name)
    guide = Guide(
        spec,
        project.root / head.original,
        blocks,
        promises,
        table.entries(Erratum, "errata"),
        names,
    )
    for entry in guide.entries:
        guide.line(entry)
    return guide


def _block(table: Table, spec: ImageSpec, kind: str, name: str) -> Block:
    row = table.convert(_Row, kind, name)
    for workspace in row.workspaces:
        if workspace not in (known := [python.workspace for python in spec.pythons]):
            raise KilnError(
                f"{workspace} is no workspace",
                where=table.where(kind, name, "workspaces"),
                fix=f"choose of {', '.join(known)}",
            )
    if (kind == "promises") != bool(row.quote):
        raise KilnError(
            "key quote is missing" if kind == "promises" else "a block of the guide has no quote",
            where=table.where(kind, name),
            fix="promises quote the guide's sentence, blocks do not",
        )
    entries = tuple(_entry(table, spec, kind, name, number) for number in range(len(row.commands)))
    return Block(name, row, entries, table.where(kind, name))


def _entry(table: Table, spec: ImageSpec, kind: str, name: str, number: int) -> Entry:
    keys = (kind, name, "commands", number)
    command = table.convert(Command, *keys)
    for key in ("output", "prompt"):
        try:
            re.compile(_EXPRESSION.sub("x", getattr(command, key)))
        except re.error as error:
            raise KilnError(
                f"{key} is no regular expression ({error})", where=table.where(*keys, key), fix="correct it"
            ) from None
    for component in command.component:
        known = {*spec.components, "base", "cuda", "cudnn", "mkl"}
        if component not in known:
            raise KilnError(
                f"{component} is no component",
                where=table.where(*keys, "component"),
                fix=f"name one of {', '.join(sorted(known))}",
            )
    if kind == "promises" and not command.added:
        raise KilnError(
            "key added is missing", where=table.where(*keys), fix="say why a command is here that the guide has not"
        )
    if (command.serves or command.interrupted) and not command.output:
        raise KilnError("key output is missing", where=table.where(*keys), fix="say what it prints when it has begun")
    if command.seconds <= 0:
        raise KilnError("seconds must be more than 0", where=table.where(*keys, "seconds"), fix="give it time")
    return Entry(name, number + 1, command, table.where(*keys))
