"""Times the manifest of a tree beside ``find -type f -print0 | xargs -0 -P2 sha256sum`` on the same tree in one run.

``python benchmarks/data_manifest.py [small] [big] [many]`` prints a table. small: 100,000 files of 100 to 4,080 bytes.
big: 8 files of 256 MiB. many: a million entries, for the memory. The trees are made below $TMPDIR and removed. Each
command runs three times, in turn; the least counts: the machine's noise only ever adds. All is in the page cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kiln.node_tools import data_manifest

MANIFEST = [sys.executable, data_manifest.__file__, "make"]
RUNS = 3


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder that is gone afterwards."""
    made = Path(tempfile.mkdtemp(prefix="kiln-bench-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def seconds(command: str, *words: str) -> float:
    """Wall seconds of a shell command, whose $@ is ``words``, that must succeed."""
    started = time.monotonic()
    subprocess.run(["sh", "-c", command, "sh", *words], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def side_by_side(tree: Path, what: str) -> dict[str, str]:
    """Both over the same tree, in turn."""
    ours, theirs = [], []
    for _ in range(RUNS):
        theirs.append(seconds('find "$1" -type f -print0 | xargs -0 -P2 sha256sum', str(tree)))
        ours.append(seconds('"$@"', *MANIFEST, str(tree)))
    return {
        f"{what}: find, xargs, sha256sum": f"{min(theirs):.2f} s",
        f"{what}: manifest": f"{min(ours):.2f} s",
    }


def small() -> dict[str, str]:
    """100,000 files in 500 directories."""
    with folder() as tree:
        for number in range(500):
            below = tree / f"{number // 20:03}" / f"{number:03}"
            below.mkdir(parents=True)
            for name in range(200):
                (below / f"{name:03}.dat").write_bytes(os.urandom(100 + name * 20))
        return side_by_side(tree, "100,000 small files")


def big() -> dict[str, str]:
    """2 GiB in 8 files."""
    with folder() as tree:
        piece = os.urandom(1 << 20)
        for number in range(8):
            with (tree / f"{number}.dat").open("wb") as stream:
                for _ in range(256):
                    stream.write(piece)
        return side_by_side(tree, "8 files of 256 MiB")


def many() -> dict[str, str]:
    """A million entries: half of them in one directory, a fifth hard links in pairs."""
    with folder() as tree:
        for below, count in (("flat", 500_000), ("deep", 300_000)):
            for number in range(count):
                inside = tree / below if below == "flat" else tree / below / f"{number // 100}"
                if not number or (below == "deep" and not number % 100):
                    inside.mkdir(parents=True)
                os.close(os.open(inside / f"a file with a name of some length {number:07}", os.O_CREAT | os.O_WRONLY))
        for side in "ab":
            (tree / side).mkdir()
        for number in range(100_000):
            os.close(os.open(tree / "a" / f"{number}", os.O_CREAT | os.O_WRONLY))
            (tree / "b" / f"{number}").hardlink_to(tree / "a" / f"{number}")
        manifest = tree.with_suffix(".manifest")
        try:
            started = time.monotonic()
            making = _most_kib([*MANIFEST, str(tree), "-o", str(manifest)])
            took = time.monotonic() - started
            comparing = _most_kib([sys.executable, data_manifest.__file__, "compare", str(manifest), str(manifest)])
            with manifest.open("rb") as stream:
                lines = sum(1 for _ in stream)
        finally:
            manifest.unlink(missing_ok=True)
        return {
            f"{lines - 2:,} entries: manifest": f"{took:.2f} s",
            "its largest process, make": f"{making / 1024:.0f} MiB",
            "its largest process, compare": f"{comparing / 1024:.0f} MiB",
        }


def _most_kib(command: list[str]) -> int:
    """Peak resident memory of the largest process of a command, in KiB."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, text=True)
    return int(done.stdout)


PARTS: dict[str, Callable[[], dict[str, str]]] = {"small": small, "big": big, "many": many}


def main() -> None:
    """Runs the parts named on the command line, else all."""
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"there is no part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    for part in chosen:
        for name, value in PARTS[part]().items():
            print(f"| {name} | {value} |", flush=True)


if __name__ == "__main__":
    main()
