"""The release-ids file: what the platform calls the images and app versions of a release."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.errors import KilnError
from kiln.tables import Table, read_table

EXAMPLE = "images/release-ids.example.yml shows how"
# Source: the ids in the platform's developer guide and public apps.
IMAGE = re.compile(r"img-[a-z0-9]{8}")
VERSION = re.compile(r"appv-[a-z0-9]{8}")
ZONE = re.compile(r"[a-z]+[0-9]+[a-z]?")


@dataclass(frozen=True)
class ImageIds:
    """One captured image."""

    id: str
    zone: str


class ReleaseIds:
    """One file, whose entries are checked as they are asked for."""

    def __init__(self, path: Path, root: Path, release: str, upgrades_from: Sequence[str]) -> None:
        if not path.exists():
            raise KilnError(f"{path} does not exist", fix=f"write one: {EXAMPLE}")
        self.table: Table = read_table(path, root)
        self.release = release
        self.older = upgrades_from
        for key in self.table.data:
            if key not in ("release", "images", "upgrades_from"):
                raise KilnError(f"unknown key {key}", where=self.table.where(key), fix=EXAMPLE)
        said = self._wanted("release")
        if said != release:
            raise KilnError(
                f"the ids are those of release {said!r}, not of {release!r}",
                where=self.table.where("release"),
                fix="name the file of the release, or correct the key (a string, in quotes)",
            )

    def image(self, name: str) -> ImageIds:
        """The ids of one image; raises KilnError where they are missing or another image's."""
        keys = ("images", name)
        ids = ImageIds(self._id(IMAGE, *keys, "id"), self._id(ZONE, *keys, "zone"))
        for other, entry in self.table.data["images"].items():
            if other != name and isinstance(entry, dict) and entry.get("id") == ids.id:
                raise KilnError(
                    f"images {name} and {other} have the same id {ids.id}",
                    where=self.table.where(*keys, "id"),
                    fix="write each image's own",
                )
        return ids

    def upgrades_from(self, package: str) -> list[str]:
        """The app versions from which a cluster may be upgraded to ``package``."""
        found: list[str] = []
        for release in self.older:
            keys = ("upgrades_from", release, package)
            versions = self._wanted(*keys)
            if not isinstance(versions, list):
                raise KilnError(f"{'.'.join(keys)} must be a list", where=self.table.where(*keys), fix=EXAMPLE)
            found += [self._id(VERSION, *keys, index) for index in range(len(versions))]
        return found

    def _wanted(self, *keys: str | int) -> Any:
        data = self.table.data
        for key in keys:
            held = data if isinstance(data, dict) else dict(enumerate(data)) if isinstance(data, list) else {}
            if held.get(key) is None:
                raise KilnError(f"{_dotted(keys)} is missing", where=self.table.where(*keys), fix=f"add it: {EXAMPLE}")
            data = held[key]
        return data

    def _id(self, pattern: re.Pattern[str], *keys: str | int) -> str:
        value = self._wanted(*keys)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise KilnError(
                f"{_dotted(keys)} is {value!r}, which is none of the platform's",
                where=self.table.where(*keys),
                fix=f"write what the platform gave it; {EXAMPLE}",
            )
        return value


def _dotted(keys: Sequence[str | int]) -> str:
    return ".".join(f'"{key}"' if "." in str(key) else str(key) for key in keys)
