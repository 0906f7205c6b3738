"""``kiln upgrade``: the rehearsal, and the loss report of a live node."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from kiln.errors import KilnError
from kiln.project import Project


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
    ssh_config: Path | None,
    as_json: bool,
) -> None:
    """Rehearse an upgrade on containers and prove that /data is kept.

    NODE is a container or ssh://user@host:port; it is compared with the image that --from and --image name.
    """
    from kiln.matrix import Matrix
    from kiln.tables import read_table

    project = find()
    matrix = Matrix(project, "registry")
    newest = new or matrix.releases()[-1]
    if old is None:
        path = project.images / "releases" / f"{newest}.yml"
        accepted = read_table(path, project.root).data.get("upgrades_from", []) if path.is_file() else []
        if not accepted:
            raise KilnError(f"release {newest} accepts no upgrade", where="images/releases", fix="name one with --to")
        old = accepted[-1]
    chosen = matrix.images(old) if "all" in images else images or ("cpu",)
    if target:
        _preflight(project, target, f"deeplearning:{old}-{chosen[0]}", old, ssh_config, as_json=as_json, rescue=rescue)
        return
    if rescue:
        raise KilnError("--rescue needs a node", fix="name one with --preflight")
    _rehearse(project, old, newest, tuple(chosen), nodes, files, keep_volumes=keep_volumes, as_json=as_json)


def _preflight(
    project: Project, target: str, image: str, release: str, ssh_config: Path | None, *, as_json: bool, rescue: bool
) -> None:
    from kiln import losses
    from kiln.store import Store

    report = losses.find_losses(target, image, Store.of(project), release=release, ssh_config=ssh_config)
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
