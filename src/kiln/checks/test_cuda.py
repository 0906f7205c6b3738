"""CUDA and cuDNN: there on GPU images as pinned, and nowhere on the CPU image."""

from __future__ import annotations

import re
from typing import Any

import pytest
from testinfra.host import Host

from kiln.checks.asking import QUIETLY, lines


@pytest.mark.device("gpu")
@pytest.mark.component("cuda")
def test_cuda_packages_are_the_pinned_ones_and_held(host: Host, spec: Any) -> None:
    versions = {row["package"]: row["version"] for row in spec["components"]["cuda"]["packages"]}
    held = host.run("apt-mark showhold").stdout.split()
    listed = host.run("dpkg-query -W -f '${db:Status-Status} ${Package} ${Version}\\n'").stdout
    rows = [line.split(" ") for line in listed.splitlines()]
    installed = {name: version for status, name, version in rows if status == "installed" and name in versions}
    assert set(spec["components"]["cuda"]["install"]) - set(installed) == set(), "not installed"
    assert installed.items() <= versions.items()
    assert set(installed) - set(held) == set(), "not held"


@pytest.mark.device("gpu")
@pytest.mark.component("cudnn")
def test_cudnn_is_the_one_for_this_cuda_and_held(host: Host, spec: Any) -> None:
    cudnn = spec["components"]["cudnn"]
    held = host.run("apt-mark showhold").stdout.split()
    for name in cudnn["packages"]:
        assert host.package(name).version == cudnn["builds"][spec["components"]["cuda"]["installed"]]
        assert name in held, f"{name} is not held"


@pytest.mark.device("gpu")
@pytest.mark.component("cuda")
def test_the_loader_knows_every_soname(host: Host, spec: Any) -> None:
    listed = (line.strip().partition(" => ") for line in lines(host.run("/sbin/ldconfig -p")))
    cache = {name.partition(" ")[0]: path for name, _, path in listed}
    wanted = [
        f"{library['name']}.so.{library['soname']}"
        for row in spec["components"]["cuda"]["packages"]
        for library in row["libraries"]
    ]
    wanted.append(f"libcudnn.so.{spec['components']['cudnn']['soname']}")
    assert len(wanted) > 5
    assert [name for name in wanted if name not in cache] == []
    # The cache may be older than what it leads to; readelf ends with 1 where a file is gone.
    told = lines(host.run(f"readelf --dynamic --wide {' '.join(cache[name] for name in wanted)}"), codes=(0, 1))
    own: dict[str, str] = {}
    path = ""
    for line in told:
        path = line.removeprefix("File: ").strip() if line.startswith("File: ") else path
        soname = re.search(r"\(SONAME\).*\[(.*)\]", line)
        own |= {path: soname[1]} if soname else {}
    wrong = {name: found for name in wanted if (found := own.get(cache[name], "nothing")) != name}
    assert wrong == {}, "the cache leads to nothing, or to a library of another name"


@pytest.mark.device("gpu")
@pytest.mark.component("cuda")
def test_the_toolkit_is_the_default_one(host: Host, spec: Any) -> None:
    assert host.file("/usr/local/cuda").linked_to.endswith(f"cuda-{spec['components']['cuda']['installed']}")
    assert spec["components"]["cuda"]["toolkit"] in host.file("/usr/local/cuda/version.txt").content_string


@pytest.mark.device("gpu")
@pytest.mark.component("cuda")
def test_every_shell_has_cuda_home(as_user: Any, host: Host, spec: Any) -> None:
    assert as_user("echo $CUDA_HOME").stdout.strip() == "/usr/local/cuda"
    assert host.run("bash -ic 'echo $CUDA_HOME' 2>/dev/null").stdout.strip() == "/usr/local/cuda"


@pytest.mark.device("cpu")
def test_no_cuda_package_on_a_cpu_image(host: Host) -> None:
    found = host.run("dpkg-query -W -f '${Package}\\n' 'cuda*' 'libcudnn*' 'nvidia*'")
    # It ends with 1 where it finds none of a name.
    assert lines(found, codes=(0, 1)) == []


@pytest.mark.device("cpu")
def test_no_cuda_library_in_the_system_of_a_cpu_image(host: Host, root: bool) -> None:
    others = "! -name 'libcurl*' ! -name 'libcups*'"
    names = f"\\( -name 'libcu*.so*' -o -name 'libnvrtc*' \\) {others}"
    assert lines(host.run(f"find /usr /opt /lib {QUIETLY} -xdev {names}"), blind=not root) == []
    assert not host.file("/usr/local/cuda").exists


@pytest.mark.device("cpu")
@pytest.mark.component("pytorch")
def test_a_framework_with_cuda_inside_is_a_declared_one(as_user: Any, spec: Any) -> None:
    # The index has no CPU build of PyTorch for these interpreters; the substitution says so.
    for path in spec["workspaces"].values():
        found = lines(as_user(f"find {path} {QUIETLY} -name 'libcu*' -o -name 'libnvrtc*'"))
        assert [name for name in found if "/torch/" not in name] == []
