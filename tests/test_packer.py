"""Packer templates that Packer accepts, and runs that can be ended."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from kiln.packer import Build, Packer, hcl, render_templates
from kiln.store import Store
from kiln.tools import find_packer, packer_version

CHECKOUT = Path(__file__).resolve().parent.parent
OURS = "1.6.6"
NEWER = "1.11.2"
"""Not to be had on every machine: what its files say is checked, not run."""


@pytest.fixture
def build(tmp_path: Path) -> Build:
    for name in ("play.yml", "variables.json"):
        (tmp_path / name).write_text("[]", encoding="utf-8")
    return Build(
        parent="kiln/stage:" + "a" * 64,
        container="kiln-x-1",
        mounts=[("/store/a b", "/run/kiln", "ro"), ("/store/out", "/run/kiln/out", "rw")],
        playbook=str(tmp_path / "play.yml"),
        variables=str(tmp_path / "variables.json"),
        ansible_playbook=str(Path(sys.executable).with_name("ansible-playbook")),
        commit='docker commit kiln-x-1 \'LABEL "a"="${HOME} %{b}"\'',
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "packer"
    folder.mkdir()
    return folder


def packer(tmp_path: Path, log: io.StringIO) -> Packer:
    # A run may not write outside the test's folder.
    environment = {**os.environ, "CHECKPOINT_DISABLE": "1", "PACKER_CACHE_DIR": str(tmp_path / "cache")}
    return Packer(find_packer(), environment, tmp_path, log)


def test_packer_accepts_the_template(build: Build, folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in render_templates(CHECKOUT / "templates", folder, build, OURS)] == ["stage.pkr.hcl"]
    code, output, errors = packer(tmp_path, io.StringIO()).validate(str(folder))
    assert code == 0, (output, errors)


def test_packer_accepts_the_template_of_a_build_stage(build: Build, folder: Path, tmp_path: Path) -> None:
    render_templates(CHECKOUT / "templates", folder, replace(build, commit=""), OURS)
    assert "shell-local" not in (folder / "stage.pkr.hcl").read_text(encoding="utf-8")
    code, output, errors = packer(tmp_path, io.StringIO()).validate(str(folder))
    assert code == 0, (output, errors)


def test_validate_can_fail(build: Build, folder: Path, tmp_path: Path) -> None:
    render_templates(CHECKOUT / "templates", folder, replace(build, playbook="/nonexistent.yml"), OURS)
    code, output, errors = packer(tmp_path, io.StringIO()).validate(str(folder))
    assert code != 0
    assert b"nonexistent" in output + errors


@pytest.mark.parametrize("version", ["1.7.0", "1.10.0", NEWER])
def test_newer_packer_gets_pinned_plugins(build: Build, folder: Path, version: str) -> None:
    written = render_templates(CHECKOUT / "templates", folder, build, version)
    assert [path.name for path in written] == ["stage.pkr.hcl", "plugins.pkr.hcl"]
    text = written[1].read_text(encoding="utf-8")
    for plugin in ("docker", "ansible"):
        assert f'source  = "github.com/hashicorp/{plugin}"' in text
    assert text.count('version = "= ') == 2


@pytest.mark.parametrize("version", ["1.6.0", OURS, "1.6.99"])
def test_older_packer_gets_no_plugin_block(build: Build, folder: Path, version: str) -> None:
    render_templates(CHECKOUT / "templates", folder, build, version)
    assert [path.name for path in folder.iterdir()] == ["stage.pkr.hcl"]
    assert "required_plugins" not in (folder / "stage.pkr.hcl").read_text(encoding="utf-8")


def test_the_plugin_block_is_the_reason_for_a_file_of_its_own(build: Build, folder: Path, tmp_path: Path) -> None:
    render_templates(CHECKOUT / "templates", folder, build, NEWER)
    code, output, errors = packer(tmp_path, io.StringIO()).validate(str(folder))
    if packer_version(Store(tmp_path / "store")) == OURS:
        assert code != 0
        assert b"required_plugins" in output + errors


def test_template_refuses_a_missing_value(build: Build, folder: Path, tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(CHECKOUT / "templates" / "packer", templates / "packer")
    stage = templates / "packer" / "stage.pkr.hcl.j2"
    stage.write_text(stage.read_text(encoding="utf-8") + "\n# {{ nothing_of_that_name }}\n", encoding="utf-8")
    with pytest.raises(UndefinedError, match="nothing_of_that_name"):
        render_templates(templates, folder, build, OURS)


@pytest.mark.parametrize(
    ("value", "text"), [('a"b', r'"a\"b"'), ("${x}", '"$${x}"'), ("%{if}", '"%%{if}"'), ("a\\b\n", r'"a\\b\n"')]
)
def test_hcl_quotes(value: str, text: str) -> None:
    assert hcl(value) == text


SLOW = """
source "null" "stage" { communicator = "none" }
build {
  sources = ["source.null.stage"]
  provisioner "shell-local" { inline = ["echo one, two", "sleep 61.7", "echo three"] }
}
"""


def started(log: io.StringIO, words: str) -> None:
    deadline = time.monotonic() + 20
    while words not in log.getvalue():
        assert time.monotonic() < deadline, log.getvalue()
        time.sleep(0.05)


def sleepers() -> int:
    """How many of SLOW's sleeps run."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            count += entry.read_bytes() == b"sleep\x0061.7\x00"
        except OSError:
            continue
    return count


def test_output_streams_and_cancel_ends_the_whole_group(folder: Path, tmp_path: Path) -> None:
    (folder / "slow.pkr.hcl").write_text(SLOW, encoding="utf-8")
    log = io.StringIO()
    runner = packer(tmp_path, log)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(runner.build(str(folder), color="false")[0]))
    thread.start()
    started(log, "one, two")
    assert sleepers() == 1
    began = time.monotonic()
    runner.cancel()
    thread.join(20)
    assert not thread.is_alive()
    assert time.monotonic() - began < 10
    assert codes
    assert codes[0] != 0
    assert "three" not in log.getvalue()
    assert sleepers() == 0
    assert runner.cancelled


def test_killed_packer_leaves_no_child(folder: Path, tmp_path: Path) -> None:
    (folder / "slow.pkr.hcl").write_text(SLOW, encoding="utf-8")
    log = io.StringIO()
    runner = packer(tmp_path, log)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(runner.build(str(folder), color="false")[0]))
    thread.start()
    started(log, "one, two")
    assert runner.pid is not None
    os.kill(runner.pid, signal.SIGKILL)
    thread.join(20)
    assert not thread.is_alive()
    assert codes == [-signal.SIGKILL]
    assert sleepers() == 0


def test_errors_come_out_of_machine_readable_output(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.pkr.hcl").write_text(SLOW.replace("echo one, two", "exit 7"), encoding="utf-8")
    runner = packer(tmp_path, io.StringIO())
    code, _, errors = runner.build(str(folder), color="false")
    assert code == 1
    assert b"exit status: 7" in errors
    assert b"PACKER_COMMA" not in errors
