"""The component tables: what each version of a component is, needs and fits."""

from __future__ import annotations

from typing import Literal

import msgspec

Device = Literal["gpu", "cpu"]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table row: frozen, unknown keys refused."""


class PythonVersion(Strict, frozen=True):
    series: str
    abi: str
    workspace: str
    source: str


class TensorflowVersion(Strict, frozen=True):
    tensorboard: str
    cpu_flags: list[str]
    source: str


class PytorchVersion(Strict, frozen=True):
    torchvision: str
    on_index: bool
    """Whether the Python index has wheels of it."""
    source: str


class KerasVersion(Strict, frozen=True):
    source: str
    applications: str | None = None
    preprocessing: str | None = None


class CaffeVersion(Strict, frozen=True):
    code: str
    """Version of the source code."""
    devices: list[Device]
    blas: Literal["open", "mkl"]
    source: str


class MklVersion(Strict, frozen=True):
    openmp: str
    include: str
    source: str


class QsctlVersion(Strict, frozen=True):
    python: str
    source: str


class AgentVersion(Strict, frozen=True):
    source: str


class DigitsVersion(Strict, frozen=True):
    source: str


class Library(Strict, frozen=True):
    """A shared library: ``name.so.file`` with SONAME ``name.so.soname``."""

    name: str
    soname: str
    file: str


class CudaPackage(Strict, frozen=True):
    """One apt package of a CUDA toolkit."""

    package: str
    version: str
    depends: list[str] = []
    libraries: list[Library] = []
    headers: list[str] = []


class CudaVersion(Strict, frozen=True):
    toolkit: str
    driver: str
    """Oldest driver that runs it."""
    source: str
    packages: list[CudaPackage]
    install: list[str]
    """What an image installs; the rest follows as dependencies."""


class CudnnVersion(Strict, frozen=True):
    library: str
    soname: str
    source: str
    packages: list[str]
    builds: dict[str, str]
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
