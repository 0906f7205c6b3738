"""What only a GPU can show: not run, with the reason, where there is none; never left out where there is one."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

pytestmark = pytest.mark.device("gpu")


@pytest.fixture(scope="module")
def gpu(host: Host) -> str:
    """Driver version of the first GPU."""
    if not host.run("ls /dev/nvidia0 /dev/nvidiactl").stdout.strip():
        pytest.skip("this machine shows no NVIDIA device")
    run = host.run("nvidia-smi --query-gpu=driver_version --format=csv,noheader")
    assert run.rc == 0, f"there is an NVIDIA device, yet nvidia-smi says: {run.stdout or run.stderr}"
    return str(run.stdout.splitlines()[0].strip())


@pytest.mark.component("cuda")
def test_the_driver_is_new_enough(gpu: str, spec: Any) -> None:
    assert numbers(gpu) >= numbers(spec["driver"])


@pytest.mark.component("tensorflow")
def test_tensorflow_multiplies_on_the_gpu_as_on_the_cpu(gpu: str, in_workspace: Any, spec: Any) -> None:
    script = """
import numpy, tensorflow as tf
a = numpy.random.RandomState(1).rand(256, 256).astype("float32")
results = []
for device in ("/cpu:0", "/gpu:0"):
    with tf.device(device):
        product = tf.matmul(a, a)
    with tf.Session(config=tf.ConfigProto(allow_soft_placement=False)) as session:
        results.append(session.run(product))
assert numpy.allclose(*results, rtol=1e-4), numpy.abs(results[0] - results[1]).max()
"""
    agree(in_workspace, spec, script)


@pytest.mark.component("pytorch")
def test_pytorch_multiplies_on_the_gpu_as_on_the_cpu(gpu: str, in_workspace: Any, spec: Any) -> None:
    script = """
import torch
a = torch.rand(256, 256)
assert ((a.mm(a) - a.cuda().mm(a.cuda()).cpu()).abs().max()) < 1e-2
del a
torch.cuda.empty_cache()
assert torch.cuda.memory_allocated() == 0 if hasattr(torch.cuda, "memory_allocated") else True
"""
    agree(in_workspace, spec, script)


@pytest.mark.component("caffe")
def test_caffe_trains_on_the_gpu(gpu: str, as_user: Any, spec: Any) -> None:
    for tree in spec["caffe_trees"]:
        run = as_user(
            f"cd {tree} && ./build/tools/caffe time -gpu 0 -model examples/mnist/lenet.prototxt -iterations 2"
        )
        assert run.rc == 0, run.stderr[-800:]


def agree(in_workspace: Any, spec: Any, script: str) -> None:
    import shlex

    for workspace in spec["workspaces"]:
        run = in_workspace(workspace, f"cd $TMPDIR && HOME=$TMPDIR python -c {shlex.quote(script)}")
        assert run.rc == 0, f"{workspace}: {run.stderr[-800:]}"


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
