"""Every program and library, loaded on paper: the truth about what would load on a GPU node too, without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

from kiln.checks.devices import nvidia_gpus
from kiln.elf_loader import Miss
from kiln.elf_report import Report
from kiln.elf_target import judge_container, judge_node
from kiln.project import find_project


@pytest.fixture(scope="module")
def report(host: Host, spec: Any, root: bool) -> Report:
    """What the loader would miss on the target as it is now."""
    if not root:
        pytest.skip("could not be seen without root")
    if host.backend.NAME == "docker":
        found = judge_container(find_project(), host.backend.name, spec["device"])
    elif host.backend.NAME == "local":
        found = judge_node(find_project(), spec["device"])
    else:
        pytest.skip("the files of a node over the network are not read")
    assert found.files > 800, "most of the compiled files are not there"
    return found


def told(misses: list[Miss]) -> str:
    """The first few, for one line."""
    return f"{len(misses)}: " + "; ".join(map(str, misses[:3]))


def test_every_needed_library_is_there(report: Report) -> None:
    missing = [miss for miss in report.findings if miss.library and not miss.version]
    assert not missing, told(missing)


def test_every_needed_symbol_version_is_offered(report: Report) -> None:
    missing = [miss for miss in report.findings if miss.version]
    assert not missing, told(missing)


def test_no_compiled_file_is_damaged(report: Report) -> None:
    damaged = [miss for miss in report.findings if not miss.library]
    assert not damaged, told(damaged)


@pytest.mark.device("gpu")
def test_the_driver_gives_its_libraries(report: Report, host: Host) -> None:
    if report.not_run:
        assert nvidia_gpus(host) == [], told(list(report.not_run))
        pytest.skip(f"{report.not_run[0].library} {report.not_run[0].why}")
