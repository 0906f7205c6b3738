"""What the compiled files of wheels need of the CUDA stack, held against the tables before anything is built."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

from kiln.elf_cache import cached_path, keep_layer, kept_layer, read_all
from kiln.elf_loader import Miss
from kiln.elf_tree import Folder, Layer, from_stream
from kiln.errors import KilnError
from kiln.image_spec import ImageSpec
from kiln.matrix import Matrix
from kiln.store import Store

_STEM = re.compile(r"(lib[^/]+?)\.so(?:\.|$)")


def read_wheels(store: Store, wheels: Mapping[str, Path]) -> dict[str, Layer]:
    """sha256 to a wheel's files as its archive has them, below ``/``; kept by that sha256.

    Raises KilnError for what is no wheel.
    """
    layers = {sha256: kept_layer(cached_path(store, "wheels", sha256)) for sha256 in wheels}
    missing = [sha256 for sha256, layer in layers.items() if layer is None]
    for sha256, layer in zip(missing, read_all(_read_wheel, [wheels[sha256] for sha256 in missing]), strict=True):
        keep_layer(cached_path(store, "wheels", sha256), layer)
        layers[sha256] = layer
    return {sha256: layer for sha256, layer in layers.items() if layer is not None}


def _read_wheel(path: Path) -> Layer:
    import zipfile
    import zlib

    layer: Layer = {"/": Folder()}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                # A name that leads out of the archive is one inside it.
                name = posixpath.normpath("/" + info.filename)
                if not info.is_dir():
                    with archive.open(info) as stream:
                        file = from_stream(stream, name)
                    layer.setdefault(posixpath.dirname(name), Folder()).put(posixpath.basename(name), file)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise KilnError(f"is no readable wheel ({error})", where=str(path), fix="fetch it again") from None
    return layer


def stack_misses(layer: Layer, spec: ImageSpec) -> list[Miss]:
    """Libraries of CUDA and cuDNN that a wheel's files need, and that neither the wheel nor the image has.

    ``why`` of each names what the image has instead.
    """
    known, provided = _known(spec), _provided(spec)
    misses = []
    for file, needed, stem in _needs(layer):
        if stem in known and needed not in provided:
            similar = sorted(library for library in provided if library.startswith(f"{stem}.so."))
            misses.append(Miss(file, needed, why=", ".join(similar)))
    return misses


def unseen_misses(layer: Layer, spec: ImageSpec, why: str) -> list[Miss]:
    """Libraries of which ``stack_misses`` says nothing, each with the first file that needs it."""
    known = _known(spec)
    first: dict[str, str] = {}
    for file, needed, stem in _needs(layer):
        if stem not in known:
            first.setdefault(needed, file)
    return [Miss(file, needed, why=why) for needed, file in sorted(first.items())]


def _needs(layer: Layer) -> list[tuple[str, str, str]]:
    """(file, library, the library's name without its version) for what a wheel's files need and it does not carry."""
    own = {name for folder in layer.values() for name in (*folder.elves, *folder.links)}
    own |= {elf.soname for folder in layer.values() for elf in folder.elves.values() if elf.soname}
    return [
        (posixpath.join(place, name), needed, stem[1] if (stem := _STEM.match(needed)) else "")
        for place, folder in layer.items()
        for name, elf in folder.elves.items()
        for needed in elf.needed
        if needed not in own
    ]


def check_wheels(spec: ImageSpec, matrix: Matrix, store: Store) -> int:
    """Reads every wheel of the image's components that the store holds; returns how many.

    Raises KilnError for one that needs a library of CUDA or cuDNN which neither it nor the image has.
    """
    files: dict[str, str] = {}
    paths: dict[str, Path] = {}
    for part in spec.components.values():
        for artifact in spec.groups.get(part.group or "", ()):
            path = store.lookup(artifact) if artifact.file.endswith(".whl") else None
            sha256 = store.locked_sha256(artifact)
            if path is not None and sha256 is not None:
                files[sha256], paths[sha256] = artifact.file, path
    for sha256, layer in read_wheels(store, paths).items():
        misses = stack_misses(layer, spec)
        if misses:
            raise _refusal(files[sha256], misses, spec, matrix)
    return len(files)


def _refusal(file: str, misses: list[Miss], spec: ImageSpec, matrix: Matrix) -> KilnError:
    needed = ", ".join(sorted({miss.library for miss in misses}))
    has = ", ".join(sorted({miss.why for miss in misses if miss.why})) or "nothing of CUDA"
    stack = f"for CUDA {spec.row.cuda} and cuDNN {spec.row.cudnn}" if spec.row.cuda else "without CUDA"
    table = matrix.release(spec.release)[0]
    return KilnError(
        f"wheel {file} cannot be loaded on image {spec.image}: it needs {needed}, the image has {has}",
        where=table.where("images", spec.image, "cuda"),
        fix=f"take a wheel built {stack}, or name the versions in the table that the wheel was built for",
    )


def _known(spec: ImageSpec) -> set[str]:
    """Names of the libraries of CUDA and cuDNN of any version."""
    rows = (package for version in spec.tables["cuda"].values() for package in version["packages"])
    return {library["name"] for package in rows for library in package.get("libraries", [])} | {"libcudnn"}


def _provided(spec: ImageSpec) -> set[str]:
    """SONAMEs that the image's CUDA and cuDNN give; none on a CPU image."""
    found = set()
    if "cuda" in spec.components:
        packages = spec.components["cuda"].facts["packages"]
        libraries = [library for package in packages for library in package.get("libraries", [])]
        found |= {f"{library['name']}.so.{library['soname']}" for library in libraries}
    if "cudnn" in spec.components:
        found.add(f"libcudnn.so.{spec.components['cudnn'].facts['soname']}")
    return found
