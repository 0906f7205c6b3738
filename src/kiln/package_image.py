"""Whether the programs that a package runs on a node exist in its image."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from kiln.engine import Engine
from kiln.errors import KilnError

# Runs in the image: of the lines "x PATH", a program, and "r PATH", a file to read, prints the paths that are not that.
_SCRIPT = """
while read -r mode path; do
  if [ ! -f "$path" ] || [ ! -r "$path" ]; then echo "$path"
  elif [ "$mode" = x ] && [ ! -x "$path" ]; then echo "$path"
  fi
done
exit 0
"""
TIMEOUT_S = 120


def missing(reference: str, programs: Iterable[str], scripts: Iterable[str]) -> set[str]:
    """Which of ``programs`` the image cannot run, and which of ``scripts`` it cannot read."""
    engine = Engine()
    engine.check()
    if engine.image_labels(reference) is None:
        raise KilnError(f"there is no image {reference}", fix="bake it first, or name another")
    wanted = [f"x {path}" for path in programs] + [f"r {path}" for path in scripts]
    command = ["docker", "run", "--rm", "--interactive", "--network=none", "--read-only", "--entrypoint=/bin/sh"]
    try:
        run = subprocess.run(
            [*command, reference, "-c", _SCRIPT],
            input="\n".join([*wanted, ""]),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise KilnError(f"did not answer within {TIMEOUT_S} s", where=reference, fix="try again") from None
    if run.returncode:
        said = " ".join(run.stderr.split())[-200:]
        raise KilnError(f"its shell cannot be run ({said})", where=reference, fix="name an image that has /bin/sh")
    return set(run.stdout.splitlines())
