"""One bake at a time: the second waits for the first, says for whom, and needs no clean-up after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kiln.lock import Holder, bake_lock, read_holder

HOLD = """
import sys, time
from pathlib import Path
from kiln.lock import bake_lock
with bake_lock(Path(sys.argv[1]), lambda holder: print("waiting", holder, flush=True)):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that holds the lock at ``path``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_waits_and_says_for_whom(tmp_path: Path) -> None:
    path = tmp_path / "store" / "bake.lock"
    told: list[Holder | None] = []
    with hold(path, 1) as first:
        began = time.monotonic()
        with bake_lock(path, told.append):
            assert time.monotonic() - began > 0.5
            assert first.poll() is not None or first.wait(5) == 0
    assert len(told) == 1
    assert told[0] is not None
    assert told[0].pid == first.pid
    assert str(first.pid) in str(told[0])
    assert told[0].command.startswith("-c")


def test_names_itself_while_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "bake.lock"
    with bake_lock(path, lambda holder: None):
        holder = read_holder(path)
        assert holder is not None
        assert holder.pid == os.getpid()
    assert read_holder(path) is None


def test_killed_holder_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "bake.lock"
    with hold(path, 60) as first:
        first.send_signal(signal.SIGKILL)
        first.wait(5)
        began = time.monotonic()
        with bake_lock(path, lambda holder: pytest.fail(f"waited for {holder}")):
            assert time.monotonic() - began < 1


def test_children_do_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "bake.lock"
    with bake_lock(path, lambda holder: None):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with bake_lock(path, lambda holder: pytest.fail(f"waited for {holder}")):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_damaged_note_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "bake.lock"
    path.write_text("{", encoding="utf-8")
    assert read_holder(path) is None
    with bake_lock(path, lambda holder: None):
        assert read_holder(path) is not None
