"""What the tables say of an image, as its checks read it."""

from __future__ import annotations

from typing import Any

from kiln.artifact import Artifact
from kiln.matrix import Matrix
from kiln.project import Project
from kiln.store import Store


def expected(project: Project, channel: str, release: str, image: str) -> dict[str, Any]:
    """The tables' names for an image, and ``manifests``: what its manifest may say of the components.

    A machine that has the Pythons delivers them from there, another from their release tarballs. Which of the two
    verifies an image says nothing about the one that baked it: checksums that only that one knows are none here.
    """
    store = Store.of(project)

    def checksum(artifact: Artifact) -> str | None:
        return None if artifact.origin == "host" else store.locked_sha256(artifact)

    rows = [Matrix(project, channel, has).resolve(release, image) for has in (_has, _has_not)]
    return {**rows[0].names(), "manifests": [row.manifest(checksum)["components"] for row in rows]}


def _has(version: str) -> bool:
    return bool(version)


def _has_not(version: str) -> bool:
    return not version
