"""Who may log in to a node, and who may become root on it."""

from __future__ import annotations

import os
import shlex
from typing import Any

import pytest
from testinfra.host import Host

from kiln.checks.asking import QUIETLY, lines

NO_SHELLS = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false", "/bin/sync")


def hashes(host: Host) -> dict[str, str]:
    """Account to hashed password, of those that a password opens; an empty hash asks for none."""
    rows = (line.split(":") for line in host.file("/etc/shadow").content_string.splitlines())
    return {row[0]: row[1] for row in rows if not row[1].startswith(("*", "!"))}


def opens(host: Host, password: str, stored: str) -> bool:
    """Whether crypt(3) of the target, which knows its own ways to hash, makes ``stored`` of ``password``."""
    program = "print crypt($ARGV[0], $ARGV[1])"
    hashed = host.run(f"perl -e {shlex.quote(program)} {shlex.quote(password)} {shlex.quote(stored)}").stdout
    return bool(stored) and hashed.strip() == stored


def must_change(host: Host, name: str) -> bool:
    """Whether the account's password must be changed at the next login: the day of its last change is 0, shadow(5)."""
    rows = (line.split(":") for line in host.file("/etc/shadow").content_string.splitlines())
    return any(row[0] == name and row[2] == "0" for row in rows)


@pytest.mark.privileged
def test_the_users_password_is_as_the_release_says(host: Host, spec: Any) -> None:
    user = spec["node"]["user"]
    stored = hashes(host)
    documented = opens(host, user["password"], stored.get(user["name"], ""))
    found = (documented, must_change(host, user["name"]), user["name"] in stored)
    wanted = {
        "published-password": (True, False, True),
        "forced-change": (True, True, True),
        "keys-only": (False, False, False),
    }[spec["login"]]
    if found != wanted and not documented and os.environ.get("KILN_TARGET_KIND") == "node":
        pytest.skip("the user of this node has chosen another login")
    assert found == wanted, f"(documented, must change, opens a login) is not that of {spec['login']}"


@pytest.mark.privileged
def test_no_account_has_a_published_password_that_the_release_does_not_allow(host: Host, spec: Any) -> None:
    user = spec["node"]["user"]
    # Good for nothing but its own change, it is no way in for long.
    allows = {"published-password": True, "forced-change": must_change(host, user["name"])}.get(spec["login"], False)
    allowed = {(user["name"], user["password"])} if allows else set()
    stored = hashes(host)
    guesses = [(name, password) for name in stored for password in (user["password"], name)]
    published = [guess for guess in guesses if guess not in allowed and opens(host, guess[1], stored[guess[0]])]
    assert [name for name, _ in published] == []


@pytest.mark.privileged
def test_no_account_but_the_users_has_a_password(host: Host, spec: Any) -> None:
    assert set(hashes(host)) <= {spec["node"]["user"]["name"]}


def test_nobody_but_the_user_and_root_has_a_shell(host: Host, spec: Any) -> None:
    rows = [line.split(":") for line in host.file("/etc/passwd").content_string.splitlines()]
    assert {row[0] for row in rows if row[6] not in NO_SHELLS} == {"root", spec["node"]["user"]["name"]}
    assert [row[0] for row in rows if row[2] == "0"] == ["root"]


@pytest.mark.privileged
def test_every_program_that_runs_as_its_owner_is_of_a_package(host: Host) -> None:
    programs = lines(host.run(f"find / {QUIETLY} -xdev -type f -perm /6000"))
    assert "/usr/bin/sudo" in programs
    packaged = set(host.run(f"dpkg-query -S {' '.join(programs + [name[4:] for name in programs])}").stdout.split())
    # A file below /usr is known without it where the package is older than the merged /usr.
    assert [name for name in programs if not {name, name.removeprefix("/usr")} & packaged] == []


def test_only_root_may_write_what_root_runs(host: Host, root: bool) -> None:
    places = "/etc /opt /usr /lib /lib64 /bin /sbin"
    anybody = "-perm -o+w ! -type l ! -type c ! ( -type d -perm -1000 )".replace("(", "\\(").replace(")", "\\)")
    assert lines(host.run(f"find {places} {QUIETLY} -xdev {anybody}"), blind=not root)[:5] == []
