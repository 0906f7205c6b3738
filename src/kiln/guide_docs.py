"""The user guide, corrected, in two languages: rendered from the tables and from the original's lists of downloads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, select_autoescape

from kiln.errors import KilnError
from kiln.guide import TABLE, Guide, read_guide
from kiln.guide_original import Original, read_original
from kiln.image_spec import ImageSpec
from kiln.matrix import Matrix
from kiln.project import Project

LANGUAGES = ("en", "zh")


def write_docs(project: Project, channel: str) -> list[Path]:
    """Writes ``docs/guide.<language>.md``; returns the paths."""
    written = []
    for path, text in render_docs(project, channel).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def render_docs(project: Project, channel: str) -> dict[Path, str]:
    """Path to text of each language's guide; raises KilnError for a template that asks for what there is not."""
    matrix = Matrix(project, channel)
    first = matrix.releases()[-1]
    specs = [matrix.resolve(first, image) for image in matrix.images(first)]
    guide = read_guide(project, specs[-1])
    original = read_original(guide.original)
    environment = Environment(
        loader=FileSystemLoader(project.templates / "guide"),
        undefined=StrictUndefined,
        autoescape=select_autoescape(()),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    texts = {}
    for language in LANGUAGES:
        name = f"guide.{language}.md.j2"
        pieces = Pieces(guide, original, specs, language)
        try:
            texts[project.root / "docs" / name.removesuffix(".j2")] = environment.get_template(name).render(
                {**guide.names, "guide": pieces}
            )
        except (TemplateError, LookupError) as error:
            raise KilnError(
                f"cannot be rendered ({error})", where=f"templates/guide/{name}", fix="correct the template"
            ) from None
    return texts


@dataclass(frozen=True)
class Pieces:
    """What a template puts between its sentences."""

    guide: Guide
    original: Original
    specs: list[ImageSpec]
    language: str

    def shell(self, name: str) -> str:
        """A block's commands, corrected, as fenced Markdown."""
        (block,) = (block for block in self.guide.blocks if block.name == name)
        lines = [self.guide.corrected(entry) for entry in block.entries]
        return "\n".join(["```shell", *lines, "```"])

    def table(self, section: str, number: int = 0, head: str = "", cells: dict[str, str] | None = None) -> str:
        """A table of the original, corrected; ``head`` and ``cells``: other words for its head and for cells."""
        top, *rows = self.original.tables[section][number]
        top = [cell.strip() for cell in head.split("|")] if head else top
        shown = [[self._correct((cells or {}).get(cell, cell), section) for cell in row] for row in rows]
        return _markdown([top, *shown])

    def versions(self, head: str) -> str:
        """What each image holds: one row for an image."""
        rows = [
            [
                title(spec),
                spec.row.tensorflow,
                {"bvlc": "BVLC", "intel": "Intel"}[spec.row.caffe],
                spec.row.pytorch,
                spec.row.keras,
                spec.row.cudnn or "-",
                spec.row.driver or "-",
                ", ".join(spec.row.python),
            ]
            for spec in self.specs
        ]
        return _markdown([[cell.strip() for cell in head.split("|")], *rows])

    def substitutions(self, head: str) -> str:
        """What the channel puts in other components' place, one row for each."""
        rows: dict[tuple[str, str], list[str]] = {}
        for spec in self.specs:
            for component, why in spec.substitutions.items():
                rows.setdefault((component, why), []).append(title(spec))
        return _markdown(
            [
                [cell.strip() for cell in head.split("|")],
                *[[component, ", ".join(images), why] for (component, why), images in sorted(rows.items())],
            ]
        )

    def errata(self, head: str) -> str:
        """Every slip of the original."""
        rows = [
            [
                erratum.section,
                _code(self.guide.text(erratum.wrong, TABLE)),
                _code(self.guide.text(erratum.right, TABLE)) if erratum.right else "-",
                self.guide.text(getattr(erratum.why, self.language), TABLE),
            ]
            for erratum in self.guide.errata.values()
        ]
        return _markdown([[cell.strip() for cell in head.split("|")], *rows])

    def commands(self, head: str) -> str:
        """Every command of the guide by its name in the table."""
        images = {"all": ", ".join(spec.image for spec in self.specs)}
        for device in ("gpu", "cpu"):
            images[device] = ", ".join(spec.image for spec in self.specs if spec.device == device)
        rows = [
            [entry.name, _code(self.guide.corrected(entry)), images[entry.command.images]]
            for block in self.guide.blocks
            for entry in block.entries
        ]
        return _markdown([[cell.strip() for cell in head.split("|")], *rows])

    def _correct(self, cell: str, section: str) -> str:
        for erratum in self.guide.errata.values():
            if erratum.right and erratum.section == section:
                cell = cell.replace(self.guide.text(erratum.wrong, TABLE), self.guide.text(erratum.right, TABLE))
        return cell


def title(spec: ImageSpec) -> str:
    """The image as the guide calls it."""
    return f"CUDA {spec.row.cuda}" if spec.row.cuda else "CPU"


def _code(text: str) -> str:
    quoted = f"`` {text} ``" if "`" in text else f"`{text}`"
    return quoted.replace("|", "\\|")


def _markdown(rows: list[list[Any]]) -> str:
    head, *rest = [" | ".join(row).rstrip() for row in rows]
    return "\n".join([f"| {head} |", "|" + " --- |" * len(rows[0]), *[f"| {row} |" for row in rest]])
