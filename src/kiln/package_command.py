"""``kiln package``: makes the AppCenter packages of a release, or checks one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from kiln.errors import KilnError
from kiln.package import Packages, archive, write
from kiln.package_check import TOPOLOGY, Checker
from kiln.package_files import read_package
from kiln.package_finding import Finding
from kiln.project import Project
from kiln.release_ids import ReleaseIds

CHANNEL = "registry"
"""Any would do: releases are the same on every channel."""


@click.command()
@click.option("--release", help="The release to package (default: the newest).")
@click.option(
    "--ids", type=click.Path(path_type=Path), help="The release-ids file: what the platform calls its images."
)
@click.option("--out", type=click.Path(path_type=Path), help="Where to write (default: dist).")
@click.option("--check", "checked", metavar="PATH", type=click.Path(path_type=Path), help="Check this package instead.")
@click.option("--image", metavar="REF", help="With --check: the image that the package's commands must exist in.")
@click.pass_obj
def package(
    find: Callable[[], Project],
    release: str | None,
    ids: Path | None,
    out: Path | None,
    checked: Path | None,
    image: str | None,
) -> None:
    """Make the AppCenter packages of a release, or check any package (a folder or an archive).

    Exit code 0: made, or nothing found; 1: something is wrong with a package; 2: could not run.
    """
    if checked is not None:
        if release or ids or out:
            raise KilnError("--check goes with --image only", fix="drop --release, --ids and --out")
        findings = check(read_package(checked), image)
        for finding in findings:
            click.echo(finding)
        click.echo(f"{checked}: {len(findings)} findings" if findings else f"{checked}: nothing found")
    else:
        if image:
            raise KilnError("--image goes with --check only", fix="drop it")
        if ids is None:
            raise KilnError("no release-ids file", fix="name one with --ids: images/release-ids.example.yml shows how")
        findings = make(find(), release, ids, out or Path("dist"))
    if findings:
        click.get_current_context().exit(1)


def check(files: dict[str, bytes], image: str | None) -> list[Finding]:
    """What is wrong with a package, and which of its commands ``image`` lacks."""
    from kiln.package_image import missing

    checker = Checker(files)
    findings = checker.check()
    if image is not None:
        programs = {command.program for command in checker.commands}
        gone = missing(image, programs, {command.script for command in checker.commands if command.script})
        for command, line in checker.commands.items():
            for path in (command.program, command.script):
                if path in gone:
                    checker.find(TOPOLOGY, line, command.path, f"{path} does not exist in {image}, or cannot be run")
        findings = sorted(checker.findings.values())
    return findings


def make(project: Project, release: str | None, ids: Path, out: Path) -> list[Finding]:
    """Writes every package of a release once all are sound; else tells what is wrong and writes none."""
    from kiln.matrix import Matrix

    matrix = Matrix(project, CHANNEL)
    _, row = matrix.release(release or matrix.releases()[-1])
    packages = Packages(project, ReleaseIds(ids.absolute(), project.root, row.release, row.upgrades_from))
    made: dict[Path, bytes] = {}
    findings: list[Finding] = []
    for name, offer in packages.appcenter.packages.items():
        if offer.image not in row.images:
            continue
        files = packages.make(name)
        for finding in Checker({path: text.encode() for path, text in files.items()}).check():
            click.echo(f"{name}: {finding}")
            findings.append(finding)
        made[out / f"deeplearning-{row.release}-{name}.tar.gz"] = archive(files)
    if not findings:
        for path, content in made.items():
            write(content, path)
            click.echo(path)
    return findings
