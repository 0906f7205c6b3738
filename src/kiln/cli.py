"""The ``kiln`` command: thin; every command's work stands in the module of its noun."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from kiln.errors import KilnError, TerminatedError
from kiln.project import Project, find_project

if TYPE_CHECKING:
    from kiln.artifact import Artifact
    from kiln.matrix import Matrix
    from kiln.plan import Plan
    from kiln.store import Store

DEFAULT_CHANNEL = "registry"


class Commands(click.Group):
    """A group whose every failure a user can cause is one sentence and exit code 2, never a traceback."""

    lazy: Mapping[str, str] = {}
    """Name of a subcommand to ``module:attribute``, imported only when it is wanted: a plan must not pay for them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.lazy[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KilnError as error:
            click.echo(f"kiln: {error}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            # The reader of the output had enough; the interpreter must not try to flush the rest.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(141)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            click.echo(f"kiln: {place}{error.strerror or error}; check its permissions and the free space", err=True)
            ctx.exit(2)
        except (KeyboardInterrupt, TerminatedError) as signalled:
            what, code = ("interrupted", 130) if isinstance(signalled, KeyboardInterrupt) else ("ended by SIGTERM", 143)
            click.echo(f"kiln: {what}; nothing is half done, run the same command again", err=True)
            ctx.exit(code)


class Main(Commands):
    """``kiln`` itself."""

    lazy = {
        "data": "kiln.data_command:data",
        "elf": "kiln.elf_command:elf",
        "guide": "kiln.guide_command:guide",
        "package": "kiln.package_command:package",
        "simulate": "kiln.simulate_command:simulate",
        "upgrade": "kiln.upgrade_command:upgrade",
    }


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kiln", prog_name="kiln")
@click.option("--root", type=click.Path(path_type=Path), help="The checkout to work on (default: the one around you).")
@click.option("--store", type=click.Path(path_type=Path), help="Where downloads and products are kept.")
@click.pass_context
def main(ctx: click.Context, root: Path | None, store: Path | None) -> None:
    """Builds, checks and upgrades the node images of Deep Learning on QingCloud AppCenter."""
    ctx.obj = lambda: find_project(root, store)
    signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, frame: FrameType | None) -> None:
    """Ends as Ctrl-C does: with everything cleaned up that was begun."""
    raise TerminatedError


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose images."""
    for option in (
        click.option("--channel", default=DEFAULT_CHANNEL, show_default=True, help="Where artifacts come from."),
        click.option("--image", "images", multiple=True, help="Only this image; may stand several times."),
        click.option("--release", "releases", multiple=True, help="Default: the newest; all for every one."),
    ):
        command = option(command)
    return command


def make_plan(
    project: Project,
    releases: tuple[str, ...],
    images: tuple[str, ...],
    channel: str,
    *,
    assume_empty: bool = False,
    inputs: bool = False,
) -> Plan:
    """The plan for the chosen images, against what the engine and the store hold, or as if they held nothing.

    With ``inputs`` the products that their roles read are wanted too.
    """
    from kiln.engine import cached_stages
    from kiln.plan import Planner
    from kiln.store import Store

    store = Store.of(project)
    matrix, wanted = _wanted(project, store, releases, images, channel)
    present = frozenset() if assume_empty else frozenset(cached_stages())
    return Planner(project, store, matrix).plan(wanted, present, inputs=inputs)


def _wanted(
    project: Project, store: Store, releases: tuple[str, ...], images: tuple[str, ...], channel: str
) -> tuple[Matrix, list[tuple[str, str]]]:
    """The matrix, and the chosen images of it as (release, image)."""
    from kiln.host_python import can_pack
    from kiln.matrix import Matrix

    matrix = Matrix(project, channel, lambda version: can_pack(version, store))
    wanted = []
    every = matrix.releases()
    for release in every if "all" in releases else releases or every[-1:]:
        known = matrix.images(release)
        for image in images:
            if image not in known:
                raise KilnError(
                    f"image {image!r} is not in release {release}",
                    where=f"images/releases/{release}.yml",
                    fix=f"choose one of {', '.join(known)}",
                )
        wanted += [(release, image) for image in images or known]
    return matrix, wanted


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
@click.option("--inputs", is_flag=True, help="Also get what the images' roles read, to run them again.")
@click.option("--refresh", is_flag=True, help="First lock the packages that the mirrors hold now: all is baked anew.")
@click.pass_obj
def bake(
    find: Callable[[], Project],
    releases: Any,
    images: Any,
    channel: str,
    jobs: int,
    as_json: bool,
    inputs: bool,
    refresh: bool,
) -> None:
    """Build what the plan says is missing."""
    from kiln.engine import stage_tags

    project = find()
    made = make_plan(project, releases, images, channel, inputs=inputs)
    tags = stage_tags()
    if made.missing or inputs or refresh or any(stage.tag not in tags[stage.digest] for stage in made.finals):
        made = _bake(
            project, made, releases, images, channel, jobs=jobs, as_json=as_json, inputs=inputs, refresh=refresh
        )
    if not as_json:
        click.echo("\n".join(f"{stage.tag}  {stage.digest[:12]}" for stage in made.finals))


def _bake(
    project: Project,
    made: Plan,
    releases: tuple[str, ...],
    images: tuple[str, ...],
    channel: str,
    *,
    jobs: int,
    as_json: bool,
    inputs: bool = False,
    refresh: bool = False,
) -> Plan:
    """Fetches and builds what ``made`` lacks; returns the plan that was baked."""
    from kiln import bake as baking
    from kiln import bootstrap, progress
    from kiln.artifacts import fetch
    from kiln.elf_wheels import check_wheels
    from kiln.engine import Engine
    from kiln.store import Store

    store = Store.of(project)
    if made.missing or inputs or refresh:
        if made.missing:
            baking.check_room(made, store, Engine())
        # What is locked at its first fetch changes digests: fetch, then plan again.
        read_again = [artifact for stage in made.chained for _, artifact in stage.artifacts] if inputs else []
        root = made.stages[0]
        fetch(dict.fromkeys([*made.artifacts, *read_again, *(artifact for _, artifact in root.artifacts)]), store)
        base = bootstrap.Base.of(root.variables)
        tarball = store.lookup(root.artifacts[0][1]) if base.kind == "tarball" else None
        lock = bootstrap.refresh_index if refresh else bootstrap.lock_index
        lock(store, base, tarball=tarball)
        made = make_plan(project, releases, images, channel, inputs=inputs)
        matrix, wanted = _wanted(project, store, releases, images, channel)
        for release, image in wanted:
            check_wheels(matrix.resolve(release, image), matrix, store)
    baking.bake(made, project, store, reporter=progress.choose_reporter(as_json=as_json), jobs=jobs)
    return made


def _bundled(context: click.Context, option: click.Option, value: Path | None) -> None:
    """Writes the archive and ends, whatever else was asked."""
    from kiln.bundle import FOLDER, write_bundle

    if value is not None:
        write_bundle(context.obj(), value)
        click.echo(f"on the node: tar -xzf {value.name} && {FOLDER}/run")
        context.exit()


@main.command()
@click.argument("target")
@click.option(
    "--bundle",
    metavar="FILE",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_bundled,
    help="Only write kiln and all it needs there, to run on a node as local.",
)
@click.option("--as", "as_", metavar="RELEASE/IMAGE", help="What to compare with; default: what the target says it is.")
@click.option("--channel", help="Default: what the target says, else registry.")
@click.option("--strict", is_flag=True, help="Substituted counts as failed.")
@click.option("--only", metavar="EXPRESSION", help="Only checks whose name matches, e.g. 'hygiene or manifest'.")
@click.option("--ssh-config", type=click.Path(path_type=Path), help="For ssh:// targets, as ssh's -F takes it.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_obj
def verify(
    find: Callable[[], Project],
    target: str,
    as_: str | None,
    channel: str | None,
    strict: bool,
    only: str | None,
    ssh_config: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Check TARGET: an image, a running container, ssh://user@host:port, or local.

    Exit code 0: passed or substituted; 1: something failed; 2: could not run.
    """
    from kiln import verify as verifying

    if junit is not None and (junit.is_dir() or not junit.absolute().parent.is_dir()):
        raise KilnError("cannot be written", where=str(junit), fix="name a file in a folder that exists for --junit")

    def told(check: verifying.Check) -> None:
        if not as_json:
            click.echo(f"{check.verdict:<12}{check.check} ({check.seconds:.1f} s)")

    report = verifying.verify(find(), target, as_=as_, channel=channel, only=only, ssh_config=ssh_config, told=told)
    click.echo(json.dumps(report.as_data(), indent=1) if as_json else "\n" + verifying.as_text(report))
    if junit is not None:
        junit.write_text(verifying.as_junit(report), encoding="utf-8")
    sys.exit(report.exit_code(strict=strict))


@main.command()
@click.argument("image", metavar="[RELEASE/]IMAGE")
@click.option("--channel", default=DEFAULT_CHANNEL, show_default=True, help="The channel it was baked on.")
@click.option("--sample", type=click.IntRange(1), help="Only so many, others each day.")
@click.option("--only", metavar="TEXT", help="Only mutations with TEXT in their name.")
@click.option("--jobs", type=click.IntRange(1, 64), default=os.cpu_count() or 1, show_default="cores")
@click.pass_obj
def mutate(
    find: Callable[[], Project], image: str, channel: str, sample: int | None, only: str | None, jobs: int
) -> None:
    """Break a baked image in one way at a time and show which check finds it (exit code 1: one was not found)."""
    from datetime import UTC, datetime

    from kiln import mutate as mutating
    from kiln.matrix import Matrix

    project = find()
    release, _, name = image.rpartition("/")
    matrix = Matrix(project, channel)
    spec = matrix.resolve(release or matrix.releases()[-1], name)
    chosen = [mutation for mutation in mutating.read_mutations(spec) if (only or "") in mutation.name]
    if sample is not None:
        chosen = mutating.sample(chosen, sample, datetime.now(UTC).date().isoformat())

    def told(outcome: mutating.Outcome) -> None:
        word = "caught" if outcome.caught else "MISSED"
        click.echo(f"{word}  {outcome.mutation.name} ({outcome.seconds:.1f} s): {outcome.said}")

    outcomes = mutating.mutate(project, f"deeplearning:{spec.release}-{spec.image}", chosen, jobs=jobs, told=told)
    missed = sum(not outcome.caught for outcome in outcomes)
    click.echo(f"{len(outcomes) - missed} caught, {missed} missed")
    sys.exit(1 if missed or not outcomes else 0)


@main.command()
@selection
@click.option("--size", is_flag=True, required=True, help="How large the images are, and what dominates.")
@click.option("--json", "as_json", is_flag=True, help="Print bytes as JSON.")
@click.pass_obj
def report(find: Callable[[], Project], releases: Any, images: Any, channel: str, size: bool, as_json: bool) -> None:
    """Tell about the baked images."""
    from kiln import sizes
    from kiln.engine import Engine

    made = make_plan(find(), releases, images, channel)
    if made.missing:
        raise KilnError(f"{len(made.missing)} stages are not baked", fix="run kiln bake first")
    engine = Engine()
    layers = {
        stage.tag: [sizes.Layer(*layer) for layer in engine.layers(stage.reference)]
        for stage in made.finals
        if stage.tag
    }
    click.echo(json.dumps(sizes.as_data(layers), indent=1) if as_json else sizes.as_text(layers))


@main.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.pass_obj
def gc(find: Callable[[], Project], dry_run: bool) -> None:
    """Remove stages, products, downloads, baselines and logs that nothing leads to any more; finished images stay."""
    from kiln import gc as collecting
    from kiln.engine import Engine
    from kiln.lock import bake_lock
    from kiln.store import Store

    project = find()
    store = Store.of(project)
    store.root.mkdir(parents=True, exist_ok=True)
    with bake_lock(store.root / "bake.lock", lambda holder: click.echo(f"waiting for {holder or 'a bake'}")):
        stages: set[str] = set()
        blobs: set[str] = set()
        for path in sorted((project.images / "channels").glob("*.yml")):
            stages |= {stage.digest for stage in make_plan(project, ("all",), (), path.stem).stages}
            known = known_artifacts(project, path.stem)
            blobs |= {sha256 for artifact in known if (sha256 := store.locked_sha256(artifact))}
        rubbish = collecting.find(store, stages, blobs)
        gone = rubbish if dry_run else collecting.remove(rubbish, Engine())
    click.echo(collecting.as_text(gone, "would remove" if dry_run else "removed"))


@main.group(cls=Commands)
def node() -> None:
    """A container of a baked image under systemd: start, stop."""


@node.command("start")
@click.argument("image", metavar="[RELEASE/]IMAGE")
@click.argument("name")
@click.option("--channel", default=DEFAULT_CHANNEL, show_default=True, help="The channel it was baked on.")
@click.option("--work", type=click.Path(path_type=Path), help="Where its roles' inputs are laid out.")
@click.pass_obj
def node_start(find: Callable[[], Project], image: str, name: str, channel: str, work: Path | None) -> None:
    """Boot an image as container NAME; ansible-playbook can run its roles again with what is laid out for them."""
    from kiln import node as nodes
    from kiln.expectations import expected
    from kiln.store import Store

    nodes.check_name(name)
    project = find()
    release, _, only = image.rpartition("/")
    chosen = ((release,) if release else (), (only,), channel)
    made = make_plan(project, *chosen, inputs=True)
    if made.finals[0].state == "cached":
        made = _bake(project, made, *chosen, jobs=os.cpu_count() or 1, as_json=False, inputs=True)
    (named,) = made.finals[0].images
    place = work or project.store / "nodes" / name
    nodes.start(made, expected(project, channel, *named.split("/")), Store.of(project), name, place)
    click.echo(f"{name} is up; its roles: ansible-playbook -c community.docker.docker -i {name}, {place}/converge.yml")


@node.command("stop")
@click.argument("name")
@click.option("--work", type=click.Path(path_type=Path), help="As given to start.")
@click.pass_obj
def node_stop(find: Callable[[], Project], name: str, work: Path | None) -> None:
    """Remove the node and what was laid out for it."""
    from kiln import node as nodes

    was = nodes.stop(name, work or find().store / "nodes" / name)
    click.echo(f"{name} is gone" if was else f"there is no node {name}")


@main.group(cls=Commands)
def artifacts() -> None:
    """The files from outside: list, fetch, verify, lock."""


def known_artifacts(project: Project, channel: str) -> list[Artifact]:
    """Every artifact of a channel, the Python packages included."""
    from kiln.matrix import Matrix

    return [artifact for group in Matrix(project, channel).groups.values() for artifact in group]


@artifacts.command("list")
@click.option("--channel", default=DEFAULT_CHANNEL, show_default=True)
@click.pass_obj
def artifacts_list(find: Callable[[], Project], channel: str) -> None:
    """Show every artifact, and whether the store holds it."""
    from kiln.store import Store

    project = find()
    store = Store.of(project)
    rows = [("GROUP", "FILE", "FROM", "SIZE", "STATE")]
    for artifact in known_artifacts(project, channel):
        path = store.lookup(artifact)
        size = f"{path.stat().st_size / 1e6:.1f} MB" if path else ""
        state = "stored" if path else "missing" if store.locked_sha256(artifact) else "locked at first fetch"
        rows.append((artifact.group, artifact.file, artifact.origin, size, state))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@artifacts.command("fetch")
@selection
@click.pass_obj
def artifacts_fetch(find: Callable[[], Project], releases: Any, images: Any, channel: str) -> None:
    """Fetch what the images need and the store lacks; again after a failure, it goes on."""
    from kiln.artifacts import fetch
    from kiln.store import Store

    project = find()
    made = make_plan(project, releases, images, channel, assume_empty=True)
    fetch(made.artifacts, Store.of(project))


@artifacts.command("verify")
@click.option("--channel", default=DEFAULT_CHANNEL, show_default=True)
@click.pass_obj
def artifacts_verify(find: Callable[[], Project], channel: str) -> None:
    """Read every stored artifact again; damaged ones are moved aside (exit code 1)."""
    from kiln.artifacts import verify
    from kiln.store import Store

    project = find()
    damaged = verify(known_artifacts(project, channel), Store.of(project), click.echo)
    click.echo(f"{damaged} damaged" if damaged else "all stored artifacts are what they were")
    sys.exit(1 if damaged else 0)


@artifacts.command("lock")
@click.option("--check", is_flag=True, help="Only say where lock and pins disagree (exit code 1).")
@click.pass_obj
def artifacts_lock(find: Callable[[], Project], check: bool) -> None:
    """Lock the files that the Python pins lead to, by asking the machine's index."""
    from kiln import wheels
    from kiln.index import Index
    from kiln.matrix import read_components

    project = find()
    _, facts = read_components(project)
    if check:
        wrong = wheels.check_lock(project, facts)
        for line in wrong:
            click.echo(line)
        sys.exit(1 if wrong else 0)
    text = wheels.make_lock(wheels.wanted_pins(project, facts), Index())
    path = project.images / "locks" / wheels.LOCK
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    click.echo(f"wrote {project.relative(path)}")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL: eval "$(kiln completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise KilnError(f"no completion for {shell}", fix="choose bash, zsh or fish")
    click.echo(kind(main, {}, "kiln", "_KILN_COMPLETE").source())
