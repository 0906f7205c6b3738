"""Finds what ``kiln elf`` and the checks are pointed at, reads it, and judges it."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from kiln.components import Device, PythonVersion
from kiln.elf_image import Kind, read_layers
from kiln.elf_loader import Linker
from kiln.elf_report import Report, judge, read_rules
from kiln.elf_tree import Layer, Tree, read_folder
from kiln.elf_wheels import read_wheels, stack_misses, unseen_misses
from kiln.engine import Engine
from kiln.errors import KilnError
from kiln.image_spec import ImageSpec
from kiln.matrix import Matrix
from kiln.project import Project
from kiln.store import Store, file_sha256
from kiln.wheels import tags

_LABELS = "org.deeplearning"


def judge_container(project: Project, name: str, device: Device | None) -> Report:
    """The report on a container as it stands now, running or not."""
    layers = read_layers(Store.of(project), name, "container")
    return judge(name, Linker(Tree(layers)), read_rules(project), device)


def judge_node(project: Project, device: Device | None) -> Report:
    """The report on the machine that runs this."""
    return judge("local", Linker(Tree([read_folder(Path("/"), one_device=True)])), read_rules(project), device)


def judge_target(project: Project, target: str, image: str | None, channel: str) -> Report:
    """The report on an image, a container or this machine; ``image`` says what it is where it does not itself."""
    named = resolve(project, image, channel).device if image else None
    if target == "local":
        return judge_node(project, named)
    engine = Engine()
    engine.check()
    kind: Kind = "image"
    labels = engine.image_labels(target)
    if labels is None:
        kind = "container"
        labels = engine.container_labels(target)
    if labels is None:
        raise KilnError(f"there is no image and no container {target}", fix="bake it, or name one of docker images")
    said = [labels.get(f"{_LABELS}.{key}") for key in ("release", "image")]
    if named is None and all(said):
        named = resolve(project, "/".join(map(str, said)), labels.get(f"{_LABELS}.channel") or channel).device
    layers = read_layers(Store.of(project), target, kind)
    return judge(target, Linker(Tree(layers)), read_rules(project), named)


def judge_wheel(project: Project, path: Path, image: str, channel: str) -> Report:
    """The report on a wheel as if it were installed in ``image``; without that image baked, on its CUDA needs alone.

    What that leaves out is told as not run.
    """
    if not path.is_file():
        raise KilnError(f"{path} does not exist", fix="name a wheel file")
    spec = resolve(project, image, channel)
    store = Store.of(project)
    prefix, packages = _workspace(path, spec)
    (wheel,) = read_wheels(store, {file_sha256(path): path}).values()
    layer = _placed(wheel, prefix, packages)
    paths = [posixpath.join(place, name) for place, folder in layer.items() for name in folder.elves]
    stack = stack_misses(layer, spec)
    reference = f"deeplearning:{spec.release}-{spec.image}"
    engine = Engine()
    engine.check()
    if engine.image_labels(reference) is None:
        unseen = unseen_misses(layer, spec, f"not looked for, as {reference} is not baked")
        report = Report(str(path), len(paths), 0, (), tuple(unseen), ())
    else:
        layers = [*read_layers(store, reference, "image"), layer]
        report = judge(str(path), Linker(Tree(layers)), read_rules(project), spec.device, paths)
    told = {(miss.file, miss.library) for miss in report.findings}
    more = [
        replace(miss, why=f"the image has {miss.why or 'nothing like it'}")
        for miss in stack
        if (miss.file, miss.library) not in told
    ]
    return replace(report, findings=(*report.findings, *more))


def resolve(project: Project, image: str, channel: str) -> ImageSpec:
    """The image that ``[RELEASE/]IMAGE`` names; the newest release where none is named."""
    matrix = Matrix(project, channel)
    release, _, name = image.rpartition("/")
    return matrix.resolve(release or matrix.releases()[-1], name)


def _workspace(path: Path, spec: ImageSpec) -> tuple[str, str]:
    """The virtualenv that takes the wheel, and its folder of packages."""
    try:
        offered = parse_wheel_filename(path.name)[3]
    except InvalidWheelFilename as error:
        raise KilnError(str(error), where=str(path), fix="give it back the name it was built with") from None
    fits: list[PythonVersion] = [python for python in spec.pythons if offered & tags(python)]
    if not fits:
        raise KilnError(
            f"fits none of the image's interpreters {', '.join(python.abi for python in spec.pythons)}",
            where=str(path),
            fix="take the wheel of the interpreter's own ABI (PEP 425)",
        )
    prefix = f"{spec.node.workspaces.path}/{fits[-1].workspace}"
    return prefix, f"{prefix}/lib/python{fits[-1].series}/site-packages"


def _placed(layer: Layer, prefix: str, packages: str) -> Layer:
    """A wheel's files where an installer puts them: PEP 427, section Installing a wheel."""
    placed: Layer = {}
    schemes = {"purelib": packages, "platlib": packages, "data": prefix, "scripts": f"{prefix}/bin"}
    for place, folder in layer.items():
        first, _, rest = place.lstrip("/").partition("/")
        scheme, _, below = rest.partition("/")
        if first.endswith(".data") and scheme in schemes:
            target = posixpath.join(schemes[scheme], below)
        else:
            target = posixpath.join(packages, place.lstrip("/"))
        placed[target.rstrip("/")] = folder
    return placed
