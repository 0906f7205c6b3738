"""The scripts that the system roles ship and run, as real processes."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tabled import CPU_FLOOR, PYTHON3

SERIES = f"{sys.version_info.major}.{sys.version_info.minor}"
EPOCH = 1533081600

# net-tools 2.10
IFCONFIG = """\
eth0: flags=4163<UP,BROADCAST,RUNNING,MULTICAST>  mtu 1500
        inet 10.0.0.1  netmask 255.255.255.0  broadcast 10.0.0.255
        inet6 fe80::42:acff:fe11:2  prefixlen 64  scopeid 0x20<link>
        ether 02:42:ac:11:00:02  txqueuelen 0  (Ethernet)
"""


@pytest.fixture
def ifconfig(root: Path, tmp_path: Path) -> Path:
    """The wrapper, over a net-tools that prints IFCONFIG for eth0 and knows no other interface."""
    tool = tmp_path / "net-tools"
    tool.write_text(f'#!/bin/sh\n[ "$1" = eth0 ] || exit 1\ncat <<EOF\n{IFCONFIG}EOF\n')
    tool.chmod(0o755)
    wrapper = tmp_path / "ifconfig"
    shipped = root / "roles/base/files/root/usr/local/bin/ifconfig"
    wrapper.write_text(shipped.read_text().replace("/sbin/ifconfig", str(tool)))
    wrapper.chmod(0o755)
    return wrapper


def test_the_guides_line_finds_the_address(ifconfig: Path) -> None:
    line = f"{ifconfig} eth0 2>/dev/null|awk '/inet addr:/ {{print $2}}'|sed 's/addr://'"
    assert subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout == "10.0.0.1\n"


def test_the_address_lines_are_those_of_old_net_tools(ifconfig: Path) -> None:
    lines = subprocess.run([ifconfig, "eth0"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[1].strip() == "inet addr:10.0.0.1  Bcast:10.0.0.255  Mask:255.255.255.0"
    assert lines[2].strip() == "inet6 addr: fe80::42:acff:fe11:2/64 Scope:Link"
    assert lines[3] == IFCONFIG.splitlines()[3]


def test_an_unknown_interface_still_fails(ifconfig: Path) -> None:
    assert subprocess.run([ifconfig, "eth9"], check=False).returncode == 1


@pytest.mark.parametrize(("flags", "warning"), [("fpu\n", ""), ("fpu\nno_such_flag\n", "lacks no_such_flag,")])
def test_a_login_shell_names_the_missing_flag(root: Path, tmp_path: Path, flags: str, warning: str) -> None:
    floor = tmp_path / "cpu-floor"
    floor.write_text(flags)
    profile = (root / "roles/base/files/root/etc/profile.d/cpu-floor.sh").read_text()
    answer = subprocess.run(
        ["sh", "-c", profile.replace(CPU_FLOOR, str(floor))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == bool(warning)
    assert warning in answer.stderr


def test_a_carried_interpreter_forgets_its_old_prefix(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "old" / f"python-{PYTHON3}"
    config = old / "lib/python3.6/config-3.6m"
    config.mkdir(parents=True)
    (old / "bin").mkdir()
    (config / "Makefile").write_text(f"prefix=\t\t{old}\nabs_builddir=\t/tmp/build.1/Python-{PYTHON3}\n")
    (old / "lib/python3.6/_sysconfigdata.py").write_text(f"x = '-L{old}/lib -I/tmp/build.1/Python-{PYTHON3}/Include'")
    (old / "bin/python3.6-config").write_text(f"#!{old}/bin/python3.6\n")
    with tarfile.open(tmp_path / "python.tar", "w") as archive:
        archive.add(old, f"python-{PYTHON3}")
    new = tmp_path / "opt" / "3.6"
    run_script(root / "roles/python_build/files/carry.sh", str(tmp_path / "python.tar"), str(new))
    assert (new / "lib/python3.6/_sysconfigdata.py").read_text() == f"x = '-L{new}/lib -I/usr/src/python/Include'"
    assert (new / "bin/python3.6-config").read_text() == f"#!{new}/bin/python3.6\n"


def run_script(script: Path, *arguments: str) -> str:
    """Runs a role's script as the role does, from its standard input; its output."""
    answer = subprocess.run(
        ["bash", "-s", "--", *arguments],
        input=script.read_text(),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    if answer.returncode:
        raise AssertionError(answer.stderr)
    return answer.stdout


def make_wheel(folder: Path, name: str, version: str, content: str, requires: str = "") -> str:
    """A wheel of one module, and its requirement line."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in files.items():
            wheel.writestr(member, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            record += f"{member},sha256={digest},{len(text)}\n"
        wheel.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Workspaces:
    """Two virtualenvs of this interpreter, and wheels for them."""

    def __init__(self, folder: Path, script: Path, empty: Path) -> None:
        self.script = script
        self.folder = folder / "workspaces"
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self.requirements = self.wheels / f"requirements-python{SERIES}.txt"
        for name in ("one", "two"):
            shutil.copytree(empty, self.folder / name, symlinks=True)
            (self.folder / name / "constraints.txt").write_text("# why\n")

    def install(self, held: str = "", refused: str = "") -> str:
        return run_script(
            self.script,
            str(self.wheels),
            "/nonexistent",
            str(self.folder),
            str(EPOCH),
            held,
            refused,
            f"one={SERIES}",
            f"two={SERIES}",
        )

    def module(self, workspace: str, name: str) -> Path:
        return self.folder / workspace / "lib" / f"python{SERIES}" / "site-packages" / name


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtualenv to copy: making one takes seconds."""
    folder = tmp_path_factory.mktemp("virtualenv") / "empty"
    venv.create(folder, with_pip=True)
    return folder


@pytest.fixture
def workspaces(root: Path, tmp_path: Path, empty: Path) -> Workspaces:
    return Workspaces(tmp_path, root / "roles/workspace_packages/files/install.sh", empty)


def test_packages_are_installed_compiled_linked_and_held(workspaces: Workspaces) -> None:
    workspaces.requirements.write_text(make_wheel(workspaces.wheels, "Torch", "1.0", "answer = 42\n"))
    assert "Successfully installed" in workspaces.install(held="torch", refused="torch-nightly")
    one, two = workspaces.module("one", "Torch.py"), workspaces.module("two", "Torch.py")
    assert one.stat().st_ino == two.stat().st_ino
    assert one.stat().st_mtime == EPOCH
    compiled = workspaces.module("one", f"__pycache__/Torch.cpython-{SERIES.replace('.', '')}.pyc").read_bytes()
    assert int.from_bytes(compiled[8:12], "little") == EPOCH
    constraints = (workspaces.folder / "one" / "constraints.txt").read_text()
    assert constraints == "# why\nTorch==1.0\ntorch-nightly<0\n"
    again = workspaces.install(held="torch", refused="torch-nightly")
    assert "Successfully installed" not in again
    assert "Constrained" not in again
    assert (workspaces.folder / "one" / "constraints.txt").read_text() == constraints


def test_a_wheel_of_another_content_is_refused(workspaces: Workspaces) -> None:
    line = make_wheel(workspaces.wheels, "torch", "1.0", "answer = 42\n")
    make_wheel(workspaces.wheels, "torch", "1.0", "answer = 43\n")
    workspaces.requirements.write_text(line)
    with pytest.raises(AssertionError, match="DO NOT MATCH THE HASHES"):
        workspaces.install()


def test_a_missing_requirement_fails(workspaces: Workspaces) -> None:
    line = make_wheel(workspaces.wheels, "torch", "1.0", "answer = 42\n", requires="Requires-Dist: numpy\n")
    workspaces.requirements.write_text(line)
    with pytest.raises(AssertionError):
        workspaces.install()


def test_a_group_without_its_list_fails(workspaces: Workspaces) -> None:
    with pytest.raises(AssertionError, match=r"requirements-python.* does not exist"):
        workspaces.install()
