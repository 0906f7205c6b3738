"""What only a GPU can show: not run, with the reason, where there is none; never left out where there is one."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from testinfra.host import Host

from kiln.checks.devices import nvidia_gpus

pytestmark = pytest.mark.device("gpu")

# What the driver itself takes and gives back as it likes; the smallest context of CUDA takes more.
SLACK_MIB = 64

# What the monitor tells, what nvidia-smi calls it, and by how much it may change from one moment to the next.
MONITORED = {
    "GPUUtil": ("utilization.gpu", 30),
    "PowerUsage": ("power.draw", 50),
    "Temperature": ("temperature.gpu", 5),
    "MemoryTotal": ("memory.total", 1),
    "MemoryUsed": ("memory.used", SLACK_MIB),
    "MemoryFree": ("memory.free", SLACK_MIB),
}


@pytest.fixture(scope="module")
def gpu(host: Host) -> str:
    """Driver version of the first GPU."""
    found = nvidia_gpus(host)
    if not found:
        pytest.skip("this machine shows no NVIDIA device")
    run = host.run("nvidia-smi --query-gpu=driver_version --format=csv,noheader")
    assert run.rc == 0, f"there is an NVIDIA GPU ({found[0]}), yet nvidia-smi says: {run.stdout or run.stderr}"
    return str(run.stdout.splitlines()[0].strip())


@pytest.fixture(scope="module", autouse=True)
def used_before(host: Host) -> int | None:
    """MiB of GPU memory in use before any check touched it; None without a GPU."""
    return used(host)


def used(host: Host) -> int | None:
    said = host.run("nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits").stdout.split()
    return sum(map(int, said)) if said and all(word.isdigit() for word in said) else None


@pytest.mark.component("cuda")
def test_the_driver_is_new_enough(gpu: str, spec: Any) -> None:
    assert numbers(gpu) >= numbers(spec["driver"])


def test_the_monitor_agrees_with_nvidia_smi(gpu: str, host: Host, spec: Any) -> None:
    query = ",".join(name for name, _ in MONITORED.values())
    command = f"nvidia-smi --query-gpu={query} --format=csv,noheader,nounits"
    # Asked before and after, so that a value may be on its way.
    before = host.run(command).stdout
    run = host.run(f"/usr/bin/python {spec['node']['paths']['gpu_monitor']}")
    after = host.run(command).stdout
    assert run.rc == 0, run.stderr
    told = json.loads(run.stdout)
    gpus = [*zip(before.splitlines(), after.splitlines(), strict=True)]
    assert gpus, f"nvidia-smi tells no GPU's {query}"
    # There are keys for two; what a GPU does not tell is 0.
    for number, rows in enumerate(gpus[:2], 1):
        values = zip(*(row.split(",") for row in rows), strict=True)
        for (name, (_, slack)), pair in zip(MONITORED.items(), values, strict=True):
            ends = [float(value) for value in pair if re.fullmatch(r"[\s\d.]+", value)] or [0]
            value = told[f"{name}_{number}"]
            assert min(ends) - slack <= value <= max(ends) + slack, (
                f"{name}_{number} is {value}, nvidia-smi says {pair}"
            )


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


@pytest.mark.component("keras")
def test_keras_predicts_on_the_gpu_as_on_the_cpu(gpu: str, in_workspace: Any, spec: Any) -> None:
    script = """
import numpy, keras, tensorflow
assert tensorflow.test.gpu_device_name(), "TensorFlow finds no GPU"
x = numpy.random.RandomState(1).rand(64, 8)
results, weights = [], None
for device in ("/cpu:0", "/gpu:0"):
    with tensorflow.device(device):
        model = keras.models.Sequential([keras.layers.Dense(4, activation="tanh", input_shape=(8,))])
        model.compile(optimizer="sgd", loss="mse")
        weights = weights or model.get_weights()
        model.set_weights(weights)
        results.append(model.predict(x))
assert numpy.allclose(*results, rtol=1e-4), numpy.abs(results[0] - results[1]).max()
"""
    agree(in_workspace, spec, script)


@pytest.mark.component("caffe")
def test_caffe_computes_on_the_gpu_as_on_the_cpu(gpu: str, in_workspace: Any, spec: Any) -> None:
    script = """
import tempfile
import caffe, numpy
net = '''
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 1 dim: 8 dim: 8 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
'''
with tempfile.NamedTemporaryFile(suffix=".prototxt") as stream:
    stream.write(net.encode())
    stream.flush()
    net = caffe.Net(stream.name, caffe.TEST)
net.blobs["data"].data[...] = numpy.random.RandomState(1).rand(2, 1, 8, 8)
caffe.set_mode_cpu()
wanted = net.forward()["ip"].copy()
caffe.set_device(0)
caffe.set_mode_gpu()
found = net.forward()["ip"]
assert numpy.allclose(wanted, found, rtol=1e-3), numpy.abs(wanted - found).max()
"""
    agree(in_workspace, spec, script)


@pytest.mark.component("caffe")
def test_caffe_trains_on_the_gpu(gpu: str, as_user: Any, spec: Any) -> None:
    for tree in spec["caffe_trees"]:
        run = as_user(
            f"cd {tree} && ./build/tools/caffe time -gpu 0 -model examples/mnist/lenet.prototxt -iterations 2"
        )
        assert run.rc == 0, cause(run.stderr)


@pytest.mark.component("cuda")
def test_the_gpus_memory_is_free_again(gpu: str, host: Host, used_before: int | None) -> None:
    assert used_before is not None, "nvidia-smi tells no memory"
    # The driver takes a process's memory back a moment after its end.
    for _ in range(10):
        now = used(host)
        if now is not None and now <= used_before + SLACK_MIB:
            return
        time.sleep(0.5)
    pytest.fail(f"{used_before} MiB were in use before the checks, {now} MiB are after")


def agree(in_workspace: Any, spec: Any, script: str) -> None:
    import shlex

    for workspace in spec["workspaces"]:
        run = in_workspace(workspace, f"cd $TMPDIR && HOME=$TMPDIR python -c {shlex.quote(script)}")
        assert run.rc == 0, f"{workspace}: {cause(run.stderr)}"


def cause(said: str) -> str:
    """The line that tells why a framework died, of all that it wrote."""
    lines = said.strip().splitlines() or ["it died in silence"]
    return next((line for line in reversed(lines) if "Error" in line or "Check failed" in line), lines[-1])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
