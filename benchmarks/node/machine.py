"""Tells what the image runs on, and what it says of itself; runs inside the image, on its Python 3.6.

``machine.py MANIFEST`` prints a line ``RESULT {…}``. What /proc tells here is the machine's, not the container's.
"""

import json
import os
import re
import sys
from pathlib import Path


def read(path: str) -> str:
    """A file's text."""
    return Path(path).read_text(encoding="utf-8")


def main() -> None:
    """Reads and prints."""
    model = re.search(r"^model name\s*: (.+)$", read("/proc/cpuinfo"), re.MULTILINE)
    vendor = re.search(r"^vendor_id\s*: (.+)$", read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", read("/proc/meminfo"), re.MULTILINE)
    found = {
        "processor": model.group(1) if model else "unknown processor",
        "vendor": vendor.group(1) if vendor else "unknown vendor",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": int(memory.group(1)) / 2**20 if memory else 0.0,
        "load": float(read("/proc/loadavg").split()[0]),
        "manifest": json.loads(read(sys.argv[1])),
    }
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
