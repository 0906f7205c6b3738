"""``kiln elf``: whether the loader finds all that the compiled files of an image or a wheel need."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from kiln.errors import KilnError
from kiln.project import Project


@click.command()
@click.argument("target")
@click.option(
    "--image", metavar="[RELEASE/]IMAGE", help="The image that a wheel is for, or that TARGET is compared with."
)
@click.option("--channel", default="registry", show_default=True, help="The channel of --image.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def elf(find: Callable[[], Project], target: str, image: str | None, channel: str, as_json: bool) -> None:
    """Load every program and library of TARGET on paper: an image, a container, a wheel file, or local.

    Exit code 0: all that is needed is there; 1: something is missing; 2: could not run.
    """
    from kiln import elf_target

    project = find()
    if target.endswith(".whl"):
        if image is None:
            raise KilnError(f"{target} is a wheel", fix="add --image [RELEASE/]IMAGE")
        report = elf_target.judge_wheel(project, Path(target), image, channel)
    else:
        report = elf_target.judge_target(project, target, image, channel)
    report = replace(report, target=target)
    click.echo(json.dumps(report.as_data(), indent=1) if as_json else report.as_text())
    sys.exit(report.exit_code)
