#!/usr/bin/env python3
"""Fills a fresh data volume the way users and file systems do, for a rehearsal: rehearsal_data.py DATA FILES.

Everything that a copy could lose: names of any bytes, hard links, holes, extended attributes, an ACL, times to the
nanosecond, special files, foreign owners, empty and deep folders. What needs programs of the image is added elsewhere.
"""

from __future__ import absolute_import, print_function

import os
import socket
import stat
import struct
import sys

USER = 1000
WHEN = (1534204800, 123456789)
"""2018-08-14, seconds and nanoseconds."""

NOBODY = 0xFFFFFFFF
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, NOBODY), (2, 6, 4711), (4, 4, NOBODY), (16, 6, NOBODY), (32, 4, NOBODY))
)
"""That user 4711 may write, as the kernel stores it: linux/posix_acl_xattr.h."""


def write(path, content):
    # type: (bytes, bytes) -> None
    with open(path, "wb") as file:
        file.write(content)


def fill(data, files):
    # type: (bytes, int) -> None
    join = os.path.join
    work = join(data, b"work")
    os.makedirs(join(work, b"empty"))
    deep = join(work, *[b"deep"] * 60)
    os.makedirs(deep)
    write(join(deep, b"bottom"), b"found\n")
    for number in range(files):
        folder = join(work, b"small", b"%03d" % (number % 100))
        if number < 100:
            os.makedirs(folder)
        write(join(folder, b"%06d.txt" % number), b"number %d\n" % number)
    names = join(work, b"names")
    os.mkdir(names)
    for name in (
        b"new\nline",
        b"\xff\xfe not UTF-8",
        b"n" * 255,
        "\u4e2d\u6587.ipynb".encode("utf-8"),
        b" blank ",
        b"-rf",
    ):
        write(join(names, name), name)
    with open(join(work, b"sparse.img"), "wb") as file:
        for offset in (0, 1 << 30, 3 << 30):
            file.seek(offset)
            file.write(b"data at %d" % offset)
        file.truncate(4 << 30)
    write(join(work, b"linked"), b"one file, two names\n")
    os.link(join(work, b"linked"), join(work, b"linked too"))
    os.symlink(b"work/linked", join(data, b"shortcut"))
    os.symlink(b"/home/ubuntu/nowhere", join(work, b"dangling"))
    os.mkfifo(join(work, b"fifo"), 0o620)
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(work)  # a socket's path may have 107 characters
    server.bind(b"socket")
    os.chdir(here)
    server.close()
    write(join(work, b"labelled"), b"has attributes\n")
    os.setxattr(join(work, b"labelled"), b"user.origin", b"rehearsal \x00\xff")
    os.setxattr(join(work, b"labelled"), b"system.posix_acl_access", ACL)
    write(join(work, b"program"), b"#!/bin/sh\necho runs\n")
    os.utime(join(work, b"program"), ns=(WHEN[0] * 10**9, WHEN[0] * 10**9 + WHEN[1]))
    for folder, folders, leaves in os.walk(work):
        for name in [b".", *folders, *leaves]:
            os.chown(join(folder, name), USER, USER, follow_symlinks=False)
    write(join(work, b"of another user"), b"uid 4711\n")
    os.chown(join(work, b"of another user"), 4711, 4711)
    os.chmod(join(work, b"program"), stat.S_ISUID | stat.S_IRWXU)  # last: a change of the owner takes set-uid away


if __name__ == "__main__":
    fill(os.fsencode(sys.argv[1]), int(sys.argv[2]))
