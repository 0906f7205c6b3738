"""The loss report: what a user did to a node is told with what to do about it, and nothing else is."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kiln import losses
from kiln.errors import KilnError
from kiln.losses import Loss, LossReport, rescue
from kiln.losses_place import made_from
from kiln.node_tools import data_manifest
from kiln.node_tools import losses as program
from kiln.store import Store
from tabled import DATA, HOME, PYTHON_PATH, SPEC, USER

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

IMAGE = "deeplearning:1.1-cpu"
PY3 = f"{HOME}/workspaces/py3"
SITE = f"{PY3}/lib/python3.6/site-packages"

USERS_WORK = f"""
cd {HOME}
as() {{ su {USER} -s /bin/bash -c "$1"; }}
as 'head -c 5000000 /dev/urandom > model.h5'
as 'mkdir -p dataset/empty dataset/images && cd dataset/images && for n in $(seq 3000); do echo $n > $n.txt; done'
as 'mkdir projects && ln model.h5 projects/same.h5 && touch projects/a && ln -s ../model.h5 projects/link'
as 'cd .config && for n in $(seq 30); do echo $n > conf$n; done'
as 'printf x > "$(printf "new\\nline \\377")"'
as 'mkdir -p plans/next .local/empty'
echo 'export MINE=1' >> .bashrc
mkdir -p /var/spool/cron/crontabs && echo '0 3 * * * {HOME}/train.sh' > /var/spool/cron/crontabs/{USER}
chmod 600 /var/spool/cron/crontabs/{USER}
mkdir {SITE}/example-1.0.dist-info && echo 'x = 1' > {SITE}/example.py && mkdir -p {SITE}/example_pkg
echo 'x = 1' > {SITE}/example_pkg/__init__.py
cd {SITE} && printf 'example.py,,\\nexample_pkg/__init__.py,,\\n' > example-1.0.dist-info/RECORD
mv {SITE}/Werkzeug-*.dist-info /tmp/
printf '\\nPackage: example-tool\\nStatus: install ok installed\\nVersion: 2.0-1\\n\\n' >> /var/lib/dpkg/status
printf '/usr\\n/usr/bin\\n/usr/bin/example-tool\\n' > /var/lib/dpkg/info/example-tool.list
echo example > /usr/bin/example-tool
echo 'vm.swappiness=1' > /etc/sysctl.d/99-mine.conf
chmod 4755 /usr/bin/env
python3 -c 'import os; os.setxattr("{HOME}/.bash_logout", "user.origin", b"mine")'
mkdir -p {DATA}/envs/{{gone,kept,old}}/bin {DATA}/envs/old/lib/python3.6 {DATA}/conda/bin
ln -s {HOME}/mine/bin/python3 {DATA}/envs/gone/bin/python; touch {DATA}/conda/bin/python
ln -s {PYTHON_PATH}/3.6/bin/python3 {DATA}/envs/kept/bin/python
echo 'home = {PYTHON_PATH}/3.6/bin' > {DATA}/envs/kept/pyvenv.cfg
touch {DATA}/envs/old/bin/python; echo /opt/mine > {DATA}/envs/old/lib/python3.6/orig-prefix.txt
"""

NOTHING_LOST = f"""
touch {HOME}/.profile /etc/passwd
echo ls > {HOME}/.bash_history
mkdir -p {HOME}/.cache/pip && echo x > {HOME}/.cache/pip/wheel
python3 -m compileall -q {PY3}/lib/python3.6/site-packages/absl
mkdir -p /srv/empty {HOME}/.hidden/empty
echo x > /tmp/scratch; echo x > /var/log/mine.log; echo abc > /etc/machine-id
echo x > {DATA}/kept
rm /usr/share/perl5/Debconf/Log.pm /etc/debian_version
"""


def docker(*words: str) -> str:
    run = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def inside(name: str, script: str) -> str:
    return docker("exec", name, "bash", "-euc", script)


@contextmanager
def container(*options: str) -> Iterator[str]:
    name = f"kiln-test-{uuid.uuid4().hex[:12]}"
    docker("run", "--detach", "--name", name, *options, IMAGE, "sleep", "infinity")
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all, for the image's manifest."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def used(store: Store) -> Iterator[tuple[str, LossReport]]:
    """A node that somebody used, and its report."""
    with container("--network=none", f"--volume={DATA}") as name:
        inside(name, USERS_WORK)
        docker("exec", "-d", "-u", USER, "-w", HOME, name, f"{PY3}/bin/python", "-c", "import time; time.sleep(999)")
        docker("exec", "-d", "-w", HOME, name, "python3", "-c", "import time; time.sleep(998)")
        docker("exec", "-d", "-w", "/", name, "python3", "-c", "import time; time.sleep(997)")  # as a service does
        docker("exec", "-d", "-u", USER, name, "bash", "-c", "exec -a jupyter-notebook sleep 999")
        time.sleep(0.5)
        yield name, find(name, IMAGE, store)


def find(target: str, image: str, store: Store, **more: Any) -> LossReport:
    return losses.find_losses(target, image, store, workspaces=list(SPEC.names()["workspaces"].values()), **more)


def of(report: LossReport, kind: str) -> dict[str, Loss]:
    return {loss.name: loss for loss in report.losses if loss.kind == kind}


def test_an_untouched_node_loses_nothing(store: Store) -> None:
    with container("--network=none") as name:
        before = docker("diff", name)
        report = find(name, IMAGE, store)
        assert report.losses == ()
        assert report.exit_code() == 0
        assert "no loss found" in report.as_text()
        assert docker("diff", name) == before


def test_what_is_no_loss_is_not_told(store: Store) -> None:
    with container("--network=none", f"--volume={DATA}") as name:
        inside(name, NOTHING_LOST)
        report = find(name, IMAGE, store)
        assert report.losses == ()
        assert sum(report.left_out.values()) >= 5
        assert f"no loss found; {sum(report.left_out.values())} files differ and are not told: " in report.as_text()
        assert "; 1 logs; " in report.as_text()
        assert set(report.left_out) <= {reason for _, reason in losses.NOISE}


def test_a_change_that_keeps_size_and_time_is_found_when_everything_is_read(store: Store) -> None:
    with container("--network=none") as name:
        inside(name, f"cd {HOME}; touch -r .bashrc /tmp/r; sed -i 's/^# ~/# -/' .bashrc; touch -r /tmp/r .bashrc")
        assert find(name, IMAGE, store).losses == ()
        assert [loss.name for loss in find(name, IMAGE, store, thorough=True).losses] == [f"{HOME}/.bashrc"]


def test_files_are_told_each_by_itself_or_as_a_folder(used: tuple[str, LossReport]) -> None:
    _, report = used
    files, folders = of(report, "file"), of(report, "files")
    assert files[f"{HOME}/model.h5"].size == 5_000_000
    assert files[f"{HOME}/model.h5"].advice == f"cp -a --parents {HOME}/model.h5 {DATA}/"
    assert files[f"{HOME}/.bashrc"].change == "changed"
    assert f"{HOME}/new%0Aline %FF" in files
    assert "note what you changed" in files["/usr/bin/env"].advice
    assert files["/etc/sysctl.d/99-mine.conf"].change == "added"
    assert {name: loss.count for name, loss in folders.items()} == {
        f"{HOME}/dataset/": 3000,
        f"{HOME}/projects/": 3,
        f"{HOME}/.config/": 30,
    }
    assert set(files) == {
        *(f"{HOME}/model.h5", f"{HOME}/.bashrc", f"{HOME}/new%0Aline %FF"),
        *("/usr/bin/env", "/etc/sysctl.d/99-mine.conf", f"{HOME}/.bash_logout"),
    }
    assert files[f"{HOME}/.bash_logout"].change == "changed"  # an xattr alone
    assert set(of(report, "folder")) == {f"{HOME}/plans/next/"}


def test_virtualenvs_on_the_volume_that_will_not_start_are_told(used: tuple[str, LossReport]) -> None:
    _, report = used
    assert set(of(report, "environment")) == {
        f"{DATA}/envs/gone (starts no more without {HOME}/mine/bin)",
        f"{DATA}/envs/old (starts no more without /opt/mine)",
    }


def test_packages_and_distributions_are_told_by_name_and_not_by_file(used: tuple[str, LossReport]) -> None:
    _, report = used
    distributions = {name: loss.change for name, loss in of(report, "distribution").items()}
    gone = next(name for name in distributions if "werkzeug" in name)
    assert distributions == {"py3: example 1.0": "added", gone: "removed"}
    assert f"pip freeze > {DATA}/requirements-py3.txt" in of(report, "distribution")["py3: example 1.0"].advice
    assert {name: loss.change for name, loss in of(report, "package").items()} == {"example-tool 2.0-1": "added"}
    assert "example" not in " ".join(of(report, "file"))


def test_crontabs_and_what_runs_are_told(used: tuple[str, LossReport]) -> None:
    _, report = used
    (crontab,) = of(report, "crontab").values()
    assert crontab.name == f"/var/spool/cron/crontabs/{USER}"
    assert crontab.advice.startswith(f"crontab -u {USER} -l > {DATA}/crontab-{USER}; ")
    trainings = of(report, "training")
    assert sorted(re.sub(r".*sleep\((\d+)\).*in (.*)\)", r"\1 \2", name) for name in trainings) == [
        *(f"998 {HOME}", f"999 {HOME}")
    ]
    assert all(training.size > 1 << 20 for training in trainings.values())
    (notebook,) = of(report, "notebook").values()
    assert notebook.name.startswith("jupyter-notebook 999")
    assert len(report.losses) == sum(len(of(report, kind)) for kind in {loss.kind for loss in report.losses})
    assert report.exit_code() == 3
    assert report.mounted
    assert all(loss.name in report.as_text() and loss.advice in report.as_text() for loss in report.losses)
    assert json.loads(json.dumps(report.as_data()))["size"] == report.size >= 5_000_000


def test_a_rescue_keeps_everything_of_a_file_and_overwrites_nothing(used: tuple[str, LossReport]) -> None:
    name, report = used
    folder = rescue(name, report)
    assert folder == f"{DATA}/rescued-from-1.1"
    format_ = "%U %G %a %.Y %s %h"
    for path in ("model.h5", "projects/same.h5", "dataset/images/17.txt", "projects/a"):
        stat = f"stat -c '{format_}' {HOME}/{path} {folder}{HOME}/{path}"
        original, copy = inside(name, stat).splitlines()
        assert original == copy
    assert inside(name, f"stat -c '%U %a' {folder} {folder}/var/spool/cron/crontabs/{USER}").splitlines() == [
        *(f"{USER} 755", "root 600")
    ]
    assert inside(name, f"readlink {folder}{HOME}/projects/link") == "../model.h5"
    same = f"stat -c %i {folder}{HOME}/model.h5 {folder}{HOME}/projects/same.h5"
    assert len(set(inside(name, same).splitlines())) == 1
    assert inside(
        name, f"ls {folder}{HOME}/dataset/images | wc -l; ls -d {folder}{HOME}/dataset/empty"
    ).splitlines() == [*("3000", f"{folder}{HOME}/dataset/empty")]
    inside(name, f'cmp "{HOME}/$(printf "new\\nline \\377")" "{folder}{HOME}/$(printf "new\\nline \\377")"')
    assert inside(name, f"stat -c %U {folder}{HOME}/plans/next") == USER
    note = inside(name, f"cat {folder}/RESTORE.md")
    assert f"sudo cp -a {folder}/home" in note
    assert "example" in note
    assert rescue(name, report) == folder
    inside(name, f"echo mine > {folder}{HOME}/model.h5")
    assert rescue(name, report) == f"{DATA}/rescued-from-1.1-2"
    assert inside(name, f"cat {folder}{HOME}/model.h5") == "mine"
    assert "partial" not in inside(name, f"ls {DATA}")


def test_a_rescue_keeps_xattrs_and_holes(store: Store) -> None:
    with container("--network=none", f"--volume={DATA}") as name:
        inside(name, f"truncate -s 1G {HOME}/sparse; echo end >> {HOME}/sparse")
        inside(name, f'python3 -c \'import os; os.setxattr("{HOME}/sparse", "user.origin", b"camera")\'')
        report = find(name, IMAGE, store)
        folder = rescue(name, report)
        asked = f'python3 -c \'import os; print(os.getxattr("{folder}{HOME}/sparse", "user.origin"))\''
        assert inside(name, asked) == "b'camera'"
        assert int(inside(name, f"stat -c %b {folder}{HOME}/sparse")) < 1000


def test_a_rescue_that_has_no_room_or_no_volume_leaves_nothing(store: Store) -> None:
    with container("--network=none", f"--tmpfs={DATA}:size=80m") as name:
        inside(name, f"head -c 30000000 /dev/urandom > {HOME}/model.h5")
        report = find(name, IMAGE, store)
        with pytest.raises(KilnError, match=f"{DATA} has 80 MiB free and the copy needs 92 MiB"):
            rescue(name, report)
        assert inside(name, f"ls -A {DATA}") == ""
    with container("--network=none") as name:
        inside(name, f"echo x > {HOME}/x")
        report = find(name, IMAGE, store)
        assert not report.mounted
        with pytest.raises(KilnError, match=f"no volume is mounted at {DATA}"):
            rescue(name, report)
        assert inside(name, f"ls -A {DATA}") == ""


def test_every_python_of_a_node_says_the_same(used: tuple[str, LossReport]) -> None:
    name, _ = used
    request = {
        "digests": ["/etc/passwd", "/nothing", f"{HOME}/new%0Aline %FF"],
        "packages": ["dash"],
        "distributions": [],
    }
    request["distributions"] = [f"{SITE}/example-1.0.dist-info"]
    said = []
    for python in ("/usr/bin/python3", f"{PYTHON_PATH}/2.7/bin/python2.7", f"{PYTHON_PATH}/3.6/bin/python3.6"):
        answers = []
        for words in (["facts", PY3], ["resolve"]):
            command = ["docker", "exec", "-i", name, python, "-c", Path(program.__file__).read_text(), *words]
            run = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
            # Free space and memory are other ones each time.
            answers.append(re.sub(r'"(free|inodes|memory)": \d+', "", run.stdout))
        said.append(answers)
    assert said[0] == said[1] == said[2]
    resolved = json.loads(said[0][1])
    assert resolved["digests"]["/nothing"] is None
    assert len(resolved["digests"][f"{HOME}/new%0Aline %FF"]) == 64
    assert "/bin/dash" in resolved["packages"]["dash"]
    assert f"{SITE}/example.py" in resolved["distributions"][f"{SITE}/example-1.0.dist-info"]


@pytest.mark.parametrize("user", ["root", USER])
def test_over_ssh(user: str, store: Store, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with container(f"--volume={DATA}") as name:
        public = key.with_suffix(".pub").read_text(encoding="utf-8")
        folder = "/root/.ssh" if user == "root" else f"{HOME}/.ssh"
        inside(name, f"install -d -m 700 -o {user} {folder} && echo {shlex.quote(public)} > {folder}/authorized_keys")
        inside(
            name, "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; mkdir -p /run/sshd; /usr/sbin/sshd"
        )
        inside(name, f"echo x > {HOME}/x")
        address = docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
        config = tmp_path / "config"
        config.write_text(
            f"Host {address}\n  IdentityFile {key}\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
            "  LogLevel ERROR\n",
            encoding="utf-8",
        )
        time.sleep(0.5)
        report = find(f"ssh://{user}@{address}", IMAGE, store, ssh_config=config)
        assert {loss.name for loss in report.losses} == {f"{HOME}/x", f"{folder}/authorized_keys"}
        place = rescue(f"ssh://{user}@{address}", report, ssh_config=config)
        assert inside(name, f"stat -c %U {place} && cat {place}{HOME}/x").splitlines() == [USER, "x"]
        assert made_from(f"ssh://{user}@{address}", config) == ("1.1", "cpu")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (lambda store: find("no-such-container", IMAGE, store), "there is no container no-such-container"),
        (lambda store: find("local", "no-such-image", store), "there is no image no-such-image"),
        (lambda store: find("ssh://nobody", IMAGE, store), "write ssh://user@host:port"),
        (lambda store: find("ssh://nobody@127.0.0.1:1", IMAGE, store), "cannot log in"),
    ],
)
def test_what_cannot_be_reached_is_one_sentence(store: Store, asked: Callable[[Store], LossReport], says: str) -> None:
    with pytest.raises(KilnError, match=says):
        asked(store)


def test_every_reason_to_leave_a_path_out_is_told() -> None:
    assert all(reason for _, reason in losses.NOISE)
    for path, kept in {
        f"{HOME}/.bash_history": True,
        f"{HOME}/notes.py": False,
        f"{HOME}/x/__pycache__/notes.cpython-36.pyc": True,
        f"{HOME}/.ssh/id_ed25519": False,
        f"{HOME}/.bashrc": False,
        f"{HOME}/.qingstor/config.yaml": True,
        "/etc/fstab": False,
        "/var/lib/mysql/data": False,
        "/var/log/syslog": True,
    }.items():
        assert any(re.fullmatch(pattern, path) for pattern, _ in losses.NOISE) is kept, path


def test_paths_are_written_as_in_a_manifest() -> None:
    raw = bytes(range(1, 256))
    assert program.quoted(raw) == data_manifest.quoted(raw)
    assert program.unquoted(program.quoted(raw)) == data_manifest.unquoted(program.quoted(raw)) == raw
    assert os.fsencode("%") == program.unquoted("%25")
