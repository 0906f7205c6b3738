"""``kiln guide``: the user guide, typed into nodes of the images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kiln.project import Project

if TYPE_CHECKING:
    from kiln.verify import Report


@click.command()
@click.option("--release", help="Default: the newest.")
@click.option(
    "--image", "images", multiple=True, help="cpu, cuda80, cuda91 or all; may stand several times. Default: cpu."
)
@click.option("--channel", help="Default: what the images say; of --docs: registry.")
@click.option("--quick", is_flag=True, help="Leave out what takes long, as training.")
@click.option("--only", metavar="ID", help="Only this block of images/guide.yml, as tensorboard.")
@click.option("--docs", is_flag=True, help="Only write docs/guide.*.md anew.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@click.pass_obj
def guide(
    find: Callable[[], Project],
    release: str | None,
    images: tuple[str, ...],
    channel: str | None,
    quick: bool,
    only: str | None,
    docs: bool,
    as_json: bool,
) -> None:
    """Type every command of the user guide into a node, as its user, and tell what became of it.

    Exit code 0: passed or substituted; 1: something failed, or nothing could be typed; 2: could not run.
    """
    from rich.console import Console

    from kiln.guide import read_guide
    from kiln.guide_run import Runner, baked_on, choose, image_of
    from kiln.matrix import Matrix
    from kiln.verify import Check

    project = find()
    matrix = Matrix(project, channel or "registry")
    wanted = release or matrix.releases()[-1]
    named = [matrix.resolve(wanted, image) for image in images if image != "all"]
    if docs:
        from kiln.guide_docs import write_docs

        for path in write_docs(project, matrix.channel.name):
            click.echo(f"wrote {project.relative(path)}")
        return
    if "all" in images or not images:
        named = [matrix.resolve(wanted, image) for image in (matrix.images(wanted) if images else ["cpu"])]
    channels = [baked_on(image_of(spec), channel or "") for spec in named]
    specs = [Matrix(project, on).resolve(wanted, spec.image) for spec, on in zip(named, channels, strict=True)]
    guides = [read_guide(project, spec) for spec in specs]
    groups = [choose(one, only) for one in guides]
    begun = time.monotonic()
    reports = []
    with Console(stderr=True).status("") as status:
        for one, group in zip(guides, groups, strict=True):
            image = one.spec.image

            def tell(check: Check, image: str = image) -> None:
                minutes, seconds = divmod(int(time.monotonic() - begun), 60)
                reason = f" ({check.reason})" if check.verdict in ("failed", "not run") else ""
                line = f"[{minutes:3}:{seconds:02}] {image:<7} {check.verdict:<12}{check.check}{reason}"
                click.echo(line, err=as_json)

            def show(name: str, image: str = image) -> None:
                status.update(f"{image}: {name}")

            reports.append(Runner(project, one, quick, tell, show).run(group))
    click.echo(json.dumps([report.as_data() for report in reports], indent=1) if as_json else "\n" + as_text(reports))
    click.get_current_context().exit(max(report.exit_code() for report in reports))


def as_text(reports: list[Report]) -> str:
    """One line for each command with its verdict on every image, then the numbers."""
    names = list(dict.fromkeys(check.check.partition(": ")[0] for report in reports for check in report.checks))
    verdicts = [{check.check.partition(": ")[0]: check.verdict for check in report.checks} for report in reports]
    width = max((len(name) for name in names), default=0)
    head = " ".join(f"{report.image.rpartition('/')[2]:<12}" for report in reports)
    lines = [f"{'':<{width}}  {head}".rstrip()]
    for name in names:
        row = " ".join(f"{found.get(name, ''):<12}" for found in verdicts)
        lines.append(f"{name:<{width}}  {row}".rstrip())
    for report in reports:
        counts = report.counts()
        told = ", ".join(
            f"{counts.get(verdict, 0)} {verdict}" for verdict in ("passed", "failed", "substituted", "not run")
        )
        lines.append(f"{report.target}: {told}")
    return "\n".join(lines)
