"""The base system: user, login, privileges, services, network tools."""

from __future__ import annotations

import os
from typing import Any

import pytest
from testinfra.host import Host

from kiln.checks.asking import lacks_module, lines

OTHERS_MAY_WRITE = 0o022


@pytest.mark.component("base")
def test_the_system_is_the_tables(host: Host, spec: Any) -> None:
    pairs = (line.partition("=") for line in host.file("/etc/os-release").content_string.splitlines())
    said = {name: value.strip('"') for name, _, value in pairs}
    # Of a point release only the release counts, as the table has it.
    release, _, _ = said["VERSION_ID"].partition(".")
    assert f"{said['ID']}-{release}" == spec["base"]["distribution"]


def test_the_user_is_as_the_table_says(host: Host, spec: Any) -> None:
    wanted = spec["node"]["user"]
    user = host.user(wanted["name"])
    assert user.exists
    assert (user.uid, user.gid, user.home) == (wanted["uid"], wanted["gid"], wanted["home"])
    assert user.shell == "/bin/bash"
    home = host.file(wanted["home"])
    assert (home.user, home.group) == (wanted["name"], wanted["name"])
    assert not home.mode & OTHERS_MAY_WRITE


@pytest.mark.privileged
def test_root_has_no_password(host: Host) -> None:
    assert host.user("root").password in ("*", "!", "!*", "!!")


def test_the_user_may_become_root(host: Host, as_user: Any, spec: Any, root: bool) -> None:
    program = host.file("/usr/bin/sudo")
    assert (program.user, program.mode) == ("root", 0o4755)
    if root:
        # Asked as root, sudo leaves no note of the user's first use in his home. The last rule that fits counts.
        rules = host.run(f"sudo -l -U {spec['node']['user']['name']}").stdout.strip().splitlines()
        assert rules[-1].strip() == "(ALL) NOPASSWD: ALL"
    else:
        note = "~/.sudo_as_admin_successful"
        command = f"[ -e {note} ]; there=$?; sudo -n id -u; [ $there = 0 ] || rm -f {note}"
        assert as_user(command).stdout.strip() == "0"


def test_the_data_folder_is_the_users_and_empty(host: Host, spec: Any) -> None:
    data = host.file(spec["node"]["paths"]["data"])
    assert data.is_directory
    assert (data.user, data.group) == (spec["node"]["user"]["name"],) * 2
    assert not data.mode & OTHERS_MAY_WRITE
    # What people put there on a node is theirs.
    if os.environ.get("KILN_TARGET_KIND") == "image":
        assert data.listdir() == []


UPDATES = (
    "apt-daily.timer",
    "apt-daily.service",
    "apt-daily-upgrade.timer",
    "apt-daily-upgrade.service",
    "unattended-upgrades.service",
)


@pytest.mark.parametrize("unit", UPDATES)
def test_automatic_updates_are_masked(host: Host, unit: str) -> None:
    assert host.run(f"readlink /etc/systemd/system/{unit}").stdout.strip() == "/dev/null"


def test_ssh_starts_at_boot(host: Host) -> None:
    assert host.package("openssh-server").is_installed
    assert host.run("systemctl is-enabled ssh").stdout.strip() == "enabled"


def test_the_guides_address_line_gives_an_address(as_user: Any) -> None:
    interfaces = lines(as_user("ls /sys/class/net"))
    others = [name for name in interfaces if name != "lo"]
    if not others:
        pytest.skip("the target has no network")
    interface = "eth0" if "eth0" in others else others[0]
    line = f"ifconfig {interface} 2>/dev/null|awk '/inet addr:/ {{print $2}}'|sed 's/addr://'"
    addresses = as_user("ip -4 -o addr show | awk '{print $4}'").stdout
    found = as_user(line).stdout.strip()
    assert found
    assert f"{found}/" in addresses


def test_the_platforms_python_exists(host: Host) -> None:
    assert host.run("/usr/bin/python -c 'print(1)'").stdout.strip() == "1"


def test_the_system_python_holds_no_framework(host: Host) -> None:
    for name in ("tensorflow", "torch", "keras", "caffe"):
        # Not at home, where a folder of samples has a framework's name.
        run = host.run(f"cd / && /usr/bin/python -c 'import {name}'")
        assert run.rc != 0, f"{name} is in the system's Python"
        assert lacks_module(run, name), f"could not be looked at: {run.stderr.strip()}"


@pytest.mark.component("tensorflow")
def test_the_cpu_floor_is_declared(host: Host, spec: Any) -> None:
    declared = host.file(spec["node"]["paths"]["cpu_floor"]).content_string.split()
    assert declared == spec["components"]["tensorflow"]["cpu_flags"]


def test_qsctl_is_on_the_path(as_user: Any, spec: Any) -> None:
    run = as_user("qsctl --version 2>&1; qsctl help 2>&1")
    assert "cp" in run.stdout
    assert as_user("command -v qsctl").rc == 0


def test_qsctl_is_the_tables(host: Host, spec: Any) -> None:
    program = "import pkg_resources; print(pkg_resources.get_distribution('qsctl').version)"
    python = f"{spec['node']['paths']['qsctl']}/bin/python"
    assert lines(host.run(f'{python} -c "{program}"')) == [spec["components"]["qsctl"]["installed"]]


@pytest.mark.privileged
def test_qsctls_configuration_is_the_users_alone(host: Host, spec: Any) -> None:
    user = spec["node"]["user"]
    config = host.file(f"{user['home']}/.qingstor/config.yaml")
    assert config.is_file
    assert (config.user, config.group, config.mode) == (user["name"], user["name"], 0o600)
    for key in ("access_key_id", "secret_access_key"):
        assert f"{key}: ''" in config.content_string
