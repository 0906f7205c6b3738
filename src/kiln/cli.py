"""The ``kiln`` command: thin; every command's work stands in the module of its noun."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from kiln.errors import KilnError
from kiln.project import Project, find_project

DEFAULT_RELEASE = "1.2"
DEFAULT_CHANNEL = "registry"


class Commands(click.Group):
    """A group whose every failure a user can cause is one sentence and exit code 2, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KilnError as error:
            click.echo(f"kiln: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            click.echo(f"kiln: {place}{error.strerror or error}; check its permissions and the free space", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("kiln: interrupted; nothing is half done, run the same command again", err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("kiln"), prog_name="kiln")
@click.option("--root", type=click.Path(path_type=Path), help="The checkout to work on (default: the one around you).")
@click.option("--store", type=click.Path(path_type=Path), help="Where downloads and products are kept.")
@click.pass_context
def main(ctx: click.Context, root: Path | None, store: Path | None) -> None:
    """Builds, checks and upgrades the node images of Deep Learning on QingCloud AppCenter."""
    ctx.obj = lambda: find_project(root, store)


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose images."""
    for option in (
        click.option("--channel", default=DEFAULT_CHANNEL, show_default=True, help="Where artifacts come from."),
        click.option("--image", "images", multiple=True, help="Only this image; may stand several times."),
        click.option("--release", "releases", multiple=True, default=[DEFAULT_RELEASE], show_default=True),
    ):
        command = option(command)
    return command


def make_plan(project: Project, releases: tuple[str, ...], images: tuple[str, ...], channel: str) -> Any:
    """The plan for the chosen images, against what the engine and the store hold."""
    from kiln.engine import cached_stages
    from kiln.host_python import can_pack
    from kiln.matrix import Matrix
    from kiln.plan import Planner
    from kiln.store import Store

    store = Store.of(project)
    matrix = Matrix(project, channel, lambda version: can_pack(version, store))
    wanted = []
    for release in releases:
        known = matrix.images(release)
        for image in images:
            if image not in known:
                raise KilnError(
                    f"image {image!r} is not in release {release}",
                    where=f"images/releases/{release}.yml",
                    fix=f"choose one of {', '.join(known)}",
                )
        wanted += [(release, image) for image in images or known]
    return Planner(project, store, matrix).plan(wanted, frozenset(cached_stages()))


@main.command()
@selection
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.pass_obj
def plan(find: Callable[[], Project], releases: Any, images: Any, channel: str, as_json: bool) -> None:
    """Show the stages: what is cached, what will be built, why, and the time expected."""
    from kiln.planview import as_data, as_text

    made = make_plan(find(), releases, images, channel)
    click.echo(json.dumps(as_data(made), indent=1, sort_keys=True) if as_json else as_text(made))


@main.command()
@selection
@click.option("--jobs", type=click.IntRange(1, 64), default=os.cpu_count() or 1, show_default="cores")
@click.option("--json", "as_json", is_flag=True, help="Print progress as JSON lines.")
@click.pass_obj
def bake(find: Callable[[], Project], releases: Any, images: Any, channel: str, jobs: int, as_json: bool) -> None:
    """Build what the plan says is missing."""
    from kiln import artifacts, bake, bootstrap, progress
    from kiln.store import Store

    project = find()
    store = Store.of(project)
    made = make_plan(project, releases, images, channel)
    if made.missing:
        reporter = progress.choose_reporter(as_json=as_json)
        root = made.stages[0]
        # What is locked at its first fetch changes digests: fetch, then plan again.
        artifacts.fetch(made.artifacts, store)
        bootstrap.lock_index(store, bootstrap.Base.of(root.variables))
        made = make_plan(project, releases, images, channel)
        bake.bake(made, project, store, reporter=reporter, jobs=jobs)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL: eval "$(kiln completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise KilnError(f"no completion for {shell}", fix="choose bash, zsh or fish")
    click.echo(kind(main, {}, "kiln", "_KILN_COMPLETE").source())
