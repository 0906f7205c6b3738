"""Python 2.7 from its pinned source, the way of a machine that has none of its own."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from kiln.artifacts import fetch
from kiln.matrix import Matrix
from kiln.store import file_sha256
from stage_container import PROJECT, STORE, baked_plan, named, started, supplied

SERIES = "2.7"

# What a virtualenv, pip and the tool packages import, each bound to a library of the system.
MODULES = ["bz2", "crypt", "ctypes", "curses", "hashlib", "json", "readline", "sqlite3", "ssl", "zlib"]


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_python_builds_from_its_pinned_source(tmp_path: Path) -> None:
    plan = baked_plan("cpu")
    builder, base, build = named(plan, "builder"), named(plan, "base"), named(plan, "python-build")
    group = Matrix(PROJECT, "registry").groups["python-source"]
    source = next(artifact for artifact in group if f"-{SERIES}." in artifact.file)
    fetch([source], STORE)
    archive = STORE.lookup(source)
    assert archive is not None
    assert file_sha256(archive) == source.sha256

    interpreters = [row for row in build.variables["python_build_interpreters"] if row["series"] == SERIES]
    with supplied(plan, builder, [builder], tmp_path / "build") as target:
        target.shell("mkdir -p /run/source && cat > /run/source/" + source.file, stdin=archive.read_bytes())
        run = target.run_role(
            "python_build",
            python_build_interpreters=interpreters,
            python_build_method="source",
            python_build_artifacts="/run/source",
            python_build_path=build.variables["python_build_path"],
        )
        assert run.code == 0, run.output
    (made,) = (tmp_path / "build" / "out").glob("*.tar")

    probe = f"import json, sys, {', '.join(MODULES)}; print(json.dumps([sys.version.split()[0], sys.maxunicode]))"
    python = f"{build.variables['python_build_path']}/{SERIES}/bin/python{SERIES}"
    with started(base, tmp_path, [(str(made), "/run/python.tar", "ro")]) as target:
        said = target.shell(f"tar -xf /run/python.tar -C / && ldd {python} && {python} -c {shlex.quote(probe)}")
    assert "not found" not in said
    assert json.loads(said.splitlines()[-1]) == [interpreters[0]["version"], 0x10FFFF]
