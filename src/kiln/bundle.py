"""What ``kiln verify local`` needs, in one archive: a node has Python and nothing else of it."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kiln.errors import KilnError
from kiln.project import Project

FOLDER = "kiln-verify"
"""Top of the archive."""

PARTS = ("images", "playbooks", "roles", "templates", "src/kiln")
"""What of a checkout the checks and their tables read."""

NEEDED = ("click", "jinja2", "msgspec", "packaging", "pyelftools", "pytest", "pytest-testinfra", "pyyaml")
"""The distributions that the checks import."""

# Extensions among the packages are for this very Python.
RUN = """#!/bin/sh
# Checks the node that runs this; words go to kiln verify local.
here=$(cd "$(dirname "$0")" && pwd) || exit 2
version={series}
for python in /usr/bin/python3 /usr/bin/python$version; do
  if "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
    export KILN_ROOT="$here" KILN_STORE="$here/store" PYTHONPATH="$here/src:$here/packages" PYTHONDONTWRITEBYTECODE=1
    exec "$python" -c "from kiln.cli import main; main(prog_name='kiln')" verify local "$@"
  fi
done
echo "this node has no /usr/bin/python$version; check it with kiln verify ssh://user@host from another machine" >&2
exit 2
"""


def write_bundle(project: Project, path: Path) -> None:
    """Writes the archive, gzipped; raises KilnError where it cannot be written."""
    try:
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            script = tarfile.TarInfo(f"{FOLDER}/run")
            text = RUN.format(series=f"{sys.version_info[0]}.{sys.version_info[1]}").encode("utf-8")
            script.size, script.mode = len(text), 0o755
            archive.addfile(script, io.BytesIO(text))
            for part in PARTS:
                archive.add(project.root / part, f"{FOLDER}/{part}", filter=_plain)
            for found in _distributions():
                for place, file in _files(found):
                    archive.add(file, f"{FOLDER}/packages/{place}", recursive=False, filter=_plain)
    except OSError as error:
        raise KilnError(f"cannot be written ({error.strerror})", where=str(path), fix="name another file") from None


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without what Python compiled; root's, for all to read."""
    if "__pycache__" in member.name:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _distributions() -> list[Distribution]:
    """kiln's own names, and all that what it needs for a verification leads to."""
    found: dict[str, Distribution] = {"kiln": distribution("kiln")}
    wanted = list(NEEDED)
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name not in found:
            found[name] = distribution(name)
            requirements = (Requirement(line) for line in found[name].requires or ())
            wanted += [need.name for need in requirements if need.marker is None or need.marker.evaluate({"extra": ""})]
    return list(found.values())


def _files(found: Distribution) -> Iterator[tuple[str, Path]]:
    """A distribution's modules and metadata, not its programs: where they belong, and where they are."""
    for file in found.files or ():
        # kiln itself may be installed as a link to a checkout, whose files are PARTS.
        if ".." not in file.parts and "__editable__" not in file.name and Path(str(file.locate())).is_file():
            yield file.as_posix(), Path(str(file.locate()))
