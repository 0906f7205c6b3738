"""What the platform finds on a node: its agent, the commands it runs, and what both are told."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from testinfra.host import Host

from kiln.checks.devices import nvidia_gpus
from kiln.project import find_project
from kiln.tables import read_table

# Where the platform's agent stands. Source: its own installer and the platform's developer guide.
AGENT = "/opt/qingcloud/app-agent/bin"
CONFD = "/etc/confd"

RESOURCES = ("cmd.info", "gpus", "hosts", "qingstor")


@pytest.fixture(scope="module")
def appcenter() -> Any:
    """The table of the packages: what the platform is told to run."""
    project = find_project()
    return read_table(project.images / "appcenter.yml", project.root).data


def is_roots_program(host: Host, path: str) -> bool:
    """Whether root owns the program, and all may run and only root may write it; links are followed."""
    said = host.run(f"stat -L -c '%U %a %F' {path} && test -x {path}")
    return bool(said.rc == 0 and said.stdout.strip() == "root 755 regular file")


@pytest.mark.component("agent")
@pytest.mark.parametrize("program", ["confd", "exec.sh"])
def test_the_agents_program_is_there(host: Host, program: str) -> None:
    assert is_roots_program(host, f"{AGENT}/{program}"), f"{AGENT}/{program}"


@pytest.mark.component("agent")
def test_the_agent_starts_at_boot(host: Host) -> None:
    assert host.run("systemctl is-enabled confd").stdout.strip() == "enabled"


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_agent_has_something_to_render(host: Host, resource: str) -> None:
    file = host.file(f"{CONFD}/conf.d/{resource}.toml")
    assert (file.exists and file.user, file.exists and file.mode) == ("root", 0o644)
    template = tomllib.loads(file.content_string)["template"]
    source = host.file(f"{CONFD}/templates/{template['src']}")
    assert source.exists, f"there is no {template['src']}"
    assert (source.user, source.mode) == ("root", 0o644)
    assert host.file(template["dest"].rpartition("/")[0]).is_directory
    command = template.get("reload_cmd", "").split()
    assert not command or is_roots_program(host, command[0]), command


def test_the_credentials_go_to_the_user_alone(host: Host, spec: Any) -> None:
    user = spec["node"]["user"]
    text = host.file(f"{CONFD}/conf.d/qingstor.toml").content_string
    template = tomllib.loads(text)["template"]
    assert template["dest"] == f"{user['home']}/.qingstor/config.yaml"
    assert (template.get("uid"), template.get("gid"), template.get("mode")) == (user["uid"], user["gid"], "0600")


def test_the_platforms_commands_are_there(host: Host, appcenter: Any) -> None:
    health = appcenter["health_check"]
    commands = [service["cmd"] for service in appcenter["services"].values()]
    commands += [health["check_cmd"], health["action_cmd"]]
    assert len(commands) >= 6
    assert [command for command in commands if not is_roots_program(host, command)] == []


def test_the_commands_settings_are_those_of_the_table(host: Host, spec: Any) -> None:
    user, node = spec["node"]["user"], spec["node"]
    file = host.file("/etc/deeplearning/node.conf")
    assert (file.exists and file.user, file.exists and file.mode) == ("root", 0o644)
    pairs = [line.partition("=")[::2] for line in file.content_string.splitlines() if not line.startswith("#")]
    assert dict(pairs) == {
        "USER_HOME": user["home"],
        "USER_ID": str(user["uid"]),
        "GROUP_ID": str(user["gid"]),
        "DATA": node["paths"]["data"],
        "SSH_PORT": str(node["ports"]["ssh"]),
    }


def test_a_node_without_its_volume_is_unhealthy(host: Host, spec: Any, appcenter: Any) -> None:
    data = spec["node"]["paths"]["data"]
    if host.run(f"mountpoint -q {data}").rc == 0:
        pytest.skip(f"a volume is mounted at {data}")
    run = host.run(appcenter["health_check"]["check_cmd"])
    text = appcenter["errors"].get(run.rc, {}).get("en", f"exit code {run.rc}, which the table does not know")
    assert "not mounted" in text, text
    assert data in run.stderr


@pytest.mark.device("gpu")
def test_the_monitor_is_there(host: Host, spec: Any, appcenter: Any) -> None:
    path = spec["node"]["paths"]["gpu_monitor"]
    assert appcenter["monitor"]["cmd"].split()[-1] == path
    assert is_roots_program(host, path)


@pytest.mark.device("gpu")
def test_the_monitor_tells_every_item(host: Host, appcenter: Any) -> None:
    run = host.run(appcenter["monitor"]["cmd"])
    assert run.rc == 0, run.stderr
    values = json.loads(run.stdout)
    assert set(values) == set(appcenter["monitor"]["items"])
    assert [name for name, value in values.items() if type(value) is not int] == []
    if nvidia_gpus(host):
        assert values["MemoryTotal_1"] > 0, "there is an NVIDIA GPU, yet the monitor knows of no memory"
