"""Role seal in a real container: what must not be in an image goes, what is the user's stays."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kiln.bootstrap import Base, index_folder, lock_name
from kiln.plan import Plan
from stage_container import CHECKOUT, STORE, Run, Target, baked_plan, chain, named, started
from tabled import DATA, HOME

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MARK = "planted-7f3a"
"""Stands in every planted file: none of it may be found afterwards."""


GONE = [
    # A node's own
    "/etc/ssh/ssh_host_rsa_key",
    "/etc/ssh/ssh_host_ed25519_key.pub",
    "/var/lib/dbus/machine-id",
    "/var/lib/systemd/random-seed",
    # Logs, backups, temporary files
    *(
        f"/var/{name}"
        for name in (
            "log/dpkg.log",
            "log/apt/term.log",
            "log/journal/0123/system.journal",
            "backups/passwd.bak",
            "tmp/build/object.o",
        )
    ),
    "/etc/passwd-",
    "/etc/shadow-",
    # Mirrors and proxies of the build, and what they gave
    "/etc/pip.conf",
    "/etc/apt/sources.list.d/0000sources.list",
    "/etc/apt/apt.conf.d/95proxies",
    "/etc/apt/auth.conf",
    "/etc/apt/auth.conf.d/mirror.conf",
    "/var/lib/apt/lists/mirror_dists_bookworm_InRelease",
    "/var/lib/apt/lists/partial/mirror_Packages",
    "/var/cache/apt/archives/hello_1_amd64.deb",
    "/var/cache/apt/pkgcache.bin",
    "/var/cache/ldconfig/aux-cache",
    # Histories, caches, credentials of root and of the user
    *(
        f"{home}/{name}"
        for home in ("/root", HOME)
        for name in (
            ".bash_history",
            ".python_history",
            ".viminfo",
            ".ansible/tmp/x",
            ".cache/pip/http/x",
            ".config/pip/pip.conf",
            ".pip/pip.conf",
            ".gnupg/secring.gpg",
            ".ssh/authorized_keys",
            ".ssh/known_hosts",
            ".ssh/id_ed25519",
            ".aws/credentials",
            ".docker/config.json",
            ".git-credentials",
            ".netrc",
            ".pypirc",
        )
    ),
]

KEPT = [
    f"{HOME}/notes.txt",
    f"{HOME}/.bashrc",
    f"{HOME}/.ssh/config",
    f"{HOME}/.config/matplotlib/matplotlibrc",
    f"{HOME}/.qingstor/config.yaml",
    f"{HOME}/project/.cache/kept",
    f"{DATA}/model.bin",
    f"{DATA}/.bash_history",
    "/opt/dl/data.bin",
    "/etc/apt/apt.conf.d/90kept",
    "/etc/apt/sources.list",
    "/var/lib/dpkg/kept",
]


def write(paths: list[str]) -> str:
    """A script that writes files."""
    return "".join(f"mkdir -p $(dirname {path}); echo {MARK} > {path}\n" for path in paths)


class Sealed:
    """A container with all of that in it, sealed."""

    def __init__(self, target: Target) -> None:
        self.target = target
        target.shell(write(GONE + KEPT))
        target.shell(
            f"""
            echo 'Acquire::http::Proxy "http://{MARK}:3128";' > /etc/apt/apt.conf.d/95proxies
            echo '0123456789abcdef0123456789abcdef' > /etc/machine-id
            printf 'PATH="/usr/bin"\\nhttps_proxy=http://{MARK}\\nNO_PROXY={MARK}\\n' > /etc/environment
            find /var/lib/dpkg/status {" ".join(KEPT)} -exec sha256sum {{}} + > /run/before
            """
        )
        self.first: Run = target.run_role("seal", seal_home=HOME)
        self.second: Run = target.run_role("seal", seal_home=HOME)

    def present(self, paths: list[str]) -> list[str]:
        return self.target.shell(f'for path in {" ".join(paths)}; do [ ! -e "$path" ] || echo "$path"; done').split()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return baked_plan()


@pytest.fixture(scope="module")
def sealed(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    with started(named(plan, "base"), tmp_path_factory.mktemp("seal")) as target:
        yield Sealed(target)


def test_the_role_removes_once(sealed: Sealed) -> None:
    assert sealed.first.code == sealed.second.code == 0
    assert sealed.first.changed == ["seal : Remove what must not be in an image"]
    assert sealed.second.changed == []


def test_what_must_not_be_in_an_image_is_gone(sealed: Sealed) -> None:
    assert sealed.present(GONE) == []


def test_the_machine_gets_its_identity_at_its_first_boot(sealed: Sealed) -> None:
    # Empty, not missing: systemd's machine-id(5) calls that "uninitialized", and writes it.
    assert sealed.target.shell("stat -c %s /etc/machine-id") == "0\n"


def test_proxies_leave_the_environment_and_nothing_else(sealed: Sealed) -> None:
    assert sealed.target.shell("cat /etc/environment") == 'PATH="/usr/bin"\n'


def test_apt_can_start_again(sealed: Sealed) -> None:
    assert sealed.present(["/var/lib/apt/lists/partial", "/var/cache/apt/archives/partial"]) == [
        "/var/lib/apt/lists/partial",
        "/var/cache/apt/archives/partial",
    ]


def test_nothing_planted_is_found_outside_what_is_kept(sealed: Sealed) -> None:
    found = sealed.target.shell(f"grep -rlF {MARK} /etc /home /root /var /opt {DATA} /srv || true").split()
    assert sorted(found) == sorted(KEPT)


def test_what_is_the_users_is_untouched(sealed: Sealed) -> None:
    assert sealed.present(KEPT) == KEPT
    sealed.target.shell("sha256sum --check --quiet /run/before")


def test_what_is_mounted_there_stays(plan: Plan, tmp_path: Path) -> None:
    """The build's package lists and archives are mounts: they are not the image's, and others use them."""
    mounts = []
    for place in ("/var/lib/apt/lists", "/var/cache/apt/archives"):
        folder = tmp_path / Path(place).name
        folder.mkdir()
        (folder / "kept").touch()
        mounts.append((str(folder), place, "rw"))
    with started(named(plan, "base"), tmp_path, mounts) as target:
        assert target.run_role("seal", seal_home=HOME).code == 0
    assert all((Path(source) / "kept").exists() for source, _, _ in mounts)


def test_the_sealed_images_need_no_second_seal(plan: Plan) -> None:
    script = (CHECKOUT / "roles/seal/files/seal.sh").read_text(encoding="utf-8")
    for stage in plan.finals:
        command = ["docker", "run", "--rm", "--interactive", stage.reference, "sh", "-s", HOME]
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=True)
        assert done.stdout == "", stage.tag


def test_finished_images_name_their_distributions_archive_and_nvidias_only(plan: Plan) -> None:
    for stage in plan.finals:
        command = ["docker", "run", "--rm", stage.reference, "sh", "-c", "ls /etc/apt/sources.list.d"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        gpu = any(other.name == "cuda" for other in chain(plan, stage))
        assert listed == (["nvidia-cuda.sources", "nvidia-machine-learning.sources"] if gpu else []), stage.tag


def test_accounts_carry_the_date_of_the_packages_not_todays(plan: Plan) -> None:
    bootstrap = named(plan, "bootstrap")
    digest = STORE.machine_lock(lock_name(Base.of(bootstrap.variables)))
    assert digest is not None
    dates = [
        datetime.strptime(line.partition(": ")[2], "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=UTC)
        for path in (index_folder(STORE, digest) / "lists").glob("*Release")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("Date: ")
    ]
    command = ["docker", "run", "--rm", bootstrap.reference, "cut", "-d:", "-f3", "/etc/shadow"]
    days = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert set(days) == {str(int(max(dates).timestamp()) // 86400)}
