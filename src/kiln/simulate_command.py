"""``kiln simulate``: a package's cluster lives through its life, or trains, on the simulated platform."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from kiln.errors import KilnError
from kiln.project import Project


@click.command()
@click.option("--release", help="Default: the newest.")
@click.option("--package", "name", default="cpu", show_default=True, help="A package of images/appcenter.yml.")
@click.option(
    "--ids", type=click.Path(path_type=Path), help="The release-ids file. Default: the example, whose ids are made up."
)
@click.option("--training", is_flag=True, help="Run the guide's distributed samples over its nodes instead.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the checks there, as JSON.")
@click.pass_obj
def simulate(
    find: Callable[[], Project],
    release: str | None,
    name: str,
    ids: Path | None,
    training: bool,
    report: Path | None,
) -> None:
    """Create, watch, scale, stop, start, configure and delete a cluster of a package on containers of its image.

    --training: two nodes train together, one of them dies, a third takes part.

    Exit code 0: every promise is kept; 1: one is not; 2: could not run.
    """
    from kiln.engine import Engine
    from kiln.life import Life
    from kiln.matrix import Matrix
    from kiln.package import Packages
    from kiln.release_ids import ReleaseIds
    from kiln.tables import read_table
    from kiln.training import Samples, Training
    from kiln.trial import Check, Trial

    project = find()
    matrix = Matrix(project, "registry")
    _, row = matrix.release(release or matrix.releases()[-1])
    path = (ids or project.images / "release-ids.example.yml").absolute()
    packages = Packages(project, ReleaseIds(path, project.root, row.release, row.upgrades_from))
    if name not in packages.appcenter.packages:
        known = ", ".join(packages.appcenter.packages)
        raise KilnError(f"there is no package {name}", where="images/appcenter.yml", fix=f"choose one of {known}")
    image = f"deeplearning:{row.release}-{packages.appcenter.packages[name].image}"
    engine = Engine()
    engine.check()
    if engine.image_labels(image) is None:
        raise KilnError(f"{image} is not baked", fix=f"run make images RELEASE={row.release}")
    table = read_table(project.images / "node.yml", project.root).data
    user = table["user"]

    if report:
        # Told now rather than after minutes where it cannot be written.
        report.touch()
    begun = time.monotonic()

    def tell(check: Check) -> None:
        minutes, seconds = divmod(int(time.monotonic() - begun), 60)
        words = f": {check.said}" if check.said else ""
        click.echo(f"[{minutes:3}:{seconds:02}] {check.verdict:<8} {check.step}: {check.what}{words}")

    place = (image, packages.make(name), user["name"], user["home"], tell)
    trial: Trial = Life(*place)
    if training:
        spec = matrix.resolve(row.release, packages.appcenter.packages[name].image)
        workspaces = [f"{table['workspaces']['path']}/{python.workspace}" for python in spec.pythons]
        samples = Samples(table["paths"]["samples"], workspaces[-1], (workspaces[0], workspaces[-1]))
        trial = Training(*place, samples=samples)
    checks = trial.run()
    failed = sum(check.verdict == "failed" for check in checks)
    click.echo(f"{len(checks)} checks, {failed} failed")
    if report:
        report.write_text(json.dumps([asdict(check) for check in checks], indent=1) + "\n", encoding="utf-8")
    click.get_current_context().exit(trial.exit_code)
