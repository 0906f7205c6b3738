"""``images/published-speed.yml``: how fast the platform says its nodes are."""

from __future__ import annotations

from typing import Literal

from kiln.components import Strict
from kiln.errors import KilnError
from kiln.project import Project
from kiln.tables import read_table


class Speed(Strict, frozen=True):
    """One measurement, in both ways that the platform prints it."""

    images_per_s: float
    step_ms: float
    """For one image of the batch."""

    @property
    def agrees(self) -> bool:
        """Whether the two are one number: the platform prints hundredths."""
        return self.images_per_s > 0 and abs(1000 / self.images_per_s - self.step_ms) <= 0.01


class Row(Strict, frozen=True):
    """One node."""

    image: str
    cores: int
    processor: str
    memory_gb: int
    gpus: int
    batch: int
    training: Speed
    inference: Speed
    build: Literal["plain", "mkl"] | None = None
    """TensorFlow's, on a node without GPUs."""

    def name(self, gpu: str) -> str:
        """The node in one line; ``gpu``: the model of its GPUs."""
        build = {"plain": ", plain", "mkl": ", MKL"}.get(self.build or "", "")
        processor = "" if self.processor == "any" else f" {self.processor}"
        gpus = f", {self.gpus} {gpu}" if self.gpus else ""
        return f"{self.image}{build}, {self.cores}{processor} cores{gpus}"


class PublishedSpeed(Strict, frozen=True):
    """The table."""

    source: str
    code: str
    """Address of what was run."""
    model: str
    data: str
    python: str
    tensorflow: str
    gpu: str
    rows: list[Row]


def read_published_speed(project: Project) -> PublishedSpeed:
    """The table; raises KilnError with file and line for anything that does not fit."""
    table = read_table(project.images / "published-speed.yml", project.root)
    published = table.convert(PublishedSpeed)
    for index, row in enumerate(published.rows):
        for work in ("training", "inference"):
            speed: Speed = getattr(row, work)
            if not speed.agrees:
                raise KilnError(
                    f"{speed.images_per_s} images/s are not {speed.step_ms} ms for each",
                    where=table.where("rows", index, work),
                    fix="compare both with the user guide",
                )
        if (row.gpus == 0) != (row.build is not None):
            raise KilnError(
                "a node with GPUs names no build for the CPU, and one without names it",
                where=table.where("rows", index),
                fix="add or remove build",
            )
    return published
