"""The component tables: what each version of a component is, needs and fits."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Device = Literal["gpu", "cpu"]

Text = Annotated[str, msgspec.Meta(min_length=1)]
"""A string of a table; where nothing is meant, the key is left out."""

Texts = Annotated[list[Text], msgspec.Meta(min_length=1)]
"""A list of a table that leads nowhere when it is empty."""


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table row: frozen, unknown keys refused."""


class PythonVersion(Strict, frozen=True):
    series: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+\.[0-9]+$")]
    abi: Text
    workspace: Text
    source: Text


class TensorflowVersion(Strict, frozen=True):
    tensorboard: Text
    cpu_flags: list[Text]
    source: Text


class PytorchVersion(Strict, frozen=True):
    torchvision: Text
    on_index: bool
    """Whether the Python index has wheels of it."""
    source: Text


class KerasVersion(Strict, frozen=True):
    source: Text
    applications: Text | None = None
    preprocessing: Text | None = None


class CaffeVersion(Strict, frozen=True):
    code: Text
    """Version of the source code."""
    devices: Annotated[list[Device], msgspec.Meta(min_length=1)]
    blas: Literal["open", "mkl"]
    source: Text


class MklVersion(Strict, frozen=True):
    openmp: Text
    include: Text
    source: Text


class QsctlVersion(Strict, frozen=True):
    python: Text
    source: Text


class AgentVersion(Strict, frozen=True):
    source: Text


class DigitsVersion(Strict, frozen=True):
    source: str


class Library(Strict, frozen=True):
    """A shared library: ``name.so.file`` with SONAME ``name.so.soname``."""

    name: Text
    soname: Text
    file: Text


class CudaPackage(Strict, frozen=True):
    """One apt package of a CUDA toolkit."""

    package: Text
    version: Text
    depends: list[Text] = []
    libraries: list[Library] = []
    headers: list[Text] = []


class CudaVersion(Strict, frozen=True):
    toolkit: Text
    driver: Text
    """Oldest driver that runs it."""
    source: Text
    packages: Annotated[list[CudaPackage], msgspec.Meta(min_length=1)]
    install: Texts
    """What an image installs; the rest follows as dependencies."""


class CudnnVersion(Strict, frozen=True):
    library: Text
    soname: Text
    source: Text
    packages: Texts
    builds: dict[Text, Text]
    """CUDA series to package version."""


COMPONENT_TYPES: dict[str, type[Strict]] = {
    "python": PythonVersion,
    "tensorflow": TensorflowVersion,
    "pytorch": PytorchVersion,
    "keras": KerasVersion,
    "caffe": CaffeVersion,
    "mkl": MklVersion,
    "qsctl": QsctlVersion,
    "agent": AgentVersion,
    "digits": DigitsVersion,
    "cuda": CudaVersion,
    "cudnn": CudnnVersion,
}
