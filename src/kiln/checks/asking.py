"""Answers of a target's programs: one that is missing or dies finds nothing either, and that proves nothing."""

from __future__ import annotations

import re
from typing import Any

QUIETLY = "-ignore_readdir_race"
"""For find on a target that lives: a file that goes while it looks is no error."""


def lines(run: Any, *, codes: tuple[int, ...] = (0,), blind: bool = False) -> list[str]:
    """What a command wrote, where it ended as it must; with ``blind`` it may tell of what its user may not read."""
    complaints = [line for line in run.stderr.splitlines() if not line.endswith("Permission denied")]
    answered = run.rc in codes or (blind and run.rc == 1 and not complaints)
    assert answered, f"could not be looked at: {' '.join(run.stderr.split()) or f'exit code {run.rc}'}"
    return [line for line in run.stdout.split("\n") if line]


def lacks_module(run: Any, name: str) -> bool:
    """Whether Python ended because it has no module ``name``, and for no other reason."""
    # Python 2 calls the error ImportError and writes the name without quotes.
    return bool(run.rc == 1 and re.search(rf"Error: No module named '?{name}'?$", run.stderr, re.MULTILINE))
