"""The host's interpreters, found and packed, against prefixes made up here."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from kiln.errors import KilnError
from kiln.host_python import find_host_python, pack_host_python
from tabled import PYTHON2, PYTHON3

UCS2, UCS4 = 0xFFFF, 0x10FFFF


def install(prefix: Path, version: str, *, maxunicode: int = UCS4, base_prefix: Path | None = None) -> None:
    """A prefix as an interpreter's installation leaves it, whose program answers the one question asked of it."""
    series = ".".join(version.split(".")[:2])
    packages = prefix / "lib" / f"python{series}" / "site-packages" / "thing"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "include").mkdir()
    packages.mkdir(parents=True)
    answer = (
        f'{{"version": "{version}", "final": true, "maxunicode": {maxunicode}, '
        f'"prefix": "{prefix}", "base_prefix": "{base_prefix or prefix}"}}'
    )
    program = prefix / "bin" / f"python{series}"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    (prefix / "bin" / "python").symlink_to(program.name)
    (prefix / "bin" / "pip").write_text("of an installed package")
    (packages / "__init__.py").write_text("of an installed package")
    library = prefix / "lib" / f"python{series}"
    (library / "os.py").write_text("of the interpreter")
    (library / "os.pyc").write_bytes(b"byte code")
    (library / "__pycache__").mkdir()
    (library / "__pycache__" / "os.pyc").write_bytes(b"byte code")


@pytest.fixture
def pyenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pyenv's folder of versions, and nothing else on the PATH."""
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    return tmp_path / "pyenv" / "versions"


def test_pyenvs_interpreter_of_the_version_is_found(pyenv: Path) -> None:
    install(pyenv / PYTHON2, PYTHON2)
    found = find_host_python(PYTHON2)
    assert found is not None
    assert found.prefix == pyenv / PYTHON2


def test_an_interpreter_on_the_path_is_found(pyenv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "opt", PYTHON3)
    monkeypatch.setenv("PATH", f"{tmp_path / 'nowhere'}{os.pathsep}{tmp_path / 'opt' / 'bin'}")
    assert find_host_python(PYTHON3) is not None


def test_another_release_of_the_series_is_not_taken(pyenv: Path) -> None:
    install(pyenv / PYTHON2, "2.7.17")
    assert find_host_python(PYTHON2) is None


def test_a_ucs2_build_is_not_taken(pyenv: Path) -> None:
    install(pyenv / PYTHON2, PYTHON2, maxunicode=UCS2)
    assert find_host_python(PYTHON2) is None


def test_a_virtualenv_is_not_taken(pyenv: Path, tmp_path: Path) -> None:
    install(pyenv / PYTHON3, PYTHON3, base_prefix=tmp_path / "elsewhere")
    assert find_host_python(PYTHON3) is None


def test_a_distributions_interpreter_is_not_taken(pyenv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "opt", PYTHON3)
    program = tmp_path / "opt" / "bin" / "python3.6"
    program.write_text(program.read_text().replace(str(tmp_path / "opt"), "/usr"))
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_host_python(PYTHON3) is None


def test_a_program_that_fails_is_not_taken(pyenv: Path) -> None:
    install(pyenv / PYTHON3, PYTHON3)
    (pyenv / PYTHON3 / "bin" / "python3.6").write_text("#!/bin/sh\nexit 127\n")
    assert find_host_python(PYTHON3) is None


def test_what_its_use_leaves_behind_is_not_packed(pyenv: Path, tmp_path: Path) -> None:
    install(pyenv / PYTHON3, PYTHON3)
    pack_host_python(PYTHON3, tmp_path / "python.tar")
    with tarfile.open(tmp_path / "python.tar") as archive:
        members = {member.name: member for member in archive}
    assert set(members) == {
        f"python-{PYTHON3}/bin/python",
        f"python-{PYTHON3}/bin/python3.6",
        f"python-{PYTHON3}/include",
        f"python-{PYTHON3}/lib",
        f"python-{PYTHON3}/lib/python3.6",
        f"python-{PYTHON3}/lib/python3.6/os.py",
    }
    assert members[f"python-{PYTHON3}/bin/python"].linkname == "python3.6"
    assert members[f"python-{PYTHON3}/bin/python3.6"].mode == 0o755
    assert members[f"python-{PYTHON3}/lib/python3.6/os.py"].mode == 0o644


def test_the_same_prefix_packs_to_the_same_bytes(pyenv: Path, tmp_path: Path) -> None:
    install(pyenv / PYTHON3, PYTHON3)
    pack_host_python(PYTHON3, tmp_path / "first.tar")
    os.utime(pyenv / PYTHON3 / "lib" / "python3.6" / "os.py", (1, 1))
    (pyenv / PYTHON3 / "lib" / "python3.6" / "site-packages" / "other.py").write_text("installed since")
    pack_host_python(PYTHON3, tmp_path / "second.tar")
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


def test_a_changed_file_changes_the_archive(pyenv: Path, tmp_path: Path) -> None:
    install(pyenv / PYTHON3, PYTHON3)
    pack_host_python(PYTHON3, tmp_path / "first.tar")
    (pyenv / PYTHON3 / "lib" / "python3.6" / "os.py").write_text("patched")
    pack_host_python(PYTHON3, tmp_path / "second.tar")
    assert (tmp_path / "first.tar").read_bytes() != (tmp_path / "second.tar").read_bytes()


def test_a_machine_without_the_interpreter_is_told_the_way_out(pyenv: Path, tmp_path: Path) -> None:
    with pytest.raises(KilnError, match=r"no Python 3\.6\.15.*; run pyenv install 3\.6\.15"):
        pack_host_python(PYTHON3, tmp_path / "python.tar")
    assert not (tmp_path / "python.tar").exists()


def test_an_unreadable_prefix_is_one_sentence(pyenv: Path, tmp_path: Path) -> None:
    install(pyenv / PYTHON3, PYTHON3)
    with pytest.raises(KilnError, match=r"Python 3\.6\.15 cannot be packed"):
        pack_host_python(PYTHON3, tmp_path / "no" / "such" / "folder.tar")
