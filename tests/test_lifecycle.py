"""The commands that the platform runs on a node: what they do, what they leave alone, and what their exit codes say."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import yaml

from kiln.platform import Cluster, Node, cluster, remove_volumes
from stage_container import CHECKOUT, PROJECT
from tabled import DATA, HOME, USER

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

IMAGE = "deeplearning:1.2-cpu"
AGENT = "/opt/qingcloud/app-agent/bin"
NAMES = "/etc/deeplearning/hosts"
ERRORS = yaml.safe_load((PROJECT.images / "appcenter.yml").read_text(encoding="utf-8"))["errors"]


class Shell:
    """A root shell on a node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def __call__(self, script: str, *, user: str = "root") -> subprocess.CompletedProcess[str]:
        command = ["docker", "exec", f"--user={user}", self.node.container, "bash", "-c", script]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """Runs a lifecycle command as the agent does: without the image's environment."""
        return self(f"exec env -i /opt/dl/bin/{name}")

    def says(self, script: str) -> str:
        done = self(script)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def made() -> Iterator[Cluster]:
    name = ""
    try:
        with cluster({}) as one:
            name = one.name
            yield one
    finally:
        remove_volumes(name)


@pytest.fixture(scope="module")
def boot(made: Cluster) -> Callable[[str], Shell]:
    def booted(volume_mode: str) -> Shell:
        node = made.boot(made.add(IMAGE), volume_mode=volume_mode)
        made.publish()
        made.await_configuration(node)
        return Shell(node)

    return booted


@pytest.fixture(scope="module")
def node(boot: Callable[[str], Shell]) -> Shell:
    return boot("")


@pytest.fixture
def fresh(node: Shell) -> Shell:
    """The node with an empty volume of root's, as the platform hands it over."""
    node(f"find {DATA} -mindepth 1 -delete; chown root:root {DATA}; chmod 755 {DATA}; systemctl start ssh")
    return node


def snapshot(node: Shell) -> str:
    """Everything of the volume that a command could change, times of change included."""
    return node.says(
        f"find {DATA} -printf '%p %y %U:%G %m %s %T@ %C@\\n' | sort; getfattr -Rd {DATA} 2>/dev/null; true"
    )


@pytest.mark.parametrize("command", ["init", "upgrade"])
def test_the_volume_becomes_the_users(fresh: Shell, command: str) -> None:
    assert fresh.says(f"stat -c %U {DATA}") == "root"
    assert fresh.run(command).returncode == 0
    assert fresh.says(f"stat -c %U:%G {DATA}") == f"{USER}:{USER}"
    assert fresh(f"echo mine >{DATA}/file", user=USER).returncode == 0


@pytest.mark.parametrize("command", ["init", "upgrade", "start", "stop", "health-check", "health-action", "hosts"])
def test_a_second_run_changes_nothing(fresh: Shell, command: str) -> None:
    fresh.says(f"echo one >{DATA}/one; ln -s one {DATA}/link; mkdir {DATA}/folder")
    assert fresh.run(command).returncode == 0
    before = snapshot(fresh), fresh.says(f"cat /etc/hosts; ls -ln {HOME}/.qingstor")
    again = fresh.run(command)
    assert (again.returncode, again.stdout) == (0, "")
    assert (snapshot(fresh), fresh.says(f"cat /etc/hosts; ls -ln {HOME}/.qingstor")) == before


@pytest.mark.parametrize("command", ["init", "upgrade"])
def test_what_users_put_there_belongs_to_whom_it_belonged(fresh: Shell, command: str) -> None:
    # A volume of release 1.0 holds a Miniconda of root's.
    fresh.says(
        f"mkdir -p {DATA}/miniconda2/bin; touch {DATA}/miniconda2/bin/python; "
        f"install -o 1234 -g 99 -m 640 /dev/null {DATA}/x; "
        f"touch '{DATA}/a name\n in two lines'; ln -s /etc/passwd {DATA}/link; chown -h 77 {DATA}/link"
    )
    before = fresh.says(f"find {DATA} -mindepth 1 -printf '%p %U:%G %m %T@ %C@\\n' | sort; stat -c %u /etc/passwd")
    assert fresh.run(command).returncode == 0
    after = fresh.says(f"find {DATA} -mindepth 1 -printf '%p %U:%G %m %T@ %C@\\n' | sort; stat -c %u /etc/passwd")
    assert after == before
    assert fresh.says(f"stat -c %U {DATA}") == USER


@pytest.mark.parametrize("command", ["init", "upgrade"])
def test_interrupted_at_any_moment_it_can_be_repeated(fresh: Shell, command: str) -> None:
    for delay in (0, 0.002, 0.005, 0.01, 0.02, 0.05):
        fresh(f"chown root:root {DATA}; rm -rf {HOME}/.qingstor/none")
        fresh(f"setsid env -i /opt/dl/bin/{command} & sleep {delay}; kill -KILL -- -$!; wait")
        assert fresh.run(command).returncode == 0
        assert fresh.says(f"stat -c %U {DATA}; stat -c '%U %a' {HOME}/.qingstor/config.yaml").splitlines() == [
            USER,
            f"{USER} 600",
        ]


def names(node: Shell, number: int) -> None:
    """Another node is known, so that /etc/hosts must be written anew."""
    node.says(f"echo 10.0.0.{number} other{number} >{NAMES}")


@pytest.fixture
def knowing(fresh: Shell) -> Iterator[Shell]:
    """A node whose names are not rendered anew meanwhile."""
    fresh.says(f"systemctl stop confd; cp {NAMES} /root/names")
    yield fresh
    fresh.says(f"cat /root/names >{NAMES}; /opt/dl/bin/hosts; systemctl start confd")


def test_two_at_once_lose_no_name(knowing: Shell) -> None:
    """confd runs hosts while the platform runs start."""
    for number in range(25):
        names(knowing, number)
        knowing("for n in 1 2 3 4 5 6; do env -i /opt/dl/bin/hosts & done; wait")
        known = knowing.says("cat /etc/hosts").splitlines()
        assert [line.split()[1] for line in known if "127.0.0.1" in line] == ["localhost"], number
        assert [line for line in known if "other" in line] == [f"10.0.0.{number} other{number}"]


def test_a_full_disk_loses_no_name(knowing: Shell) -> None:
    names(knowing, 1)
    before = knowing.says("cat /etc/hosts")
    assert knowing("ulimit -f 0; exec env -i /opt/dl/bin/hosts").returncode != 0
    assert knowing.says("cat /etc/hosts") == before


# A root folder with little more than the command, where /etc/hosts is no mount: as on an instance.
INSTANCE = """
set -e
rm -rf /root/instance && mkdir /root/instance && cd /root/instance
mkdir -p etc/deeplearning proc/self run usr/bin
ln -s usr/bin bin
echo 127.0.0.1 localhost >etc/hosts
touch proc/self/mounts
for program in bash sed flock cp cat cmp grep mv rm; do
  path=$(command -v $program)
  cp -L $path bin
  cp -L --parents $(ldd $path | grep -o '/[^ ]*') .
done
cp -a --parents /opt/dl/bin /opt/dl/lib /etc/deeplearning/node.conf .
"""


def test_a_kill_loses_no_name_where_hosts_is_no_mount(fresh: Shell) -> None:
    fresh.says(INSTANCE)
    hosts = "env -i /usr/sbin/chroot /root/instance /opt/dl/bin/hosts"
    for number in range(20):
        fresh.says(f"echo 10.0.0.{number} other{number} >/root/instance{NAMES}")
        fresh(f"setsid {hosts} & sleep 0.0{number:02}; kill -KILL -- -$!; wait")
        assert fresh.says("head -n1 /root/instance/etc/hosts") == "127.0.0.1 localhost"
    before = fresh.says("stat -c %i /root/instance/etc/hosts")
    fresh.says(f"echo 10.0.0.9 last >/root/instance{NAMES}; {hosts}")
    assert "10.0.0.9 last" in fresh.says("cat /root/instance/etc/hosts")
    assert fresh.says("ls /root/instance/etc | grep hosts") == "hosts"
    assert fresh.says("stat -c %i /root/instance/etc/hosts") != before, "it is written in place"
    assert fresh.says("stat -c '%U %a' /root/instance/etc/hosts") == "root 644"


def test_start_revives_what_is_down(fresh: Shell) -> None:
    fresh.says("systemctl stop ssh")
    assert fresh.run("health-check").returncode == 12
    assert fresh.run("start").returncode == 0
    assert fresh.run("health-check").returncode == 0


def test_stop_ends_what_uses_the_volume_and_nothing_else(fresh: Shell) -> None:
    fresh.says(f"setsid sleep 301 >{DATA}/open 2>&1 & cd {DATA} && setsid sleep 302 >/dev/null 2>&1 &")
    fresh.says("cd / && setsid sleep 303 >/dev/null 2>&1 &")
    assert fresh.run("stop").returncode == 0
    running = fresh.says("pgrep -a sleep || true")
    assert "301" not in running
    assert "302" not in running
    assert "303" in running
    fresh("pkill -f 'sleep 303'")


def test_stop_ends_what_runs_from_the_volume(fresh: Shell) -> None:
    fresh.says(f"cp /bin/sleep {DATA}/program; cd / && setsid {DATA}/program 305 >/dev/null 2>&1 &")
    assert fresh.run("stop").returncode == 0
    assert "305" not in fresh.says(f"pgrep -af {DATA}/program || true")


def test_stop_does_not_wait_for_ever(fresh: Shell) -> None:
    fresh.says(f"trap '' TERM; setsid sleep 304 >{DATA}/open 2>&1 &")
    begun = time.monotonic()
    done = fresh.run("stop")
    assert done.returncode == 0
    assert "sleep 304" in done.stderr
    assert f"still uses {DATA}" in done.stderr
    assert 10 < time.monotonic() - begun < 60
    fresh("pkill -KILL -f 'sleep 304'")


def test_qsctl_accepts_the_file_of_a_cluster_without_qingstor(fresh: Shell) -> None:
    assert fresh.run("init").returncode == 0
    assert fresh.says(f"stat -c '%U %a' {HOME}/.qingstor/config.yaml") == f"{USER} 600"
    done = fresh("timeout 20 bash -lc 'qsctl ls qs://mydata'", user=USER)
    assert "format error" not in done.stdout + done.stderr, "qsctl 1.x refuses an empty file"
    assert "cannot be reached" in done.stderr, "it did not come so far as to ask the object store"


def test_the_template_is_rendered_again_with_owner_and_mode(made: Cluster, fresh: Shell) -> None:
    """confd of the earlier packages gave the credentials to root and to everybody at each change."""
    for key in ("A" * 20, "B" * 20):
        made.env = {"QingStor": "true", "access_key": key, "secret_key": "s" * 40}
        made.publish()
        for _ in range(150):
            if key in fresh.says(f"cat {HOME}/.qingstor/config.yaml"):
                break
            time.sleep(0.2)
        assert key in fresh.says(f"cat {HOME}/.qingstor/config.yaml")
        assert fresh.says(f"stat -c '%U:%G %a' {HOME}/.qingstor/config.yaml") == f"{USER}:{USER} 600"


SOUND = ('dest = "/root/confd/sound"', '{{getv "/host/none" "a default"}}')


@pytest.mark.parametrize(
    ("settings", "template", "words"),
    [
        ('dest = "/root/confd/made"', '{{getv "/host/none"}}', "key does not exist: /host/none"),
        ('dest = "/root/confd/made"', '{{getv "/env/QingStor"}}', "key does not exist: /env/QingStor"),
        ('dest = "/root/confd/made"\nmode = "rw"', "", 'mode "rw" is not octal'),
        ('dest = "/root/confd/none/made"', "", "no such file or directory"),
        ('dest = "/root/confd/templates"', "", "file exists"),
        ('dest = "/root/confd/made"\nreload_cmd = "echo no; exit 3"', "", "reload_cmd: exit status 3: no"),
        ("dest = ", "", "broken.toml: toml: line 4"),
    ],
    ids=["missing key", "key of other keys", "mode", "no folder", "a folder", "reload_cmd", "no TOML"],
)
def test_confd_tells_what_is_wrong_and_renders_the_rest(fresh: Shell, settings: str, template: str, words: str) -> None:
    fresh.says("rm -rf /root/confd; mkdir -p /root/confd/conf.d /root/confd/templates")
    for name, (one, text) in {"broken": (settings, template), "sound": SOUND}.items():
        place = f"/root/confd/conf.d/{name}.toml"
        fresh.says(f"echo {shlex.quote(text)} >/root/confd/templates/{name}")
        toml = f'[template]\nkeys = ["/host"]\n{one}\nsrc = "{name}"'
        fresh.says(f"echo {shlex.quote(toml)} >{place}")
    done = fresh(f"{AGENT}/confd -onetime -confdir /root/confd")
    assert done.returncode == 1
    assert "/root/confd/conf.d/broken.toml: " in done.stderr
    assert words in done.stderr
    assert fresh.says("cat /root/confd/sound") == "a default"
    assert fresh.says("ls -A /root/confd | grep -v made").split() == ["conf.d", "sound", "templates"]


def test_no_volume(boot: Callable[[str], Shell]) -> None:
    node = boot("none")
    for command in ("init", "upgrade", "start", "health-check"):
        done = node.run(command)
        assert (done.returncode, f"no volume is mounted at {DATA}" in done.stderr) == (10, True), command
    assert node.run("stop").returncode == 0, "a node without a volume must still be stopped"


def test_a_volume_that_cannot_be_written_to(boot: Callable[[str], Shell]) -> None:
    node = boot("readonly")
    for command in ("init", "upgrade", "start", "health-check"):
        done = node.run(command)
        assert (done.returncode, "cannot be written to" in done.stderr) == (11, True), command


def test_ssh_that_cannot_be_started(fresh: Shell) -> None:
    fresh.says("systemctl stop ssh; systemctl mask ssh")
    try:
        for command in ("health-check", "health-action", "start"):
            assert fresh.run(command).returncode == 12, command
    finally:
        fresh.says("systemctl unmask ssh; systemctl start ssh")


def test_an_ssh_server_that_cannot_be_stopped_may_still_be_started(fresh: Shell) -> None:
    stub = "/usr/local/sbin/systemctl"
    fresh.says(f"systemctl stop ssh; printf '#!/bin/sh\n[ $1 = stop ] || exec /bin/systemctl $@; exit 1' >{stub}")
    fresh.says(f"chmod 755 {stub}")
    try:
        assert fresh.run("health-action").returncode == 0
        assert fresh.run("health-check").returncode == 0
    finally:
        fresh.says(f"rm {stub}; systemctl start ssh")


def test_what_else_fails_has_a_text(fresh: Shell) -> None:
    stub = "/usr/local/sbin/chown"
    fresh.says(f"printf '#!/bin/sh\nexit 1' >{stub}; chmod 755 {stub}")
    try:
        assert fresh.run("init").returncode in ERRORS
    finally:
        fresh.says(f"rm {stub}")


def test_a_gpu_that_is_gone(fresh: Shell) -> None:
    fresh.says("echo 1 >/etc/deeplearning/gpus")
    try:
        assert fresh.run("health-check").returncode == 13
    finally:
        fresh.says("echo 0 >/etc/deeplearning/gpus")


def test_an_image_without_its_settings(fresh: Shell) -> None:
    fresh.says("mv /etc/deeplearning/node.conf /root")
    try:
        for command in ("init", "start", "stop", "upgrade", "health-check", "health-action"):
            assert fresh.run(command).returncode == 14, command
    finally:
        fresh.says("mv /root/node.conf /etc/deeplearning")


def test_an_unknown_name_is_refused(fresh: Shell) -> None:
    fresh.says("ln -sf ../lib/lifecycle /opt/dl/bin/destroy")
    done = fresh.run("destroy")
    assert done.returncode == 2
    assert "health-action" in done.stderr
    fresh.says("rm /opt/dl/bin/destroy")


def test_every_code_has_its_text() -> None:
    script = (CHECKOUT / "roles/appcenter/files/root/opt/dl/lib/lifecycle").read_text(encoding="utf-8")
    (codes,) = re.findall("^readonly (.*)$", script, re.MULTILINE)
    assert ERRORS.keys() == {1, *(int(code) for code in re.findall(r"=(\d+)", codes))}
    assert all(text.keys() == {"en", "zh-cn"} for text in ERRORS.values())
