"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kiln.project import Project

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need an engine, which take minutes, come first: so no worker ends long after the other."""
    slow = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def root() -> Path:
    """This checkout."""
    return ROOT


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A copy of this checkout's tables, roles and playbooks to break, with an empty store."""
    copy = tmp_path / "project"
    for folder in ("images", "roles", "playbooks", "templates"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True)
    shutil.copy2(ROOT / "ansible.cfg", copy)
    return Project(copy, tmp_path / "store")
