"""``kiln upgrade``: the rehearsal, and the loss report of a live node."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kiln.errors import KilnError
from kiln.project import Project

if TYPE_CHECKING:
    from kiln.matrix import Matrix


@click.command()
@click.option("--from", "old", metavar="RELEASE", help="Default: what the new release accepts.")
@click.option("--to", "new", metavar="RELEASE", help="Default: the newest.")
@click.option(
    "--image", "images", multiple=True, help="cpu, cuda80, cuda91 or all; may stand several times. Default: cpu."
)
@click.option("--nodes", type=click.IntRange(1, 4), default=1, show_default=True, help="Nodes of the cluster.")
@click.option("--files", type=click.IntRange(0), default=1000, show_default=True, help="Small files on each volume.")
@click.option("--keep-volumes", is_flag=True, help="Leave the data volumes in the engine.")
@click.option(
    "--preflight", "target", metavar="NODE", help="Only tell what an upgrade of NODE would lose; exit code 3."
)
@click.option("--rescue", is_flag=True, help="With --preflight: copy it to NODE's /data.")
@click.option("--thorough", is_flag=True, help="With --preflight: read every file, not only those with another time.")
@click.option("--ssh-config", type=click.Path(path_type=Path), help="For ssh:// nodes, as ssh's -F takes it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def upgrade(
    find: Callable[[], Project],
    old: str | None,
    new: str | None,
    images: tuple[str, ...],
    nodes: int,
    files: int,
    keep_volumes: bool,
    target: str | None,
    rescue: bool,
    thorough: bool,
    ssh_config: Path | None,
    as_json: bool,
) -> None:
    """Rehearse an upgrade on containers and prove that /data is kept.

    NODE is a container or ssh://user@host:port; it is compared with the image that it was made from. One that does not
    say which needs --from and --image.
    """
    from kiln.matrix import Matrix

    project = find()
    matrix = Matrix(project, "registry")
    if target is not None:
        _preflight(matrix, target, old, images, ssh_config, as_json=as_json, rescue=rescue, thorough=thorough)
        return
    for option, given in (("--rescue", rescue), ("--thorough", thorough)):
        if given:
            raise KilnError(f"{option} needs a node", fix="name one with --preflight")
    newest = new or matrix.releases()[-1]
    if old is None:
        accepted = matrix.release(newest)[1].upgrades_from
        if not accepted:
            raise KilnError(f"release {newest} accepts no upgrade", where="images/releases", fix="name one with --to")
        old = accepted[-1]
    chosen = matrix.images(old) if "all" in images else images or ("cpu",)
    _rehearse(project, old, newest, tuple(chosen), nodes, files, keep_volumes=keep_volumes, as_json=as_json)


def _preflight(
    matrix: Matrix,
    target: str,
    release: str | None,
    images: tuple[str, ...],
    ssh_config: Path | None,
    *,
    as_json: bool,
    rescue: bool,
    thorough: bool,
) -> None:
    from kiln import losses
    from kiln.losses_place import made_from
    from kiln.store import Store

    if not target:
        raise KilnError("--preflight names no node", fix="name a container or ssh://user@host:port")
    if len(images) > 1 or "all" in images:
        raise KilnError("a node was made from one image", fix="name that one, or leave out --image")
    said = made_from(target, ssh_config)
    named = (release or said[0], images[0] if images else said[1])
    if not all(named):
        raise KilnError(
            f"{target} does not say which image it was made from", fix="add --from RELEASE and --image IMAGE"
        )
    if all(said) and named != said:
        raise KilnError(
            f"{target} was made from {'/'.join(said)} and not from {'/'.join(named)}",
            fix="leave out --from and --image",
        )
    workspaces = matrix.resolve(*named).names()["workspaces"]
    report = losses.find_losses(
        target,
        f"deeplearning:{named[0]}-{named[1]}",
        Store.of(matrix.project),
        workspaces=list(workspaces.values()),
        release=named[0],
        ssh_config=ssh_config,
        thorough=thorough,
    )
    click.echo(json.dumps(report.as_data(), indent=1) if as_json else report.as_text())
    if rescue and report.losses:
        place = losses.rescue(target, report, ssh_config=ssh_config)
        click.echo(f"copied to {place}; how to get it back: {place}/RESTORE.md", err=as_json)
    click.get_current_context().exit(report.exit_code())


def _rehearse(
    project: Project,
    old: str,
    new: str,
    images: tuple[str, ...],
    nodes: int,
    files: int,
    *,
    keep_volumes: bool,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from kiln.store import Store
    from kiln.upgrade import Rehearsal

    def tell(line: str) -> None:
        click.echo(line, err=as_json)

    rehearsals = [
        Rehearsal(project, Store.of(project), image, old, new, nodes, files, keep_volumes, tell) for image in images
    ]
    reports = []
    for rehearsal in rehearsals:
        tell(f"{old} → {new}, image {rehearsal.image}, {nodes} node{'s' * (nodes > 1)}")
        report = rehearsal.run()
        reports.append(report)
        for line in report.differences:
            tell(f"  {line}")
        losses = sum(len(node["losses"]) for node in report.losses)
        tell(f"/data {report.verdict}, {report.entries:,} entries compared; {losses} losses outside of it")
        tell(f"report: {rehearsal.folder}/report.html")
    if as_json:
        click.echo(json.dumps([asdict(report) for report in reports], indent=1))
    click.get_current_context().exit(max(report.exit_code for report in reports))
