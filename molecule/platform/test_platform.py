"""The checks of ``kiln simulate``, told as tests: what failed there fails here, what was not run is skipped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

LIFE = (
    "create",
    "monitor",
    "health check",
    "unhealthy node",
    "add a node",
    "remove a node",
    "stop",
    "start",
    "QingStor on",
    "other keys",
    "QingStor off",
    "secrets",
    "delete",
)
TRAINING = (
    "create",
    "TensorFlow",
    "PyTorch",
    "PyTorch by address",
    "killed worker",
    "killed rank",
    "add a node",
    "TensorFlow, three nodes",
    "PyTorch, three nodes",
    "PyTorch by address, three nodes",
    "delete",
)
STEPS = TRAINING if os.environ.get("KILN_FLAGS") else LIFE
CHECKS: list[dict[str, Any]] = json.loads(Path(os.environ["KILN_REPORT"]).read_text(encoding="utf-8"))


@pytest.mark.parametrize("check", [pytest.param(check, id=f"{check['step']}: {check['what']}") for check in CHECKS])
def test_promise(check: dict[str, Any]) -> None:
    if check["verdict"] == "not run":
        pytest.skip(check["said"])
    assert check["verdict"] == "passed", check["said"]


@pytest.mark.parametrize("step", STEPS)
def test_step_was_gone_through(step: str) -> None:
    without_monitor = step == "monitor" and "cuda" not in os.environ["KILN_PACKAGE"]
    verdicts = {check["verdict"] for check in CHECKS if check["step"] == step}
    assert verdicts == ({"not run"} if without_monitor else {"passed"})
