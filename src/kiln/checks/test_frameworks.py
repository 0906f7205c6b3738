"""Every framework, in every virtualenv: imported, of the right version, and computing."""

from __future__ import annotations

from typing import Any

import pytest

VERSIONED = ("tensorflow", "keras", "pytorch")


def answer(frameworks: Any, spec: Any, framework: str, workspace: str) -> dict[str, Any]:
    found: dict[str, Any] = frameworks[workspace][framework]
    assert "error" not in found, f"{framework} in {workspace}: {found['error']}"
    return found


@pytest.fixture(params=[0, 1], ids=["first", "second"])
def workspace(request: pytest.FixtureRequest, spec: Any) -> str:
    return str(list(spec["workspaces"])[request.param])


@pytest.mark.component("tensorflow")
def test_tensorflow_computes(frameworks: Any, spec: Any, workspace: str) -> None:
    found = answer(frameworks, spec, "tensorflow", workspace)
    assert found["version"] == spec["components"]["tensorflow"]["installed"]
    assert found["right"], "a product or a gradient is wrong"


@pytest.mark.component("keras")
def test_keras_learns(frameworks: Any, spec: Any, workspace: str) -> None:
    found = answer(frameworks, spec, "keras", workspace)
    assert found["version"] == spec["components"]["keras"]["installed"]
    assert found["backend"] == "tensorflow"
    assert found["right"], "the loss did not fall"


@pytest.mark.component("pytorch")
def test_pytorch_differentiates(frameworks: Any, spec: Any, workspace: str) -> None:
    found = answer(frameworks, spec, "pytorch", workspace)
    assert found["version"] == spec["components"]["pytorch"]["installed"]
    assert found["right"], "a gradient is wrong"


@pytest.mark.component("caffe")
def test_caffe_goes_forward_and_backward(frameworks: Any, spec: Any, workspace: str) -> None:
    found = answer(frameworks, spec, "caffe", workspace)
    assert found["right"], "the gradient does not predict the change of the loss"
    assert found["file"].startswith(f"{spec['node']['paths']['caffe']}{workspace}/")
    assert {"ImageData", "Python", "Convolution"} <= set(found["layers"])
