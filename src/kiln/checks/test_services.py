"""A booted node: what runs on it, and what other machines can reach."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

from kiln.checks.sockets import Open, reachable

# Clients of DHCP wait for their answer there, as nodes of the platform do: RFC 2131 section 4.1, RFC 8415 section 7.2.
DHCP = {"udp": {68, 546}, "tcp": set()}


def test_the_node_boots_whole(booted: Host) -> None:
    failed = booted.run("systemctl --failed --plain --no-legend --no-pager").stdout.splitlines()
    assert [line.split()[0] for line in failed] == []
    assert booted.run("systemctl is-system-running").stdout.strip() == "running"


def test_ssh_runs(booted: Host) -> None:
    assert booted.run("systemctl is-active ssh").stdout.strip() == "active"


@pytest.mark.component("agent")
def test_the_agent_runs(booted: Host) -> None:
    assert booted.run("systemctl is-active confd").stdout.strip() == "active"
    # A unit that dies and is started again is active in between.
    pid = "systemctl show --property=MainPID --value confd"
    first, second = booted.run(f"{pid}; sleep 1.5; {pid}").stdout.split()
    assert first == second != "0"


def test_ssh_answers_at_its_port(booted: Host, spec: Any) -> None:
    port = spec["node"]["ports"]["ssh"]
    run = booted.run(f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port} && read -r -t 5 line <&3 && echo \"$line\"'")
    assert run.stdout.startswith("SSH-2.0-"), run.stderr.strip() or f"port {port} says {run.stdout!r}"


def test_nothing_listens_but_what_the_table_names(booted: Host, spec: Any) -> None:
    ports, user = spec["node"]["ports"], spec["node"]["user"]
    users = {Open("tcp", port, user["uid"]) for name, port in ports.items() if name != "ssh"}
    found = set()
    for protocol in ("tcp", "udp"):
        tables = booted.run(f"cat /proc/net/{protocol} /proc/net/{protocol}6 2>/dev/null").stdout
        assert "local_address" in tables, "the kernel's tables cannot be read"
        found |= {entry for entry in reachable(protocol, tables) if entry.port not in DHCP[protocol]}
    assert sorted(found - users) == [Open("tcp", ports["ssh"], 0)]


@pytest.mark.privileged
def test_ssh_takes_passwords_as_the_release_says_and_never_roots(booted: Host, spec: Any) -> None:
    user = spec["node"]["user"]["name"]
    lines = booted.run(f"/usr/sbin/sshd -T -C user={user},host=localhost,addr=127.0.0.1").stdout.splitlines()
    options = dict(line.split(" ", 1) for line in lines if " " in line)
    assert options["passwordauthentication"] == ("no" if spec["login"] == "keys-only" else "yes")
    assert options["permitemptypasswords"] == "no"
    assert options["permitrootlogin"] in ("no", "prohibit-password", "without-password", "forced-commands-only")


def test_the_node_made_keys_of_its_own(booted: Host) -> None:
    keys = booted.run("stat -c '%U %a %n' /etc/ssh/ssh_host_*_key").stdout.splitlines()
    assert keys
    assert [line for line in keys if not line.startswith("root 600 ")] == []
    assert len(booted.file("/etc/machine-id").content_string.strip()) == 32
