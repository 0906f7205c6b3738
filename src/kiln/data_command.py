"""``kiln data``: the manifest of a data tree, made and compared."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from kiln.errors import KilnError
from kiln.node_tools import data_manifest


@click.group()
def data() -> None:
    """Make and compare manifests of a data tree.

    On a node without kiln: ssh NODE 'python3 - make /data' < src/kiln/node_tools/data_manifest.py
    """


@data.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write (default: standard output).")
@click.option("--jobs", type=click.IntRange(1), help="Reading processes (default: one per processor, at most 8).")
@click.option("--exclude", multiple=True, metavar="PATH", help="Leave this out, relative to ROOT, with all below.")
@click.option("--one-file-system", is_flag=True, help="Enter nothing that is mounted below ROOT.")
def manifest(
    root: Path, output: Path | None, jobs: int | None, exclude: tuple[str, ...], one_file_system: bool
) -> None:
    """Write the manifest of the tree ROOT; exit code 2 when something could not be read whole."""
    excluded = [os.fsencode(path).strip(b"/") for path in exclude]
    try:
        data_manifest.refuse_inside(os.fsencode(root), os.fsencode(output or ""), excluded, one_file_system)
        with output.open("wb") if output else os.fdopen(os.dup(sys.stdout.fileno()), "wb") as stream:
            entries, errors = data_manifest.make(os.fsencode(root), stream.write, jobs or 0, excluded, one_file_system)
    except data_manifest.ManifestError as error:
        raise KilnError(str(error), fix="name a directory that can be read, and an output outside of it") from None
    if errors:
        raise KilnError(
            f"{errors} of {entries} entries could not be read whole",
            where=str(root),
            fix="look for error in the manifest, and run as root",
        )


@data.command()
@click.argument("before")
@click.argument("after")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def compare(before: str, after: str, as_json: bool) -> None:
    """List what differs between two manifests; exit code 0 when nothing does, 1 when something does."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as stream:
        try:
            different = data_manifest.compare(before, after, stream.write, as_json)
        except data_manifest.ManifestError as error:
            raise KilnError(str(error), fix="make the manifest again") from None
    if different:
        click.get_current_context().exit(1)
