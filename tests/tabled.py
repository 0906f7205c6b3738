"""What the tables say of every node, by short names: tests of images repeat none of it."""

from __future__ import annotations

from pathlib import Path

from kiln.matrix import Matrix
from kiln.project import find_project

MATRIX = Matrix(find_project(Path(__file__).resolve().parent.parent), "registry")
SPEC = MATRIX.resolve(MATRIX.releases()[-1], "cpu")
NODE = SPEC.node

USER, HOME, PASSWORD = NODE.user.name, NODE.user.home, NODE.user.password
DATA, SAMPLES, MNIST = NODE.paths.data, NODE.paths.samples, NODE.paths.mnist
GPU_MONITOR, CPU_FLOOR = NODE.paths.gpu_monitor, NODE.paths.cpu_floor
WORKSPACES, PYTHON_PATH = NODE.workspaces.path, NODE.python.path
VENV3 = list(SPEC.names()["workspaces"].values())[-1]
PYTHON2, PYTHON3 = SPEC.row.python

_GPU = MATRIX.resolve(MATRIX.releases()[-1], "cuda91").row
CUDA, CUDNN = _GPU.cuda, _GPU.cudnn
