"""Where a project's files stand, and where kiln keeps what it downloads and builds."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kiln.errors import KilnError


@dataclass(frozen=True)
class Project:
    """One checkout: tables, roles, playbooks and templates under ``root``; downloads and products under ``store``."""

    root: Path
    store: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def roles(self) -> Path:
        return self.root / "roles"

    @property
    def playbooks(self) -> Path:
        return self.root / "playbooks"

    @property
    def templates(self) -> Path:
        return self.root / "templates"

    @property
    def revision(self) -> str:
        """Git's name of the checked-out commit, with -modified where files differ from it; unknown without Git."""
        command = ["git", "-C", str(self.root), "describe", "--always", "--abbrev=40", "--exclude=*"]
        run = subprocess.run(
            [*command, "--dirty=-modified"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return run.stdout.strip() or "unknown"

    def relative(self, path: Path) -> str:
        """``path`` as a user names it: relative to the project where it stands inside it."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def find_project(root: Path | None = None, store: Path | None = None) -> Project:
    """The project at ``root``, else ``$KILN_ROOT``, else the nearest folder above that holds ``images/stages.yml``.

    The store is ``store``, else ``$KILN_STORE``, else ``$XDG_CACHE_HOME/kiln``, else ``~/.cache/kiln``.
    """
    wanted = root or (Path(os.environ["KILN_ROOT"]) if os.environ.get("KILN_ROOT") else None)
    candidates = [wanted.resolve()] if wanted else [Path.cwd(), *Path.cwd().parents]
    for candidate in candidates:
        if (candidate / "images" / "stages.yml").is_file():
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            return Project(candidate, store or Path(os.environ.get("KILN_STORE") or cache / "kiln"))
    raise KilnError(
        "no images/stages.yml here or in a folder above",
        where=str(candidates[0]),
        fix="run kiln inside a checkout, or name one with --root or KILN_ROOT",
    )
