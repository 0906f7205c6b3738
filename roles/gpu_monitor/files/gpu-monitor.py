#!/usr/bin/python
"""Prints what the GPUs of this node do, as one JSON object for the platform's monitor.

Run by the platform as ``/usr/bin/python /opt/dl/gpu-monitor.py``, whatever that Python is: 2.7 and 3, standard library
only. Reads ``nvidia-smi -q -x`` and answers within a second even when that hangs; the exit code is 0 and every key is
there even without a GPU, whose values are 0. What could not be read is told on standard error.

Units: GPUUtil and MemoryUtil %, PowerUsage W, Temperature degrees Celsius, Memory* MiB; all rounded to integers.
"""

from __future__ import print_function

import errno
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

GPUS = 2
"""How many GPUs the package has keys for; the platform's nodes have at most two."""
KEYS = ("GPUUtil", "MemoryUtil", "PowerUsage", "Temperature", "MemoryTotal", "MemoryUsed", "MemoryFree")
COMMAND = ("nvidia-smi", "-q", "-x")
PATHS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/nvidia/bin")
"""Looked through after PATH: the platform passes no environment of the image."""
SECONDS = 0.7
"""How long nvidia-smi may take; the rest of the second is for Python's own start on a busy node and for the parsing."""
MOST_BYTES = 2 * 1024 * 1024
"""Eight GPUs with all their clocks print a fifth of this."""

# Newest first: power_readings became gpu_power_readings with driver 535, which later split the draw in two; nvidia-smi's
# own power.draw is the average where there is one.
POWER = (
    "gpu_power_readings/average_power_draw",
    "gpu_power_readings/instant_power_draw",
    "gpu_power_readings/power_draw",
    "power_readings/power_draw",
)
NUMBER = re.compile(r"\s*(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)(?![0-9.])")
END = b"</nvidia_smi_log>"
UNPRINTABLE = re.compile("[^ -~]")
# nvidia-smi does not escape the names of processes, so these parts need not be XML; none of them is wanted here.
UNESCAPED = ("processes", "accounted_processes")


class MonitorError(Exception):
    """No GPU answers; the text says why."""


def now():
    """Seconds on a clock that nobody sets."""
    return os.times()[4]


def main():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    note = ""
    values = {}
    try:
        values, note = parse(read())
    except MonitorError as error:
        note = str(error)
    except Exception as error:  # whatever it is, the platform takes nothing but JSON
        note = repr(error)
    write(1, json.dumps(complete(values), sort_keys=True))
    if note:
        write(2, "gpu-monitor: " + UNPRINTABLE.sub("?", note))


def leave(number, frame):
    """Ends with nvidia-smi, rather than leaving it behind."""
    raise SystemExit(128 + number)


def write(descriptor, text):
    # Not print: an output that nobody reads any more must not end in a traceback.
    try:
        os.write(descriptor, text.encode("ascii") + b"\n")
    except OSError:
        return


def complete(values):
    """``values`` with every key of the package, 0 where no GPU answers."""
    names = ["%s_%d" % (key, gpu + 1) for gpu in range(GPUS) for key in KEYS]
    return {name: values.get(name, 0) for name in names}


def read():
    """What nvidia-smi prints; raises MonitorError when it cannot be run, hangs or fails."""
    deadline = now() + SECONDS
    process = start()
    ended = False
    try:
        output, ended = collect(process, deadline)
    finally:
        if not ended:
            # Without waiting: a process that hangs in the driver is not to be killed, and would never be waited for.
            kill(process.pid)
    code = process.poll()
    if code is None and not output:
        raise MonitorError("nvidia-smi did not answer within %.1f s" % SECONDS)
    if code:
        raise MonitorError("nvidia-smi failed with exit code %d: %s" % (code, first_line(output)))
    return output


def start():
    """nvidia-smi in a process group of its own, so that what it starts can be ended with it."""
    given = os.environ.get("PATH")
    path = os.pathsep.join(([given] if given else []) + list(PATHS))
    failure = None
    with open(os.devnull, "r+b") as nothing:
        try:
            return subprocess.Popen(
                COMMAND,
                stdin=nothing,
                stdout=subprocess.PIPE,
                stderr=nothing,
                env=dict(os.environ, LC_ALL="C", PATH=path),
                preexec_fn=os.setsid,
            )
        except OSError as error:
            failure = error
    raise MonitorError("nvidia-smi cannot be run (%s)" % os.strerror(failure.errno or 0))


def collect(process, deadline):
    """What ``process`` prints until ``deadline``, and whether it has closed its output and ended by then."""
    chunks = []
    size = 0
    descriptor = process.stdout.fileno()
    while size < MOST_BYTES:
        exited = process.poll() is not None
        left = deadline - now()
        if left <= 0:
            break
        try:
            # Short turns: a process may end and leave its output open in a child.
            ready, _, _ = select.select([descriptor], [], [], 0 if exited else min(left, 0.05))
        except (OSError, select.error) as error:
            if error.args[0] == errno.EINTR:
                continue
            raise
        if ready:
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return b"".join(chunks), wait(process, deadline)
            chunks.append(chunk)
            size += len(chunk)
        elif exited:
            break
    return b"".join(chunks), False


def wait(process, deadline):
    """Whether ``process``, which has closed its output, ends before ``deadline``."""
    while process.poll() is None:
        if now() >= deadline:
            return False
        select.select([], [], [], 0.005)
    return True


def kill(group):
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:  # it has ended
        return


def first_line(output):
    lines = output.decode("ascii", "replace").strip().splitlines()
    # Python 2 makes no message of an exception whose text is not ASCII.
    return UNPRINTABLE.sub("?", lines[0][:200]) if lines else "no output"


def parse(output):
    """The values by key from nvidia-smi's XML, and a note where it holds more GPUs than there are keys for."""
    document = without_processes(output)
    # Entities could make a short answer endless, and nvidia-smi defines none; an answer without its end takes Python 2.7
    # seconds to parse when it is long.
    whole = document.rstrip().endswith(END) and b"<!ENTITY" not in document
    root = read_xml(document) if whole else None
    if root is None:
        raise MonitorError("nvidia-smi's answer is no XML: %s" % first_line(output))
    gpus = root.findall("gpu")
    if not gpus:
        raise MonitorError("nvidia-smi lists no GPU")
    values = {}
    for index, gpu in enumerate(gpus[:GPUS]):
        for key, value in measure(gpu).items():
            values["%s_%d" % (key, index + 1)] = value
    note = "%d GPUs, told about the first %d" % (len(gpus), GPUS) if len(gpus) > GPUS else ""
    return values, note


def without_processes(document):
    """``document`` less the lists of processes."""
    for name in UNESCAPED:
        opening, closing = ("<%s>" % name).encode("ascii"), ("</%s>" % name).encode("ascii")
        kept = []
        place = 0
        while True:
            begin = document.find(opening, place)
            end = document.find(closing, begin) if begin >= 0 else -1
            if end < 0:
                break
            kept.append(document[place:begin])
            place = end + len(closing)
        document = b"".join(kept) + document[place:]
    return document


def read_xml(document):
    """The root element; None where it is no XML."""
    try:
        return ElementTree.fromstring(document)
    except (ElementTree.ParseError, ValueError, LookupError):
        return None


def measure(gpu):
    """One GPU's values by name."""
    total = amount(gpu, "fb_memory_usage/total")
    used = amount(gpu, "fb_memory_usage/used")
    return {
        "GPUUtil": amount(gpu, "utilization/gpu_util"),
        # utilization/memory_util is how busy the memory's bus is, not how full the memory is.
        "MemoryUtil": min(100, rounded(100.0 * used / total)) if total else 0,
        "PowerUsage": amount(gpu, *POWER),
        "Temperature": number(gpu, "temperature/gpu_temp"),
        "MemoryTotal": total,
        "MemoryUsed": used,
        "MemoryFree": amount(gpu, "fb_memory_usage/free"),
    }


def amount(gpu, *paths):
    """What cannot be below 0."""
    return max(0, number(gpu, *paths))


def number(gpu, *paths):
    """The first of ``paths`` that holds a number, rounded; 0 where none does, as with N/A and [Not Supported]."""
    for path in paths:
        found = NUMBER.match(gpu.findtext(path) or "")
        if found:
            return rounded(float(found.group(1)))
    return 0


def rounded(value):
    # The two Pythons' round() differ on halves.
    return int(value + math.copysign(0.5, value))


if __name__ == "__main__":
    main()
    sys.exit(0)
