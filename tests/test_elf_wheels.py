"""Wheels against the CUDA stack of the image they are for, before anything is built."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from elf_maker import make_elf
from kiln.artifact import Artifact
from kiln.elf_command import elf
from kiln.elf_report import read_rules
from kiln.elf_wheels import check_wheels, read_wheels
from kiln.errors import KilnError
from kiln.image_spec import ImageSpec
from kiln.matrix import Matrix
from kiln.project import Project, find_project
from kiln.store import Store, file_sha256

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "tensorflow_gpu-1.8.0-cp36-cp36m-manylinux1_x86_64.whl"


def make_wheel(folder: Path, files: dict[str, bytes], name: str = WHEEL) -> Path:
    """A wheel with these files."""
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
    return path


def needing(*libraries: str) -> dict[str, bytes]:
    """The files of a wheel with one compiled one."""
    return {"tensorflow/__init__.py": b"", "tensorflow/native.so": make_elf(needed=libraries)}


def with_wheel(project: Project, matrix: Matrix, image: str, wheel: Path) -> tuple[ImageSpec, Store]:
    """The image with this wheel for its TensorFlow, and the store that holds it."""
    spec = matrix.resolve(matrix.releases()[-1], image)
    store = Store.of(project)
    with store.temporary() as copy:
        copy.write_bytes(wheel.read_bytes())
        sha256 = store.add(copy)
    group = spec.components["tensorflow"].group
    assert group
    artifact = Artifact(wheel.name, sha256, "index", "tensorflow-gpu", group, "the Python index", ("3.6",))
    return replace(spec, groups={**spec.groups, group: (artifact,)}), store


def arranged(project: Project, matrix: Matrix, image: str, wheel: Path) -> tuple[ImageSpec, Matrix, Store]:
    """What ``check_wheels`` takes."""
    spec, store = with_wheel(project, matrix, image, wheel)
    return spec, matrix, store


@pytest.fixture
def matrix(project: Project) -> Matrix:
    return Matrix(project, "registry")


def series(matrix: Matrix, image: str) -> str:
    """The image's CUDA series."""
    return str(matrix.resolve(matrix.releases()[-1], image).row.cuda)


@pytest.mark.parametrize("image", ["cuda91", "cuda80"])
def test_a_wheel_of_the_images_own_stack_passes(project: Project, matrix: Matrix, tmp_path: Path, image: str) -> None:
    own = (f"libcublas.so.{series(matrix, image)}", "libcudnn.so.7", "libcuda.so.1", "libc.so.6")
    assert check_wheels(*arranged(project, matrix, image, make_wheel(tmp_path, needing(*own)))) == 1


@pytest.mark.parametrize(
    ("image", "library", "has"),
    [
        ("cuda91", "libcublas.so.9.0", "libcublas.so.9.1"),
        ("cuda91", "libcudnn.so.6", "libcudnn.so.7"),
        ("cuda80", "libcudart.so.9.1", "libcudart.so.8.0"),
        ("cpu", "libcublas.so.9.1", "nothing of CUDA"),
    ],
)
def test_a_wheel_of_another_stack_is_refused(
    project: Project, matrix: Matrix, tmp_path: Path, image: str, library: str, has: str
) -> None:
    wheel = make_wheel(tmp_path, needing("libm.so.6", library))
    with pytest.raises(KilnError) as caught:
        check_wheels(*arranged(project, matrix, image, wheel))
    said = caught.value
    assert f"wheel {WHEEL}" in said.what
    assert f"image {image}" in said.what
    assert f"needs {library}, the image has {has}" in said.what
    release = matrix.releases()[-1]
    file, _, line = said.where.partition(":")
    assert file == f"images/releases/{release}.yml"
    row = (project.root / file).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip()
    assert row == (f"{image}:" if image == "cpu" else f'cuda: "{series(matrix, image)}"')
    assert "take a wheel built" in said.fix


def test_what_a_wheel_carries_itself_is_not_asked_of_the_image(
    project: Project, matrix: Matrix, tmp_path: Path
) -> None:
    files = needing("libcublas.so.9.0", "libcudart.so.9.0") | {
        "tensorflow/lib/libcublas.so.9.0": make_elf(),
        "tensorflow/lib/renamed.so": make_elf(soname="libcudart.so.9.0"),
    }
    assert check_wheels(*arranged(project, matrix, "cpu", make_wheel(tmp_path, files))) == 1


def test_a_wheel_that_is_not_there_yet_is_left_for_later(project: Project, matrix: Matrix, tmp_path: Path) -> None:
    spec, store = with_wheel(project, matrix, "cpu", make_wheel(tmp_path, needing("libcublas.so.9.0")))
    for artifact in spec.groups[spec.components["tensorflow"].group or ""]:
        store.blob_path(artifact.sha256 or "").unlink()
    assert check_wheels(spec, matrix, store) == 0


@pytest.mark.alone
def test_a_second_look_reads_no_wheel_and_costs_little(project: Project, matrix: Matrix, tmp_path: Path) -> None:
    files = needing("libc.so.6") | {f"tensorflow/{number}.py": b"" for number in range(5000)}
    spec, store = with_wheel(project, matrix, "cpu", make_wheel(tmp_path, files))
    check_wheels(spec, matrix, store)
    artifact = spec.groups[spec.components["tensorflow"].group or ""][0]
    blob = store.blob_path(artifact.sha256 or "")
    blob.chmod(0o644)
    blob.write_bytes(b"no wheel any more")
    began = time.monotonic()
    assert check_wheels(spec, matrix, store) == 1
    assert time.monotonic() - began < 0.05


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(9)], ids=range(3))
def test_a_damaged_wheel_is_told(tmp_path: Path, content: bytes) -> None:
    wheel = tmp_path / WHEEL
    wheel.write_bytes(content)
    with pytest.raises(KilnError, match="is no readable wheel"):
        read_wheels(Store(tmp_path / "store"), {file_sha256(wheel): wheel})


def test_a_wheel_cut_inside_a_file_is_told(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"x.so": make_elf() + bytes(range(256)) * 500})
    content = bytearray(wheel.read_bytes())
    content[60:90] = bytes(30)
    wheel.write_bytes(content)
    with pytest.raises(KilnError, match="is no readable wheel"):
        read_wheels(Store(tmp_path / "store"), {file_sha256(wheel): wheel})


def test_names_that_lead_out_of_a_wheel_stay_inside(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"../../../etc/x.so": make_elf()})
    (layer,) = read_wheels(Store(tmp_path / "store"), {file_sha256(wheel): wheel}).values()
    assert list(layer["/etc"].elves) == ["x.so"]


# The table of exceptions


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("    library: libatm.so.1\n", "", "key library is missing"),
        ("    why:", "    whence:", "unknown key whence"),
        ("libraries: [", "libraries: [7, ", "expected str, got int"),
        ("exceptions:", "more: 1\nexceptions:", "unknown key more"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(project: Project, old: str, new: str, says: str) -> None:
    table = project.images / "elf.yml"
    text = table.read_text(encoding="utf-8")
    assert old in text
    table.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(KilnError, match=says) as caught:
        read_rules(project)
    assert caught.value.where.startswith("images/elf.yml:")


# The command


def kiln_elf(project: Project, *words: str) -> Result:
    """Runs the command as kiln's group does."""
    return CliRunner().invoke(elf, words, obj=lambda: project)


def test_a_wheel_wants_an_image(project: Project, tmp_path: Path) -> None:
    for words, says in (
        ([WHEEL], "is a wheel; add --image"),
        ([str(tmp_path / "none" / WHEEL), "--image", "cpu"], "does not exist"),
        ([str(make_wheel(tmp_path, {}, "x.whl")), "--image", "cpu"], "x.whl"),
        ([str(make_wheel(tmp_path, {}, WHEEL.replace("cp36", "cp39"))), "--image", "cpu"], "fits none of the image"),
        ([str(make_wheel(tmp_path, {})), "--image", "9.9/cpu"], "release '9.9' does not exist"),
    ):
        result = kiln_elf(project, *words)
        assert isinstance(result.exception, KilnError), result
        assert says in str(result.exception)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("libraries", "code", "findings"),
    [
        (("libm.so.6", "libpng16.so.16", "libcublas.so.9.1", "libcuda.so.1"), 0, []),
        (("libpng16.so.15",), 1, ["libpng16.so.15"]),
        (("libcublas.so.9.0", "libcudnn.so.7"), 1, ["libcublas.so.9.0"]),
    ],
    ids=["all there", "not in the system", "of another CUDA"],
)
def test_a_wheel_is_loaded_inside_its_image(
    project: Project, tmp_path: Path, libraries: tuple[str, ...], code: int, findings: list[str]
) -> None:
    wheel = make_wheel(tmp_path, needing(*libraries))
    # Its own tables, but the layers that this machine read before.
    kept = Project(project.root, find_project(ROOT).store)
    result = kiln_elf(kept, str(wheel), "--image", "cuda91", "--json")
    assert result.exit_code == code, result.output
    data = json.loads(result.stdout)
    assert [miss["library"] for miss in data["findings"]] == findings
    assert data["files"] == 1


@pytest.mark.engine
def test_what_only_the_image_could_tell_is_not_run_without_it(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiln.engine.Engine.image_labels", lambda *_: None)
    own = f"libcublas.so.{series(Matrix(project, 'registry'), 'cuda91')}"
    wheel = make_wheel(tmp_path, needing("libnone.so.1", own, "libpng16.so.15"))
    result = kiln_elf(project, str(wheel), "--image", "cuda91")
    assert result.exit_code == 0, result.output
    assert "needs libnone.so.1: not looked for, as deeplearning:" in result.stdout
    assert "0 unresolved, 2 not run, 0 excepted" in result.stdout


@pytest.mark.engine
@pytest.mark.long
def test_the_indexs_tensorflow_for_gpus_is_refused_on_cuda_91(project: Project, matrix: Matrix, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "tensorflow-gpu==1.8.0", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--python-version", "36", "--dest", str(tmp_path)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with pytest.raises(KilnError, match=r"libcublas\.so\.9\.0") as caught:
        check_wheels(*arranged(project, matrix, "cuda91", wheel))
    assert wheel.name in str(caught.value)
    assert "image cuda91" in str(caught.value)
    result = kiln_elf(project, str(wheel), "--image", "cuda91")
    assert result.exit_code == 1
    assert "needs libcublas.so.9.0: no such library is where the loader looks; libcublas.so.9.1 is" in result.stdout
    assert "libcuda.so.1: comes from the driver on the node" in result.stdout
