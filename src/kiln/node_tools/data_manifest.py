#!/usr/bin/env python3
"""Makes the manifest of a data tree and compares two of them. One file; any Python from 2.7 or 3.5 on; Linux.

    data_manifest.py make ROOT > FILE      exit 0; 2 when something could not be read whole (it is told, and in FILE)
    data_manifest.py compare A B [--json]  exit 0 equal, 1 different, 2 could not compare

It only reads: not even access times change where the system lets us leave them (O_NOATIME). FILE must not be below
ROOT, unless it is excluded: it is refused.

The file
--------
ASCII, one JSON object in a line. The same tree gives the same bytes, whatever Python makes
it and however many processes.

1. ``{"format":"kiln-data-manifest","version":1,"content":true,"one_file_system":false,"excluded":[]}``
   ``content`` is false where file contents and extents were left out. ``excluded``: paths that were, with all below.
2. One entry for everything below the root, and for the root itself, whose path is ``.``. They stand in the order of
   their paths compared as bytes with every ``/`` taken as a NUL: a directory just before what it holds.
   path       relative to the root. Bytes that are no printable ASCII, and ``%``, ``"`` and ``\\``, are written %XX
   type       file, dir, symlink, fifo, socket, char, block
   mode       permission bits, octal, with set-uid, set-gid and sticky: "4755"
   uid, gid   numbers
   mtime_ns   nanoseconds since 1970
   size       file: bytes
   sha256     file without holes: of its content
   extents    file with holes: its [offset, length] of data as SEEK_DATA and SEEK_HOLE tell; more than 1000 of them as
              {"count": N, "sha256": of the offsets and lengths, 8 bytes each, big-endian}
   sha256_blocks  file with holes, instead of sha256: of all blocks of 65536 bytes, counted from the file's begin, that
              are not all zero, each after its offset (8 bytes, big-endian). So a hole that is filled with zeros
              changes the extents alone, and a byte written into a hole changes both.
   target     symlink: what it points to, written as a path
   device     char, block: "major:minor"
   links      hard links, where there are more than one (no directory)
   same_as    path of the first entry that is a hard link to the same; the first itself has none
   xattrs     {name: value in base64}; ACLs are system.posix_acl_access and system.posix_acl_default
   error      what could not be read of it; the other fields are as far as they could be
3. ``{"entries":N,"errors":N,"sha256":"..."}``: the digest of every byte before this line. A file without it, or with
   another digest, is cut off or damaged, and is refused.

A file with holes is synced first (fdatasync): before, its extents depend on what the system has not written out yet.
"""

from __future__ import absolute_import, print_function

import argparse
import binascii
import collections
import errno
import hashlib
import itertools
import json
import os
import re
import select
import signal
import stat
import struct
import sys

MYPY = False
if MYPY:  # only the type checker reads this: Python 2 has no typing module
    import typing

    Entry = dict[str, typing.Any]
    Difference = tuple[str, str, list[tuple[str, typing.Any, typing.Any]]]
    Write = typing.Callable[[bytes], object]
    Paths = typing.Iterable[bytes]

FORMAT = "kiln-data-manifest"
VERSION = 1
PY2 = sys.version_info[0] == 2

BLOCK = 65536
ZEROS = bytes(bytearray(BLOCK))
SMALL = 4 * BLOCK
"""Bytes of a file that is read in one piece."""
BIG = 32 * BLOCK
"""From this many bytes on a file is work of its own, so that processes share the big files of a directory."""
MOST_EXTENTS = 1000

BATCH_NAMES = 400
BATCH_BYTES = 16384
FILES_AT_ONCE = 64
"""Names that go into a message together."""
NAMES_AT_ONCE = 1000
"""Names that are taken from a directory together."""
PIPE_BYTES = 32768
"""What surely fits into a pipe (pipe(7): 65536) beside what is there already: more is sent only to an idle worker."""
LISTED_BYTES = 96 << 20
"""Names of one directory in memory at once, at most about this; for what is beyond it is listed again later."""
AHEAD_BYTES = 32 << 20
"""Finished lines that wait for a slow file before them, at most about this."""

SEEK_DATA, SEEK_HOLE = 3, 4  # lseek(2)
O_NOATIME = 0o1000000  # open(2) on x86 and ARM
O_CLOEXEC = 0o2000000
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | O_CLOEXEC
READ_QUIETLY = READ | O_NOATIME

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}

WORDS = {
    "sha256": "content",
    "sha256_blocks": "content",
    "extents": "holes",
    "mtime_ns": "mtime",
    "uid": "owner",
    "gid": "group",
    "links": "hard links",
    "same_as": "hard link",
    "target": "symlink target",
    "error": "unreadable",
}
"""What a field that differs is called, where not by its own name."""


class ManifestError(Exception):
    """Why a manifest could not be made or compared, in one sentence."""


def refuse(what):
    # type: (str) -> typing.NoReturn
    """Raises ManifestError."""
    raise ManifestError(what)


# Names


_UNSAFE = re.compile(b"[^\0 !#$&-\\[\\]-~]")
_ESCAPED = re.compile(b"%([0-9A-F]{2})")


def quoted(raw):
    # type: (bytes) -> str
    """A name of any bytes as printable ASCII without ``%``, ``"`` and backslash; or names, NUL between them."""
    if _UNSAFE.search(raw):
        raw = _UNSAFE.sub(_escape, raw)
    return str(raw.decode("ascii"))


if PY2:

    def _escape(found):
        # type: (re.Match[bytes]) -> bytes
        return b"%" + binascii.hexlify(found.group()).upper()

else:

    def _escape(found):
        # type: (re.Match[bytes]) -> bytes
        return b"%%%02X" % ord(found.group())


def unquoted(path):
    # type: (str) -> bytes
    """The bytes that ``quoted`` wrote; raises ManifestError for anything it does not write."""
    try:
        return _ESCAPED.sub(lambda found: binascii.unhexlify(found.group(1)), path.encode("ascii"))
    except (UnicodeError, AttributeError):
        refuse("%r is no path of a manifest" % (path,))


def shown(path):
    # type: (str) -> str
    """A quoted path as people read it: decoded where it is printable UTF-8 throughout, else as it is."""
    try:
        text = unquoted(path).decode("utf-8")
    except UnicodeDecodeError:
        return path
    return path if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\\\\]", text) else text


# What one entry is made of


if PY2:
    import ctypes

    _LIBC = ctypes.CDLL(None, use_errno=True)

    def _called(function, *arguments):
        # type: (typing.Any, typing.Any) -> int
        result = int(function(*arguments))
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def mtime_ns(name, status):
        # type: (bytes, os.stat_result) -> int
        """Python 2 tells a float; struct stat has st_mtim at byte 88 on x86-64 and on 64-bit ARM."""
        buffer = ctypes.create_string_buffer(256)
        if hasattr(_LIBC, "lstat"):
            _called(_LIBC.lstat, name, buffer)
        else:  # before glibc 2.33
            _called(_LIBC.__getattr__("__lxstat"), 1, name, buffer)
        seconds, nanoseconds = struct.unpack_from("qq", buffer.raw, 88)
        return int(seconds) * 10**9 + int(nanoseconds)

    def _xattrs(name, descriptor):
        # type: (bytes, int) -> list[tuple[bytes, bytes]]
        length = _called(_LIBC.llistxattr, name, None, 0)
        if not length:
            return []
        buffer = ctypes.create_string_buffer(length + 4096)
        length = _called(_LIBC.llistxattr, name, buffer, len(buffer))
        found = []
        for key in buffer.raw[:length].split(b"\0")[:-1]:
            value = ctypes.create_string_buffer(65536)  # xattr(7): no value is longer
            size = _called(_LIBC.lgetxattr, name, key, value, len(value))
            found.append((key, value.raw[:size]))
        return found

else:

    def mtime_ns(name, status):
        # type: (bytes, os.stat_result) -> int
        """Nanoseconds since 1970."""
        return status.st_mtime_ns

    def _xattrs(name, descriptor):
        # type: (bytes, int) -> list[tuple[bytes, bytes]]
        if descriptor >= 0:
            keys = os.listxattr(descriptor)
            return [(os.fsencode(key), os.getxattr(descriptor, key)) for key in keys] if keys else []
        keys = os.listxattr(name, follow_symlinks=False)
        return [(os.fsencode(key), os.getxattr(name, key, follow_symlinks=False)) for key in keys] if keys else []


def xattrs_field(name, descriptor):
    # type: (bytes, int) -> str
    """The entry's xattrs as a JSON field, empty where it has none or its file system knows none."""
    try:
        found = _xattrs(name, descriptor)
        if not found:
            return ""
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ""
        raise
    pairs = ['"%s":"%s"' % (quoted(key), binascii.b2a_base64(value).decode("ascii").strip()) for key, value in found]
    return ',"xattrs":{%s}' % ",".join(sorted(pairs))


_sha256 = hashlib.sha256
NO_CONTENT = _sha256().hexdigest()

FILE_LINE = '{"path":"%s%s","type":"file","mode":"%04o","uid":%d,"gid":%d,"mtime_ns":%d,"size":%d,"sha256":"%s"%s}\n'


class ChangedError(Exception):
    """A file was another one after it was read."""


class Reader(object):
    """Hashes files; one per process, for its buffer."""

    def __init__(self):
        # type: () -> None
        self.buffer = bytearray(4 * BLOCK)
        self.view = memoryview(self.buffer)

    def content(self, descriptor, status):
        # type: (int, os.stat_result) -> str
        """The content's JSON fields; raises ChangedError when the file is not what ``status`` says."""
        size = status.st_size
        if size and (size >= BLOCK or status.st_blocks * 512 < size) and _first_hole(descriptor) < size:
            return self._sparse(descriptor, size)
        if size <= SMALL:
            data = os.read(descriptor, size + 1)
            if len(data) == size:
                return ',"size":%d,"sha256":"%s"' % (size, _sha256(data).hexdigest() if data else NO_CONTENT)
            os.lseek(descriptor, 0, os.SEEK_SET)
        digest = hashlib.sha256()
        length = 0
        with os.fdopen(os.dup(descriptor), "rb", 0) as stream:
            while True:
                count = _readinto(stream, self.buffer)
                if not count:
                    break
                digest.update(self.view[:count])
                length += count
        if length != size:
            raise ChangedError
        return ',"size":%d,"sha256":"%s"' % (size, digest.hexdigest())

    def _sparse(self, descriptor, size):
        # type: (int, int) -> str
        try:
            _fdatasync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EINVAL):
                raise
        digest = hashlib.sha256()
        every = hashlib.sha256()
        extents = []  # type: list[str]
        count = 0
        block = 0
        """Begin of the first block that no extent has reached yet."""
        for begin, end in _extents(descriptor, size):
            count += 1
            every.update(struct.pack(">QQ", begin, end - begin))
            if count <= MOST_EXTENTS:
                extents.append("[%d,%d]" % (begin, end - begin))
            block = max(block, begin // BLOCK * BLOCK)
            os.lseek(descriptor, block, os.SEEK_SET)
            while block < end:
                data = _read_exactly(descriptor, min(BLOCK, size - block))
                if data != (ZEROS if len(data) == BLOCK else ZEROS[: len(data)]):
                    digest.update(struct.pack(">Q", block))
                    digest.update(data)
                block += BLOCK
        if count > MOST_EXTENTS:
            told = '{"count":%d,"sha256":"%s"}' % (count, every.hexdigest())
        else:
            told = "[%s]" % ",".join(extents)
        return ',"size":%d,"extents":%s,"sha256_blocks":"%s"' % (size, told, digest.hexdigest())


def _fdatasync(descriptor):
    # type: (int) -> None
    os.fdatasync(descriptor)


if PY2:

    def _readinto(stream, buffer):
        # type: (typing.Any, bytearray) -> int
        data = stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

else:

    def _readinto(stream, buffer):
        # type: (typing.Any, bytearray) -> int
        return int(stream.readinto(buffer))


def _read_exactly(descriptor, length):
    # type: (int, int) -> bytes
    data = os.read(descriptor, length)
    while len(data) < length:
        more = os.read(descriptor, length - len(data))
        if not more:
            raise ChangedError
        data += more
    return data


def _first_hole(descriptor):
    # type: (int) -> int
    """Offset of the first hole, which is the size where there is none."""
    try:
        hole = os.lseek(descriptor, 0, SEEK_HOLE)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENXIO, errno.ENOTSUP):  # cannot tell; emptied just now
            return sys.maxsize
        raise
    os.lseek(descriptor, 0, os.SEEK_SET)
    return hole


def _extents(descriptor, size):
    # type: (int, int) -> typing.Iterator[tuple[int, int]]
    """Begin and end of every run of data."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(descriptor, begin, SEEK_HOLE), size)
        if end <= begin:
            raise ChangedError
        yield begin, end


def _open(name):
    # type: (bytes) -> int
    try:
        return os.open(name, READ_QUIETLY)
    except OSError as error:
        if error.errno != errno.EPERM:  # somebody else's file
            raise
    return os.open(name, READ)


def enter(root, path):
    # type: (int, bytes) -> None
    """Makes ``path`` below the directory ``root`` the working directory, however long it is."""
    os.fchdir(root)
    while len(path) > 2048:
        cut = path.rfind(b"/", 0, 2048)
        os.chdir(path[:cut])
        path = path[cut + 1 :]
    if path:
        os.chdir(path)


class Entries(object):
    """Writes entries of the working directory."""

    def __init__(self, content):
        # type: (bool) -> None
        self.with_content = content
        self.reader = Reader()

    def small_files(self, prefix, texts, names, begin, lines):
        # type: (str, list[str], list[bytes], int, list[str]) -> int
        """Appends the lines of small files that have nothing odd; returns where the first item stands that is not one.

        ``texts``: the names as they are quoted. Each name from ``begin`` on, up to an item that starts with ``/``, was
        a regular file's when it was listed, so it is opened without a look. One loop, as calls take their time too.
        """
        fstat, read, close, opened = os.fstat, os.read, os.close, os.open
        sha256, append = _sha256, lines.append
        for at in range(begin, len(names)):
            name = names[at]
            if name[:1] == b"/":
                return at
            try:
                descriptor = opened(name, READ_QUIETLY)
            except OSError:
                return at
            try:
                status = fstat(descriptor)
                mode, _, _, links, owner, group, size, _, _, _ = status
                if size >= BLOCK or status.st_blocks * 512 < size or links != 1 or not stat.S_ISREG(mode):
                    return at
                data = read(descriptor, size + 1)
                if len(data) != size:
                    return at
                xattrs = xattrs_field(name, descriptor)
                modified = mtime_ns(name, status)
            except OSError:
                return at
            finally:
                close(descriptor)
            digest = sha256(data).hexdigest()
            append(FILE_LINE % (prefix, texts[at], mode & 0o7777, owner, group, modified, size, digest, xattrs))
        return len(names)

    def line(self, path, name, failed, wait):
        # type: (str, bytes, str, bool) -> str | None
        """The entry's line, after what the parent needs to name hard links; none if the file is big and may wait.

        ``path``: quoted, from the root. ``failed``: what is known already of the entry that could not be read.
        """
        try:
            status = os.lstat(name)
        except OSError as error:
            return '{"path":"%s","error":"%s"}\n' % (path, failed or os.strerror(error.errno or 0))
        mode = status.st_mode
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFREG and self.with_content and status.st_size >= BIG and wait:
            return None
        told = ""
        descriptor = -1
        try:
            try:
                if kind == stat.S_IFREG:
                    if self.with_content:
                        descriptor = _open(name)
                        told = self.reader.content(descriptor, status)
                        if status.st_size > SMALL and os.fstat(descriptor).st_mtime != status.st_mtime:
                            raise ChangedError
                    else:
                        told = ',"size":%d' % status.st_size
                elif kind == stat.S_IFLNK:
                    told = ',"target":"%s"' % quoted(os.readlink(name))
                elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                    told = ',"device":"%d:%d"' % (os.major(status.st_rdev), os.minor(status.st_rdev))
            except OSError as error:
                told = ',"size":%d' % status.st_size if kind == stat.S_IFREG else ""
                failed = failed or os.strerror(error.errno or 0)
            except ChangedError:
                failed = failed or "changed while it was read"
            try:
                told += xattrs_field(name, descriptor)
            except OSError as error:
                failed = failed or "its xattrs: " + os.strerror(error.errno or 0)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        group = ""
        if status.st_nlink > 1 and kind != stat.S_IFDIR:
            told += ',"links":%d' % status.st_nlink
            group = "\0%d:%d:%d\0" % (status.st_dev, status.st_ino, status.st_nlink)
        if failed:
            told += ',"error":"%s"' % failed
        return '%s{"path":"%s","type":"%s","mode":"%04o","uid":%d,"gid":%d,"mtime_ns":%d%s}\n' % (
            group,
            path,
            TYPES[kind],
            mode & 0o7777,
            status.st_uid,
            status.st_gid,
            mtime_ns(name, status),
            told,
        )


# The processes: one that walks and writes, workers that read. A message is its length and then its bytes. To a worker
# go names of files, NUL between them, "/o" and the name of anything other, "/d" and a path to change the directory,
# "/e" and what failed before a name. Back come parts: lines, or the name of a big file that is to be sent again by
# itself.


LENGTH = struct.Struct(">I")
PART = struct.Struct(">BI")
LINES, WAITING = 0, 1


def _send(descriptor, message):
    # type: (int, bytes) -> None
    message = LENGTH.pack(len(message)) + message
    while message:
        message = message[os.write(descriptor, message) :]


def _receive(descriptor):
    # type: (int) -> bytes
    """The next message; raises EOFError when the other side is gone."""
    (length,) = LENGTH.unpack(_take(descriptor, LENGTH.size))
    return _take(descriptor, length)


def _take(descriptor, length):
    # type: (int, int) -> bytes
    pieces = []
    while length:
        piece = os.read(descriptor, min(length, 1 << 20))
        if not piece:
            raise EOFError
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _serve(root, source, sink, content):
    # type: (int, int, int, bool) -> None
    """A worker's life."""
    entries = Entries(content)
    while True:
        message = _receive(source)
        if not message:
            return
        alone = message[:1] == b"!"
        parts = []  # type: list[bytes]
        lines = []  # type: list[str]
        prefix = failed = unreachable = ""
        folder = b""
        quick = False
        message = message[alone:]
        texts, names = quoted(message).split("\0"), message.split(b"\0")
        at = 0
        while at < len(names):
            if quick:
                at = entries.small_files(prefix, texts, names, at, lines)
                if at == len(names):
                    break
            text, name = texts[at], names[at]
            at += 1
            if text[0] == "/":
                kind, text, name = text[1], text[2:], name[2:]
                if kind == "d":
                    folder = name
                    prefix = text + "/" if text else ""
                    unreachable = ""
                    try:
                        enter(root, folder)
                    except OSError as error:
                        unreachable = os.strerror(error.errno or 0)
                    quick = content and not unreachable
                    continue
                if kind == "e":
                    failed = text
                    continue
            if unreachable:
                line = '{"path":"%s","error":"%s"}\n' % (prefix + text, unreachable)  # type: str | None
            else:
                line = entries.line(prefix + text, name, failed, not alone)
            failed = ""
            if line is not None:
                lines.append(line)
                continue
            if lines:
                parts += _part(LINES, "".join(lines).encode("ascii"))
                lines = []
            parts += _part(WAITING, b"!/d" + folder + b"\0" + name)
        if lines:
            parts += _part(LINES, "".join(lines).encode("ascii"))
        _send(sink, b"".join(parts))


def _part(kind, data):
    # type: (int, bytes) -> list[bytes]
    return [PART.pack(kind, len(data)), data]


class Worker(object):
    """A worker process and what it has to do."""

    def __init__(self, root, content, others):
        # type: (int, bool, list[Worker]) -> None
        source, self.sink = os.pipe()
        self.source, sink = os.pipe()
        self.slots = collections.deque()  # type: collections.deque[tuple[int, int]]
        self.process = os.fork()
        if not self.process:
            code = 1
            try:
                for descriptor in [self.sink, self.source] + [end for other in others for end in other.ends()]:
                    os.close(descriptor)
                _serve(root, source, sink, content)
                code = 0
            except (EOFError, KeyboardInterrupt):
                pass  # the parent has ended, and has said why
            except OSError as error:
                if error.errno != errno.EPIPE:
                    os.write(2, ("data_manifest: a worker: %s\n" % error).encode("ascii", "replace"))
            finally:
                os._exit(code)
        os.close(source)
        os.close(sink)

    def ends(self):
        # type: () -> list[int]
        return [self.sink, self.source]

    def close(self, finished):
        # type: (bool) -> None
        """Ends the worker; one whose work nobody wants any more at once, as it only reads."""
        if not finished:
            os.kill(self.process, signal.SIGKILL)
        for descriptor in self.ends():
            os.close(descriptor)
        os.waitpid(self.process, 0)


class Walk(object):
    """The names of a tree as messages, in the order of the manifest."""

    def __init__(self, root, excluded, one_file_system):
        # type: (int, Paths, bool) -> None
        self.root = root
        self.excluded = frozenset(excluded)
        self.device = os.fstat(root).st_dev if one_file_system else None

    def messages(self):
        # type: () -> typing.Iterator[bytes]
        names, last, items = self._listed(b"", b"")
        items = list(itertools.chain([b"/d"], items, [b"/o."]))
        length = 0
        inside = b""
        """The path of the names, with a slash behind it."""
        where = b""  # type: bytes | None
        """The same of those that the worker was given last."""
        at = 0
        stack = []  # type: list[tuple[bytes, list[bytes], int, bytes]]
        """What is left of the directories above."""
        while True:
            if at == len(names):
                at = 0
                names = []  # not in memory beside the next
                if last:
                    names, last, failed = self._listed(inside[:-1], last)
                    if failed:
                        refuse("%s was there and is gone: make it again" % quoted(inside[:-1]))
                elif stack:
                    inside, names, at, last = stack.pop()
                else:
                    break
                continue
            if len(items) >= BATCH_NAMES or length > BATCH_BYTES:
                yield b"\0".join(items)
                items = []
                length = 0
                where = None
            if where != inside:
                items.append(b"/d" + inside[:-1])
                length += len(inside) + 2
                where = inside
            files = names[at : at + FILES_AT_ONCE]
            joined = b"\0".join(files)
            if joined.count(b"\0") != len(files) - 1:  # not all are files
                files = list(itertools.takewhile(lambda name: b"\0" not in name, files))
                joined = b"\0".join(files)
            items += files
            length += len(joined)
            at += len(files)
            if at == len(names) or b"\0" not in names[at]:
                continue
            name, _, kind = names[at].partition(b"\0")
            at += 1
            length += len(name) + 3
            if kind == DIRECTORY:
                stack.append((inside, names, at, last))
                inside += name + b"/"
                names, last, failed = self._listed(inside[:-1], b"")
                items += failed
                at = 0
            items.append(b"/o" + name)
        yield b"\0".join(items)

    def _listed(self, folder, after):
        # type: (bytes, bytes) -> tuple[list[bytes], bytes, list[bytes]]
        """Sorted names after ``after``, and the item that says why there are none.

        A name is followed by a NUL and DIRECTORY or OTHER unless it is a regular file's. The last name stands second
        where there are more that come after it.
        """
        try:
            enter(self.root, folder)
            if self.device is not None and os.lstat(b".").st_dev != self.device:
                return [], b"", []
            names, last = _names(after)
        except OSError as error:
            return [], b"", [b"/e" + os.strerror(error.errno or 0).encode("ascii", "replace")]
        if self.excluded:
            inside = folder + b"/" if folder else b""
            names = [name for name in names if inside + name.partition(b"\0")[0] not in self.excluded]
        names.sort()
        return names, last, []


DIRECTORY, OTHER = b"d", b"o"

if PY2:

    def _names(after):
        # type: (bytes) -> tuple[list[bytes], bytes]
        """All at once: Python 2 lists a directory in no other way."""
        names = os.listdir(b".")
        for at, name in enumerate(names):
            kind = stat.S_IFMT(os.lstat(name).st_mode)
            if kind != stat.S_IFREG:
                names[at] = name + b"\0" + (DIRECTORY if kind == stat.S_IFDIR else OTHER)
        return names, b""

else:

    def _names(after):
        # type: (bytes) -> tuple[list[bytes], bytes]
        """The first names after ``after``, and the last of them where there are more."""
        names = []  # type: list[bytes]
        length = 0
        last = b""
        listed = os.scandir(b".")
        while True:
            some = [
                found.name if found.is_file(follow_symlinks=False) else found.name + _mark(found)
                for found in itertools.islice(listed, NAMES_AT_ONCE)
            ]
            if not some:
                return names, last
            if after:
                some = [name for name in some if name.partition(b"\0")[0] > after]
            if last:
                some = [name for name in some if name.partition(b"\0")[0] <= last]
            names += some
            length += _held(some)
            if length > LISTED_BYTES:
                names.sort()
                del names[len(names) // 2 + 1 :]
                last = names[-1].partition(b"\0")[0]
                length = _held(names)

    def _mark(found):
        # type: (os.DirEntry[bytes]) -> bytes
        return b"\0" + (DIRECTORY if found.is_dir(follow_symlinks=False) else OTHER)

    def _held(names):
        # type: (list[bytes]) -> int
        """Bytes of memory: CPython needs 48 beside each name."""
        return sum(map(len, names)) + 48 * len(names)


class Writing(object):
    """The manifest as it is written: hard links named, lines counted and hashed."""

    def __init__(self, write):
        # type: (Write) -> None
        self._write = write
        self.digest = hashlib.sha256()
        self.entries = 0
        self.errors = 0
        self.firsts = {}  # type: dict[bytes, tuple[bytes, int]]
        """Device and inode to the first path and how many more names it has: gone when all have been seen."""

    def out(self, data):
        # type: (bytes) -> None
        self.digest.update(data)
        self._write(data)

    def lines(self, data):
        # type: (bytes) -> None
        if b"\0" in data:
            data = b"".join(self._linked(line) if line[:1] == b"\0" else line for line in data.splitlines(True))
        self.entries += data.count(b"\n")
        self.errors += data.count(b'"error":"')
        self.out(data)

    def _linked(self, line):
        # type: (bytes) -> bytes
        group, line = line[1:].split(b"\0", 1)
        key, _, links = group.rpartition(b":")
        path = line[9 : line.index(b'"', 9)]
        if key not in self.firsts:
            self.firsts[key] = path, int(links) - 1
            return line
        first, more = self.firsts.pop(key)
        if more > 1:
            self.firsts[key] = first, more - 1
        return line[:-2] + b',"same_as":"' + first + b'"}\n'


class Making(object):
    """Workers, what they were given, and what came back and waits for its turn."""

    def __init__(self, root, content, jobs, writing):
        # type: (int, bool, int, Writing) -> None
        self.writing = writing
        self.workers = []  # type: list[Worker]
        self.results = {}  # type: dict[int, list[bytes | None]]
        """Number of a message to its parts; a part that is not there yet is none."""
        self.missing = {}  # type: dict[int, int]
        self.big = collections.deque()  # type: collections.deque[tuple[int, int, bytes]]
        self.next = 0
        self.waiting = 0
        self.finished = False
        for _ in range(jobs):
            self.workers.append(Worker(root, content, self.workers))

    def run(self, messages):
        # type: (Paths) -> None
        number = -1
        for number, message in enumerate(messages):
            self._dispatch()
            self.results[number] = [None]
            self.missing[number] = 1
            self._give(number, 0, message)
            while self.waiting > AHEAD_BYTES and self.next < number:
                self._dispatch()
                self._hear()
        while self.next <= number:
            self._dispatch()
            if self.next <= number:
                self._hear()
        for worker in self.workers:
            _send(worker.sink, b"")
        self.finished = True

    def _dispatch(self):
        # type: () -> None
        """Gives out the big files that wait."""
        while self.big:
            idle = [worker for worker in self.workers if not worker.slots]
            if not idle:
                return
            number, part, message = self.big.popleft()
            self._hand(idle[0], number, part, message)

    def _give(self, number, part, message):
        # type: (int, int, bytes) -> None
        most = 1 if len(message) > PIPE_BYTES or self.big else 2
        while True:
            worker = min(self.workers, key=lambda worker: len(worker.slots))
            if len(worker.slots) < most:
                self._hand(worker, number, part, message)
                return
            self._hear()
            self._dispatch()

    def _hand(self, worker, number, part, message):
        # type: (Worker, int, int, bytes) -> None
        worker.slots.append((number, part))
        try:
            _send(worker.sink, message)
        except OSError:
            refuse("a worker process ended: was it killed, or out of memory?")

    def _hear(self):
        # type: () -> None
        """Takes what workers have finished, waiting for one of them."""
        busy = {worker.source: worker for worker in self.workers if worker.slots}
        for source in _readable(list(busy)):
            number, part = busy[source].slots.popleft()
            try:
                message = _receive(source)
            except EOFError:
                refuse("a worker process ended: was it killed, or out of memory?")
            self._place(number, part, message)
        while self.missing.get(self.next) == 0:
            for lines in self.results.pop(self.next):
                assert lines is not None
                self.waiting -= len(lines)
                self.writing.lines(lines)
            del self.missing[self.next]
            self.next += 1

    def _place(self, number, part, message):
        # type: (int, int, bytes) -> None
        parts = self.results[number]
        at = 0
        first = True
        while at < len(message):
            kind, length = PART.unpack_from(message, at)
            data = message[at + PART.size : at + PART.size + length]
            at += PART.size + length
            if not first:
                part = len(parts)
                parts.append(None)
                self.missing[number] += 1
            first = False
            if kind == LINES:
                parts[part] = data
                self.missing[number] -= 1
                self.waiting += length
            else:
                self.big.append((number, part, data))

    def close(self):
        # type: () -> None
        for worker in self.workers:
            worker.close(self.finished)


def _readable(sources):
    # type: (list[int]) -> list[int]
    while True:
        try:
            return select.select(sources, [], [])[0]
        except (OSError, select.error) as error:
            if error.args[0] != errno.EINTR:
                raise


def processors():
    # type: () -> int
    """How many processes may compute at once here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return int(os.sysconf("SC_NPROCESSORS_ONLN"))


def make(root, write, jobs=0, excluded=(), one_file_system=False, content=True):
    # type: (bytes, Write, int, Paths, bool, bool) -> tuple[int, int]
    """Writes the manifest of the tree ``root``; returns the numbers of entries and of those with errors.

    ``jobs``: reading processes, by default one per processor and at most 8. ``excluded``: relative paths left out with
    all below. ``one_file_system``: what is mounted below is an entry and is not entered. Without ``content`` no file is
    opened. The working directory is where it was afterwards. Raises ManifestError when there is nothing to walk.
    """
    if jobs < 0:
        refuse("%d processes cannot read: say 1 or more" % jobs)
    here = os.open(b".", os.O_RDONLY | O_CLOEXEC)
    try:
        try:
            top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | O_CLOEXEC)
        except OSError as error:
            refuse("%s: %s" % (quoted(root), os.strerror(error.errno or 0)))
        writing = Writing(write)
        making = None
        try:
            excluded = sorted(excluded)
            writing.out(
                (
                    '{"format":"%s","version":%d,"content":%s,"one_file_system":%s,"excluded":[%s]}\n'
                    % (
                        FORMAT,
                        VERSION,
                        json.dumps(content),
                        json.dumps(one_file_system),
                        ",".join('"%s"' % quoted(path) for path in excluded),
                    )
                ).encode("ascii")
            )
            making = Making(top, content, jobs or min(processors(), 8), writing)
            making.run(Walk(top, excluded, one_file_system).messages())
        finally:
            if making:
                making.close()
            os.close(top)
        write(
            (
                '{"entries":%d,"errors":%d,"sha256":"%s"}\n'
                % (writing.entries, writing.errors, writing.digest.hexdigest())
            ).encode("ascii")
        )
        return writing.entries, writing.errors
    finally:
        os.fchdir(here)
        os.close(here)


def refuse_inside(root, output, excluded, one_file_system):
    # type: (bytes, bytes, Paths, bool) -> None
    """Raises ManifestError when ``output`` is a file of the tree, and would be an entry that changes as it is written.

    An empty ``output`` is standard output, which the shell may have made a file.
    """
    output = os.path.realpath(output or b"/proc/self/fd/1")
    if os.path.exists(output) and not os.path.isfile(output):  # a device
        return
    try:
        top = os.stat(root)
        if one_file_system and os.stat(os.path.dirname(output)).st_dev != top.st_dev:
            return
    except OSError:  # told when it is read or written
        return
    left_out = frozenset(excluded)
    folder = output
    while folder != b"/":
        folder = os.path.dirname(folder)
        if os.path.samestat(os.stat(folder), top):
            names = output[len(folder.rstrip(b"/")) + 1 :].split(b"/")
            if not any(b"/".join(names[: count + 1]) in left_out for count in range(len(names))):
                refuse("%s is below %s: write it elsewhere" % (quoted(output), quoted(root)))
            return


# Comparing


class Manifest(object):
    """A manifest's file; whole, or it is refused."""

    def __init__(self, path):
        # type: (str) -> None
        """Raises ManifestError when the file is no manifest, or not all of one."""
        self.path = path
        try:
            self.stream = os.fdopen(os.open(path, os.O_RDONLY), "rb")
            self._check()
        except (IOError, OSError) as error:
            refuse("%s: %s" % (path, os.strerror(error.errno or 0)))

    def _check(self):
        # type: () -> None
        digest = hashlib.sha256()
        first = self.stream.readline(1 << 20)
        self.header = self._object(first)
        if self.header.get("format") != FORMAT:
            raise ManifestError("%s: no manifest of a data tree" % self.path)
        if self.header.get("version") != VERSION:
            raise ManifestError(
                "%s: a manifest of version %s, and this program knows %d"
                % (self.path, self.header.get("version"), VERSION)
            )
        self.begin = len(first)
        digest.update(first)
        last = b""
        entries = -1
        for line in self.stream:
            digest.update(last)
            last = line
            entries += 1
        end = self._object(last) if last.startswith(b'{"entries":') and last.endswith(b"\n") else {}
        if not isinstance(end.get("errors"), int):
            raise ManifestError("%s: cut off after %d entries: make it again" % (self.path, max(entries, 0)))
        if end.get("sha256") != digest.hexdigest() or end.get("entries") != entries:
            raise ManifestError("%s: damaged, its own digest does not fit: make it again" % self.path)
        self.entries = entries
        self.errors = end["errors"]

    def _object(self, line):
        # type: (bytes) -> Entry
        try:
            found = json.loads(line.decode("ascii"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ManifestError("%s: no manifest of a data tree" % self.path)
        return found

    def lines(self):
        # type: () -> typing.Iterator[bytes]
        """The entries' lines, in order."""
        self.stream.seek(self.begin)
        last = b""
        for line in self.stream:
            if last:
                yield last
            last = line

    def entry(self, line):
        # type: (bytes) -> Entry
        found = self._object(line)
        if "path" not in found:
            raise ManifestError("%s: an entry has no path: make it again" % self.path)
        return found

    def close(self):
        # type: () -> None
        self.stream.close()


def order(path):
    # type: (str) -> bytes
    """What entries are sorted by."""
    return b"" if path == "." else unquoted(path).replace(b"/", b"\0")


def differences(before, after):
    # type: (Manifest, Manifest) -> typing.Iterator[Difference]
    """(removed, added or changed; quoted path; [(field, before, after)]) for each entry that is not the same.

    Only one entry of each is in memory. Raises ManifestError when the two were not made in the same way.
    """
    if before.header != after.header:
        raise ManifestError("%s and %s were made with different options: make one again" % (before.path, after.path))
    for old, new in pairs(before, after):
        if old and new:
            yield "changed", old["path"], _fields(old, new)
        elif old:
            yield "removed", old["path"], [("type", old.get("type"), None)]
        else:
            yield "added", new["path"], [("type", None, new.get("type"))]


def pairs(before, after):
    # type: (Manifest, Manifest) -> typing.Iterator[tuple[Entry, Entry]]
    """The entries of a path in each, an empty one where there is none; paths whose lines are the same are left out."""
    left, right = before.lines(), after.lines()
    a, b = next(left, b""), next(right, b"")
    while a or b:
        if a == b:
            a, b = next(left, b""), next(right, b"")
            continue
        old = before.entry(a) if a else {}
        new = after.entry(b) if b else {}
        first = min(order(entry["path"]) for entry in (old, new) if entry)
        if old and order(old["path"]) == first:
            a = next(left, b"")
        else:
            old = {}
        if new and order(new["path"]) == first:
            b = next(right, b"")
        else:
            new = {}
        yield old, new


def _fields(old, new):
    # type: (Entry, Entry) -> list[tuple[str, typing.Any, typing.Any]]
    if old.get("type") != new.get("type"):
        return [("type", old.get("type"), new.get("type"))]
    found = []
    for field in [key for key in old if key != "path"] + [key for key in new if key not in old]:
        before, after = old.get(field), new.get(field)
        if before == after:
            continue
        if field == "xattrs":
            names = sorted(set(before or {}) | set(after or {}))
            pairs = [("xattr " + name, (before or {}).get(name), (after or {}).get(name)) for name in names]
            found += [pair for pair in pairs if pair[1] != pair[2]]
        else:
            found.append((field, before, after))
    return sorted(found)


def sentence(difference):
    # type: (Difference) -> str
    """One difference as a line for people."""
    kind, path, fields = difference
    if kind != "changed":
        return "%-8s %s (%s)" % (kind, shown(path), fields[0][1] or fields[0][2])
    told = []
    for field, before, after in fields:
        word = WORDS.get(field, field.replace("xattr system.posix_acl_", "ACL "))
        if field == "mtime_ns" and before is not None and after is not None:
            told.append("%s %s ns (%+d ns)" % (word, before, after - before))
        elif field == "extents":
            told.append("%s (data at %s -> %s)" % (word, _short(before), _short(after)))
        else:
            told.append("%s (%s -> %s)" % (word, _short(before), _short(after)))
    return "%-8s %s: %s" % (kind, shown(path), ", ".join(told))


def _short(value):
    # type: (typing.Any) -> str
    if value is None:
        return "none"
    text = value if not isinstance(value, (list, dict)) else json.dumps(value, sort_keys=True)
    text = "%s" % (text,)
    return text if len(text) <= 60 else text[:16] + ".." if re.match("[0-9a-f]{64}$", text) else text[:57] + "..."


def compare(before_path, after_path, write, as_json=False):
    # type: (str, str, typing.Callable[[str], object], bool) -> int
    """Writes every difference; returns how many. Raises ManifestError when the two cannot be compared."""
    before = Manifest(before_path)
    try:
        after = Manifest(after_path)
        try:
            count = 0
            if as_json:
                write('{"differences":[')
            for difference in differences(before, after):
                if as_json:
                    kind, path, fields = difference
                    told = [{"field": field, "before": old, "after": new} for field, old, new in fields]
                    text = json.dumps({"kind": kind, "path": path, "fields": told}, sort_keys=True)
                    write((",\n" if count else "\n") + text)
                else:
                    write(sentence(difference) + "\n")
                count += 1
            unread = before.errors + after.errors
            if as_json:
                write(
                    '\n],"equal":%s,"entries":[%d,%d],"errors":[%d,%d]}\n'
                    % (json.dumps(not count), before.entries, after.entries, before.errors, after.errors)
                )
            elif count:
                write("%d differences; %d entries before, %d after\n" % (count, before.entries, after.entries))
            else:
                write("equal: %d entries\n" % before.entries)
            if not count and unread:
                raise ManifestError("%d entries could not be read: nothing is proven" % unread)
            return count
        finally:
            after.close()
    finally:
        before.close()


# The command


def _arguments(words):
    # type: (list[str] | None) -> argparse.Namespace
    parser = argparse.ArgumentParser(prog="data_manifest.py", description="The manifest of a data tree.")
    commands = parser.add_subparsers(dest="command")
    making = commands.add_parser("make", help="write the manifest of a tree to standard output")
    making.add_argument("root")
    making.add_argument("-o", "--output", help="write here instead")
    making.add_argument("--jobs", type=int, default=0, help="reading processes; default: one per processor, at most 8")
    making.add_argument("--exclude", action="append", default=[], metavar="PATH", help="relative; with all below it")
    making.add_argument("--one-file-system", action="store_true", help="enter nothing that is mounted below")
    making.add_argument("--no-content", action="store_true", help="open no file: without digests and extents")
    comparing = commands.add_parser("compare", help="list what differs between two manifests")
    comparing.add_argument("before")
    comparing.add_argument("after")
    comparing.add_argument("--json", action="store_true")
    found = parser.parse_args(words)
    if not found.command:
        parser.error("say make or compare")
    return found


if PY2:

    def _raw(text):
        # type: (typing.Any) -> bytes
        return bytes(text)

else:

    def _raw(text):
        # type: (typing.Any) -> bytes
        return os.fsencode(text)


def _write_all(data):
    # type: (bytes) -> None
    while data:
        data = data[os.write(1, data) :]


def main(words=None):
    # type: (list[str] | None) -> int
    """The command; returns its exit code."""
    arguments = _arguments(words)
    try:
        if arguments.command == "compare":
            different = compare(
                arguments.before, arguments.after, lambda text: _write_all(text.encode("utf-8")), arguments.json
            )
            return 1 if different else 0
        excluded = [_raw(path).strip(b"/") for path in arguments.exclude]
        refuse_inside(_raw(arguments.root), _raw(arguments.output or ""), excluded, arguments.one_file_system)
        if arguments.output:
            stream = os.fdopen(os.open(arguments.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), "wb")
            write = stream.write  # type: Write
        else:
            write = _write_all
        entries, errors = make(
            _raw(arguments.root),
            write,
            arguments.jobs,
            excluded,
            arguments.one_file_system,
            not arguments.no_content,
        )
        if arguments.output:
            stream.close()
        if errors:
            raise ManifestError("%d of %d entries could not be read whole; they say error" % (errors, entries))
        return 0
    except ManifestError as error:
        os.write(2, ("data_manifest: %s\n" % error).encode("utf-8", "replace"))
        return 2
    except (IOError, OSError) as error:
        place = "%s: " % error.filename if error.filename else ""
        os.write(2, ("data_manifest: %s%s\n" % (place, error.strerror)).encode("utf-8", "replace"))
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
