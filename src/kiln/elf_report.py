"""The verdict on what the loader misses: a fault, an exception of the table, or for the driver on the node to give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from kiln.components import Device, Strict
from kiln.elf_loader import Linker, Miss
from kiln.errors import KilnError
from kiln.project import Project
from kiln.tables import read_table

FROM_DRIVER = "comes from the driver on the node"


class Driver(Strict, frozen=True):
    """What the NVIDIA driver of a node gives."""

    libraries: list[str]
    source: str


class ExceptionRow(Strict, frozen=True):
    """A library that some files need and that nothing has to give."""

    files: str
    """Paths, as a shell pattern whose ``*`` also stands for folders."""
    library: str
    why: str
    source: str


class Rules(Strict, frozen=True):
    """``images/elf.yml``."""

    driver: Driver
    exceptions: list[ExceptionRow]

    def exception(self, miss: Miss) -> ExceptionRow | None:
        """The exception that ``miss`` falls under, if any; none ever covers a symbol version."""
        for row in self.exceptions:
            if not miss.version and miss.library == row.library and fnmatchcase(miss.file, row.files):
                return row
        return None


def read_rules(project: Project) -> Rules:
    """The table; raises KilnError with file and line for anything that does not fit."""
    return read_table(project.images / "elf.yml", project.root).convert(Rules)


@dataclass(frozen=True)
class Report:
    """What became of the files of one target."""

    target: str
    files: int
    """Programs and libraries that were loaded on paper."""
    foreign: int
    """Those for other machines, which nothing there loads."""
    findings: tuple[Miss, ...]
    not_run: tuple[Miss, ...]
    excepted: tuple[Miss, ...]

    @property
    def exit_code(self) -> int:
        """0: nothing is missing; 1: something is."""
        return 1 if self.findings else 0

    def as_data(self) -> dict[str, Any]:
        """The report as JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """What is missing, then the numbers."""
        lines = [
            f"{verdict:<12}{miss}"
            for verdict, misses in (("excepted", self.excepted), ("not run", self.not_run), ("failed", self.findings))
            for miss in misses
        ]
        counts = f"{len(self.findings)} unresolved, {len(self.not_run)} not run, {len(self.excepted)} excepted"
        foreign = f" ({self.foreign} for other machines passed over)" if self.foreign else ""
        return "\n".join([*lines, f"{self.target}: {self.files} ELF files{foreign}, {counts}"])


def judge(
    target: str, linker: Linker, rules: Rules, device: Device | None, only: Iterable[str] | None = None
) -> Report:
    """Loads every file (of ``only``) on paper; raises KilnError where there is none to load.

    ``device``: what the target is for; a CPU node has no driver. None where nobody said.
    """
    paths = list(linker.judged) if only is None else [path for path in only if path in linker.judged]
    if not paths and only is None:
        raise KilnError("it holds no program and no library", where=target, fix="name an image of a system")
    findings, not_run, excepted = [], [], []
    for miss in linker.misses(only):
        row = rules.exception(miss)
        if device != "cpu" and miss.library in rules.driver.libraries:
            not_run.append(Miss(miss.file, miss.library, miss.version, FROM_DRIVER))
        elif row is not None:
            excepted.append(Miss(miss.file, miss.library, miss.version, row.why))
        else:
            findings.append(miss)
    foreign = len(linker.elves) - len(linker.judged) if only is None else 0
    return Report(target, len(paths), foreign, tuple(findings), tuple(not_run), tuple(excepted))
