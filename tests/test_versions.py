"""A version is written once: in the tables, and in no role, playbook, template or line of code."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CODE = ("roles", "playbooks", "templates", "src", "Makefile")

DOTTED = re.compile(r"(?<![A-Za-z0-9.])\d+(?:\.\d+){2,}[\w.+-]*")
"""Three numbers and more; ``1.5`` and ``3.6`` are also sizes, sections of standards, and languages."""

HEX = re.compile(r"\b[0-9a-f]{40,64}\b")

PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)

BY_CHANCE = {
    ("templates/packer/plugins.pkr.hcl.j2", "1.1.0"): "the Packer plugin's own, the same as Intel Caffe's",
    ("templates/guide/guide.en.md.j2", "1.7.0"): "what the platform measured its speed with, whatever a release holds",
    ("templates/guide/guide.zh.md.j2", "1.7.0"): "the same",
    ("src/kiln/elf_loader.py", "1.7.0"): "the magic of ld.so's old cache, the same as a TensorFlow's",
}
"""(file, version) that are another thing's version, and whose."""

DESCRIPTIONS = ("description", "short_description")


def walk(value: Any) -> Iterator[str]:
    """Every key and scalar of parsed YAML, as text; what describes is prose."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            if key not in DESCRIPTIONS:
                yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)
    else:
        yield str(value)


def written(path: str, text: str) -> str:
    """``text`` without its comments and descriptions: what a machine reads."""
    if path.endswith((".yml", ".yaml")):
        return "\n".join(walk(list(yaml.safe_load_all(text))))
    if path.endswith(".py"):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        return "\n".join(token.string for token in tokens if token.type != tokenize.COMMENT)
    return re.sub(r"(?m)(^|\s)(#|//).*$", "", text)


def table_versions(root: Path) -> set[str]:
    """Versions and checksums of the tables of components, releases, channels and locks."""
    values = "\n".join(
        text
        for folder in ("components", "releases", "channels", "locks")
        for path in sorted((root / "images" / folder).glob("*.yml"))
        for text in walk(yaml.safe_load(path.read_text(encoding="utf-8")))
    )
    drivers = set(re.findall(r"\b\d{3}\.\d{2}\b", values))
    return {found.rstrip(".-") for found in DOTTED.findall(values)} | set(HEX.findall(values)) | drivers


def pins(root: Path) -> set[tuple[str, str]]:
    """(name, version) of every Python package."""
    return {
        (name, version)
        for path in sorted((root / "images" / "requirements").glob("*.txt"))
        for name, version in PIN.findall(path.read_text(encoding="utf-8"))
    }


def repeated(versions: set[str], pinned: set[tuple[str, str]], text: str) -> set[str]:
    """What of the tables stands in ``text``: a version as a word of its own, a pin with its name beside it."""
    after = r"(?![\w]|\.\d)"
    beside = r"\W{0,3}(?:version)?\W{0,3}"
    return {
        version
        for version in versions
        if version in text and re.search(rf"(?<![A-Za-z0-9.]){re.escape(version)}{after}", text)
    } | {
        f"{name} {version}"
        for name, version in pinned
        if version in text and re.search(rf"(?i)(?<![\w]){re.escape(name)}{beside}{re.escape(version)}{after}", text)
    }


@pytest.fixture(scope="module")
def code(root: Path) -> dict[str, str]:
    """Every tracked file of code by path, without prose."""
    listed = subprocess.run(["git", "ls-files", "-z", *CODE], cwd=root, capture_output=True, text=True, check=True)
    names = [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]
    return {name: written(name, (root / name).read_text(encoding="utf-8")) for name in names}


def test_no_version_of_the_tables_is_written_again(root: Path, code: dict[str, str]) -> None:
    versions, pinned = table_versions(root), pins(root)
    found = {(name, version) for name, text in code.items() for version in repeated(versions, pinned, text)}
    assert found - set(BY_CHANCE) == set()
    assert set(BY_CHANCE) <= found, "an entry of BY_CHANCE is used no more"


def test_the_search_reads_every_kind_of_file_and_value(root: Path, code: dict[str, str]) -> None:
    assert len(code) > 100
    versions = table_versions(root)
    lock = (root / "images" / "locks" / "wheels.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"sha256: ([0-9a-f]{64})", lock)) <= versions
    components = yaml.safe_load((root / "images" / "components" / "tensorflow.yml").read_text(encoding="utf-8"))
    assert set(components["versions"]) <= versions
    assert len(pins(root)) > 50


@pytest.mark.parametrize(
    ("path", "text", "repeats"),
    [
        ("roles/a/defaults/main.yml", "a_version: 1.8.0", {"1.8.0"}),
        ("roles/a/defaults/main.yml", "a: {'1.8.0': 'cudnn-387.26'}", {"1.8.0", "387.26"}),
        ("roles/a/tasks/main.yml", "- name: Fetch\n  url: http://host/1.8.0/a.tar", {"1.8.0"}),
        ("roles/a/tasks/main.yml", "- pip: {name: ['six==1.11']}", {"six 1.11"}),
        ("roles/a/vars/main.yml", "a: {six: '1.11'}", {"six 1.11"}),
        ("src/kiln/a.py", "A = {'tensorflow': '1.8.0'}", {"1.8.0"}),
        ("src/kiln/a.py", "A = 'six-1.11-py3-none-any.whl'", {"six 1.11"}),
        ("Makefile", "RELEASE := tensorflow-1.8.0-cp36", {"1.8.0"}),
        ("roles/a/defaults/main.yml", "a_source: tensorflow_1.8.0.orig.tar.gz", {"1.8.0"}),
        ("templates/a.j2", f"sha256={'ab' * 32}", {"ab" * 32}),
        ("roles/a/tasks/main.yml", "# as 1.8.0 did\na: 11.8.0\nb: 1.8.0.1\nc: 21.8.0", set()),
        ("roles/a/meta/main.yml", "options: {a: {description: 'Such as 1.8.0'}}", set()),
        ("src/kiln/a.py", "# 1.8.0\nA = 1.11", set()),
        ("roles/a/files/a.sh", "  # 1.8.0\ncd six # 1.11", set()),
    ],
)
def test_the_search_finds_versions_and_no_prose(path: str, text: str, repeats: set[str]) -> None:
    versions = {"1.8.0", "387.26", "ab" * 32}
    assert repeated(versions, {("six", "1.11")}, written(path, text)) == repeats
