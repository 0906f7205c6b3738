#!/usr/bin/env python3
"""Says what a node has beside its files, and copies files to the data volume. One file; any Python from 2.7 or 3.5 on.

    losses.py facts VIRTUALENV...        packages, distributions, processes and the data volume, as JSON; reads only
    losses.py resolve < REQUEST          digests of files, files of packages and distributions, as JSON; reads only
    losses.py rescue < REQUEST           copies files below /data; says where, as JSON

Paths are written as in a data tree's manifest: bytes that are no printable ASCII, and % " \\ are %XX.
"""

from __future__ import absolute_import, print_function

import binascii
import errno
import glob
import hashlib
import itertools
import json
import os
import re
import stat
import subprocess
import sys

MYPY = False
if MYPY:  # only the type checker reads this: Python 2 has no typing module
    import typing

    Facts = dict[str, typing.Any]

DATA = b"/data"
LEAST_FREE = 64 << 20
"""Bytes that a rescue leaves free: a full volume harms more than what it would save."""
ARGUMENTS = 1 << 16
"""Bytes of paths that one cp gets: execve(2) takes 128 KiB at least."""
FIRST_PERSON = 1000
"""adduser(8): users from this number on are people; below are the system's."""
NOBODY = 65534
PEOPLES = re.compile(b"/(root|home/[^/]+|data)(/|$)")
"""Where people work; a Python that root runs elsewhere is the system's."""
DEEPEST = 4
"""Folders between /data and a virtualenv."""

QUIET = frozenset(
    (
        "agetty",
        "bash",
        "dash",
        "dbus-daemon",
        "fish",
        "gpg-agent",
        "init",
        "login",
        "sh",
        "sleep",
        "ssh",
        "sshd",
        "sshd-session",
        "sftp-server",
        "ssh-agent",
        "su",
        "sudo",
        "systemd",
        "(sd-pam)",
        "tail",
        "zsh",
    )
)
"""Programs that hold no work of anybody by themselves."""


def quoted(raw):
    # type: (bytes) -> str
    """A path of any bytes as printable ASCII."""
    return "".join(
        chr(code) if 32 <= code < 127 and code not in (34, 37, 92) else "%%%02X" % code for code in bytearray(raw)
    )


def unquoted(path):
    # type: (str) -> bytes
    """The bytes that ``quoted`` wrote."""
    return re.sub(b"%([0-9A-F]{2})", lambda found: binascii.unhexlify(found.group(1)), path.encode("ascii"))


def read(path):
    # type: (bytes | str) -> bytes
    """A file's content, empty where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as stream:
        try:
            return stream.read()
        except (IOError, OSError):  # a process that ended just now
            return b""


# Facts


def packages():
    # type: () -> dict[str, str]
    """Installed Debian packages to their versions."""
    found = {}
    for block in read("/var/lib/dpkg/status").decode("utf-8", "replace").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if re.match(r"(Package|Status|Version): ", line)
        )
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields.get("Version", "")
    return found


def automatic():
    # type: () -> list[str]
    """Packages that came with others only: apt_mark(8)."""
    text = read("/var/lib/apt/extended_states").decode("utf-8", "replace")
    return sorted(set(re.findall(r"^Package: (\S+)\nArchitecture: \S+\nAuto-Installed: 1$", text, re.MULTILINE)))


def site_packages(environment):
    # type: (str) -> list[str]
    return sorted(glob.glob(environment + "/lib/python*/site-packages"))


def distributions(environment):
    # type: (str) -> dict[str, list[str]]
    """Distributions of a virtualenv, names as pip compares them: [version, metadata's path, where it is developed]."""
    found = {}
    for folder in site_packages(environment):
        for name in sorted(os.listdir(folder)):
            path = folder + "/" + name
            match = re.match(r"(.+?)-([^-]+?)(-py[\d.]+)?\.(dist-info|egg-info)$", name)
            if match:
                found[canonical(match.group(1))] = [match.group(2), path, ""]
            elif name.endswith(".egg-link"):
                place = read(path).decode("utf-8", "replace").split("\n")[0]
                found[canonical(name[: -len(".egg-link")])] = ["developed", path, place]
    return found


def canonical(name):
    # type: (str) -> str
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def processes():
    # type: () -> list[Facts]
    """Running work of people: their programs but shells and the like, and anybody's notebooks and trainings."""
    found = []
    own = ancestors()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in own:
            continue
        try:
            status = os.stat("/proc/" + name)
            user = status.st_uid
            words = read("/proc/%s/cmdline" % name).rstrip(b"\0").split(b"\0")
        except OSError:
            continue
        if not words[0]:  # the kernel's own
            continue
        folder = working_folder(name, user, status.st_gid)
        person = FIRST_PERSON <= user < NOBODY or is_peoples(words, folder)
        kind = kind_of(words, person)
        if kind:
            command = b" ".join(words).decode("utf-8", "replace")
            told = read("/proc/%s/status" % name).decode("utf-8", "replace")
            memory = re.search(r"^VmRSS:\s+(\d+) kB", told, re.MULTILINE)
            found.append(
                {
                    "pid": int(name),
                    "uid": user,
                    "kind": kind,
                    "command": command[:500],
                    "cwd": quoted(folder),
                    "memory": int(memory.group(1)) * 1024 if memory else 0,
                }
            )
    return sorted(found, key=lambda process: int(process["pid"]))


def working_folder(process, user, group):
    # type: (str, int, int) -> bytes
    """Where a process works; empty where nobody may know.

    Root without CAP_SYS_PTRACE, as in a container, may not read it, but the process's own user may: ptrace(2).
    """
    link = ("/proc/%s/cwd" % process).encode("ascii")
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(group)
                os.setuid(user)
            os.write(sink, os.readlink(link))
        finally:
            os._exit(0)
    os.close(sink)
    with os.fdopen(source, "rb") as stream:
        found = stream.read()
    os.waitpid(child, 0)
    return found


def ancestors():
    # type: () -> set[int]
    """This process and all that it comes from."""
    found = set()
    pid = os.getpid()
    while pid > 0:
        found.add(pid)
        match = re.search(r"^PPid:\s+(\d+)", read("/proc/%d/status" % pid).decode("utf-8", "replace"), re.MULTILINE)
        pid = int(match.group(1)) if match else 0
    return found


def kind_of(words, person):
    # type: (list[bytes], bool) -> str
    """notebook, training, tensorboard, session or process; empty for what holds no work of anybody.

    ``person``: whether somebody runs it for himself, and not the system.
    """
    names = [os.path.basename(word).decode("utf-8", "replace") for word in words[:3]]
    line = b" ".join(words).decode("utf-8", "replace")
    python = is_python(words)
    if re.match("jupyter", names[0]) or (python and re.search(r"ipykernel|jupyter|\bnotebook\b", line)):
        return "notebook"
    if "tensorboard" in names or "tensorboard.main" in line:
        return "tensorboard"
    if re.match(r"caffe(\.bin)?$", names[0]):
        return "training"
    if not person:
        return ""
    if python:
        return "training"
    if re.match("tmux|screen", names[0].lower()):
        return "session"
    return "" if names[0].lstrip("-").rstrip(":") in QUIET else "process"


def is_peoples(words, folder):
    # type: (list[bytes], bytes) -> bool
    """Whether a Python that the system's users may run too is somebody's, by where it or its program stands."""
    if not is_python(words):
        return False
    return any(PEOPLES.match(path) for path in itertools.chain([folder], words))


def is_python(words):
    # type: (list[bytes]) -> bool
    return bool(re.match(b"i?python[0-9.]*$", os.path.basename(words[0])))


def environments():
    # type: () -> dict[str, str]
    """Virtualenvs below /data to the folder of the Python that each needs; the one itself where it needs no other."""
    found = {}
    for folder, folders, _ in os.walk(DATA):
        python = folder + b"/bin/python"
        if b"bin" in folders and os.path.lexists(python):
            found[quoted(folder)] = quoted(python_of(folder))
            del folders[:]
        elif folder.count(b"/") > DEEPEST:
            del folders[:]
    return found


def python_of(environment):
    # type: (bytes) -> bytes
    told = re.search(b"^home *= *(/.*)$", read(environment + b"/pyvenv.cfg"), re.MULTILINE)
    if told:
        return told.group(1)
    for path in glob.glob(environment + b"/lib/python*/orig-prefix.txt"):  # virtualenv before 20
        return read(path).strip()
    python = environment + b"/bin/python"
    return os.path.dirname(os.path.realpath(python)) if os.path.islink(python) else environment


def volume():
    # type: () -> Facts
    """Space of the data volume in bytes, its inodes, and whether anything is mounted there."""
    try:
        space = os.statvfs(DATA)
    except OSError:
        return {"mounted": False, "free": 0, "inodes": 0}
    return {
        "mounted": os.path.ismount(DATA),
        "free": space.f_bavail * space.f_frsize,
        # A file system that makes inodes as it needs them has none to tell.
        "inodes": space.f_favail if space.f_files else None,
    }


def facts(workspaces):
    # type: (list[str]) -> Facts
    return {
        "packages": packages(),
        "automatic": automatic(),
        "distributions": {workspace: distributions(workspace) for workspace in workspaces},
        "environments": environments(),
        "processes": processes(),
        "volume": volume(),
    }


# Resolve


def digest(path):
    # type: (bytes) -> str | None
    """sha256 of a regular file; none where it cannot be read."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
            found = hashlib.sha256()
            for piece in iter(lambda: stream.read(1 << 20), b""):
                found.update(piece)
    except (IOError, OSError):
        return None
    return found.hexdigest()


def package_files(name):
    # type: (str) -> list[str]
    """What dpkg unpacked of a package."""
    lists = glob.glob("/var/lib/dpkg/info/%s.list" % name) + glob.glob("/var/lib/dpkg/info/%s:*.list" % name)
    return [quoted(line) for path in lists for line in read(path).split(b"\n") if line]


def distribution_files(metadata):
    # type: (str) -> list[str]
    """What pip unpacked of a distribution, by its RECORD or installed-files.txt; the metadata's folder itself."""
    base = os.path.dirname(metadata)
    lines = [line.rsplit(",", 2)[0].strip('"') for line in _lines(metadata + "/RECORD")]
    found = [os.path.normpath(os.path.join(base, line)) for line in lines]
    found += [os.path.normpath(os.path.join(metadata, line)) for line in _lines(metadata + "/installed-files.txt")]
    found += ["%s/%s" % (base, line) for line in _lines(metadata + "/top_level.txt")]
    return [quoted(path.encode("utf-8")) for path in itertools.chain(found, [metadata])]


def _lines(path):
    # type: (str) -> list[str]
    return [line for line in read(path).decode("utf-8", "replace").split("\n") if line]


def resolve(request):
    # type: (Facts) -> Facts
    return {
        "digests": {path: digest(unquoted(path)) for path in request["digests"]},
        "packages": {name: package_files(name) for name in request["packages"]},
        "distributions": {path: distribution_files(path) for path in request["distributions"]},
    }


# Rescue


class RescueError(Exception):
    """Why nothing was rescued, in one sentence."""


def refuse(what):
    # type: (str) -> typing.NoReturn
    """Raises RescueError."""
    raise RescueError(what)


def needed(paths):
    # type: (list[bytes]) -> tuple[int, int]
    """Bytes and inodes that the paths and all below occupy; hard links count once."""
    size = inodes = 0
    seen = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        try:
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                waiting += [path + b"/" + name for name in os.listdir(path)]
        except OSError as error:
            refuse("%s: %s" % (quoted(path), os.strerror(error.errno or 0)))
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            size += status.st_blocks * 512
            inodes += 1
    return size, inodes


def free_name(wanted):
    # type: (bytes) -> bytes
    """``wanted``, or the first of wanted-2, wanted-3 that is not there yet."""
    number = 1
    name = wanted
    while os.path.lexists(name):
        number += 1
        name = wanted + ("-%d" % number).encode("ascii")
    return name


def is_copy(path, copy):
    # type: (bytes, bytes) -> bool
    """Whether ``copy`` is one of ``path`` with all below, files by size and time; what else it holds is no matter."""
    try:
        one, other = os.lstat(path), os.lstat(copy)
        kind = stat.S_IFMT(one.st_mode)
        if (one.st_mode, one.st_uid, one.st_gid) != (other.st_mode, other.st_uid, other.st_gid):
            return False
        if kind == stat.S_IFDIR:
            return all(is_copy(path + b"/" + name, copy + b"/" + name) for name in os.listdir(path))
        if kind == stat.S_IFLNK:
            return os.readlink(path) == os.readlink(copy)
    except OSError:
        return False
    return (one.st_size, one.st_mtime, one.st_rdev) == (other.st_size, other.st_mtime, other.st_rdev)


def rescue(request):
    # type: (Facts) -> Facts
    """Copies ``paths`` below a new folder of /data, with owners, modes, times, xattrs, ACLs, holes and hard links.

    Whole or not at all: everything is copied under another name first. Where an earlier copy holds it all, that is the
    answer. Raises RescueError.
    """
    paths = [unquoted(path) for path in request["paths"]]
    if request["mounted"] and not os.path.ismount(DATA):
        raise RescueError("no volume is mounted at /data: what is copied there would be lost as well")
    for earlier in sorted(glob.glob(DATA + b"/" + unquoted(request["name"]) + b"*")):
        if not earlier.endswith(b".partial") and all(is_copy(path, earlier + path) for path in paths):
            return {"folder": quoted(earlier), "bytes": 0, "files": 0}
    size, inodes = needed(paths)
    space = volume()
    if size + LEAST_FREE > space["free"] or (space["inodes"] is not None and inodes + 100 > space["inodes"]):
        raise RescueError(
            "/data has %d MiB free and the copy needs %d MiB and %d files"
            % (space["free"] >> 20, (size + LEAST_FREE) >> 20, inodes)
        )
    target = free_name(DATA + b"/" + unquoted(request["name"]))
    partial = free_name(target + b".partial")
    os.mkdir(partial, 0o755)
    try:
        for chunk in chunks(paths):
            command = [b"cp", b"--archive", b"--no-clobber", b"--parents", b"--sparse=auto", b"--target-directory"]
            words = list(itertools.chain(command, [partial, b"--"], chunk))
            # There: coreutils 8 look for the attributes of the parents below the working directory.
            copied = subprocess.Popen(words, stderr=subprocess.PIPE, cwd="/")
            said = copied.communicate()[1]
            if copied.returncode:
                raise RescueError("cp: %s" % said.decode("utf-8", "replace").strip().split("\n")[0])
        for name, text in request["texts"].items():
            made = os.open(partial + b"/" + unquoted(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            with os.fdopen(made, "wb") as stream:
                stream.write(text.replace("{folder}", quoted(target)).encode("utf-8"))
        owner = os.stat(DATA)
        os.chown(partial, owner.st_uid, owner.st_gid)
        for name in request["texts"]:
            os.chown(partial + b"/" + unquoted(name), owner.st_uid, owner.st_gid)
        os.rename(partial, target)
    except BaseException:
        subprocess.call(["rm", "-rf", "--", partial])
        raise
    return {"folder": quoted(target), "bytes": size, "files": inodes}


def chunks(paths):
    # type: (list[bytes]) -> typing.Iterator[list[bytes]]
    """The paths in as few portions as arguments of a program may be."""
    chunk = []  # type: list[bytes]
    length = 0
    for path in paths:
        length += len(path) + 9
        if length > ARGUMENTS and chunk:
            yield chunk
            chunk = []
            length = len(path) + 9
        chunk.append(path)
    if chunk:
        yield chunk


def main(words):
    # type: (list[str]) -> int
    try:
        if words[:1] == ["facts"]:
            answer = facts(words[1:])
        elif words == ["resolve"]:
            answer = resolve(json.loads(sys.stdin.read()))
        elif words == ["rescue"]:
            answer = rescue(json.loads(sys.stdin.read()))
        else:
            raise RescueError("say facts, resolve or rescue")
    except RescueError as error:
        sys.stderr.write("losses: %s\n" % error)
        return 2
    except (IOError, OSError) as error:
        full = " (the volume is full)" if error.errno == errno.ENOSPC else ""
        sys.stderr.write("losses: %s: %s%s\n" % (error.filename, error.strerror, full))
        return 2
    sys.stdout.write(json.dumps(answer, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
