"""The manifest: there, and in agreement with the tables and with what the image holds."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testinfra.host import Host

from kiln.checks.asking import lines

SHA256 = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(scope="module")
def manifest(host: Host, spec: Any) -> dict[str, Any]:
    file = host.file(spec["node"]["paths"]["manifest"])
    assert file.is_file, "there is no manifest"
    assert (file.user, file.mode) == ("root", 0o644)
    loaded: dict[str, Any] = json.loads(file.content_string)
    return loaded


def test_the_manifest_is_of_this_image(manifest: Any, spec: Any) -> None:
    assert (manifest["release"], manifest["image"], manifest["channel"]) == (
        spec["release"],
        spec["image"],
        spec["channel"],
    )


def test_the_manifest_names_every_component_with_source_and_verdict(manifest: Any, spec: Any) -> None:
    assert set(manifest["components"]) == set(spec["manifest"]["components"])
    allowed = {name: [components[name] for components in spec["manifests"]] for name in manifest["components"]}
    assert {
        name: entry
        for name, entry in manifest["components"].items()
        if not any(agree(entry, one) for one in allowed[name])
    } == {}
    for name, entry in manifest["components"].items():
        assert entry["version"], name
        assert entry["source"], name
        assert entry["verdict"] in ("exact", "substituted"), name


def agree(said: dict[str, Any], known: dict[str, Any]) -> bool:
    """Whether an entry says what the tables do; of some checksums they know only that there is one."""
    sums = {file: sha256 or said["sha256"].get(file) for file, sha256 in known["sha256"].items()}
    return bool(said == {**known, "sha256": said["sha256"]} and sums.items() <= said["sha256"].items())


def test_the_manifest_has_a_checksum_of_everything(manifest: Any) -> None:
    for name, entry in manifest["components"].items():
        assert entry["sha256"], name
        assert {file for file, sha256 in entry["sha256"].items() if not SHA256.fullmatch(sha256 or "")} == set(), name


def test_the_manifest_tells_the_substitutions(manifest: Any, spec: Any) -> None:
    assert manifest["substitutions"] == spec["manifest"]["substitutions"]


def test_the_packages_are_those_of_the_manifest(host: Host, manifest: Any) -> None:
    listed = host.run("dpkg-query -W -f '${db:Status-Want} ${db:Status-Status} ${Package} ${Version}\\n'").stdout
    rows = [line.split(" ") for line in listed.splitlines()]
    assert {row[2]: {"version": row[3], "held": row[0] == "hold"} for row in rows if row[1] == "installed"} == manifest[
        "packages"
    ]


# What dpkg was told not to unpack, and the settings, which are an image's own.
OTHERS = r"^missing +/usr/share/(doc|info|locale|man)/|^.{9} c /"


@pytest.mark.privileged
def test_the_packages_files_are_as_they_came(host: Host) -> None:
    # It ends with 1 where it finds one changed.
    changed = [line for line in lines(host.run("dpkg --verify"), codes=(0, 1)) if not re.search(OTHERS, line)]
    assert not changed, f"{len(changed)} changed: {'; '.join(changed[:3])}"


def test_the_distributions_are_those_of_the_manifest(in_workspace: Any, manifest: Any, spec: Any) -> None:
    assert set(manifest["workspaces"]) == set(spec["workspaces"])
    for workspace, distributions in manifest["workspaces"].items():
        listed = in_workspace(
            workspace, "python -m pip list --format=freeze --disable-pip-version-check 2>/dev/null"
        ).stdout
        really = dict(line.split("==") for line in listed.splitlines() if "==" in line)
        assert normalised(really) == normalised(distributions), workspace


def normalised(distributions: dict[str, str]) -> dict[str, str]:
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in distributions.items()}


def test_people_are_told_what_was_substituted(host: Host, manifest: Any) -> None:
    message = host.file("/etc/motd").content_string
    for name in manifest["substitutions"]:
        assert f"Substituted: {name} " in message
