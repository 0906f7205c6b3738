"""Role nvidia_apt against real repositories: what it refuses, and what a node's owner cannot change by accident."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kiln.engine import Engine
from kiln.plan import Plan
from kiln.standin import serving
from stage_container import STORE, Run, Target, baked_plan, named, supplied
from tabled import CUDA, CUDNN

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

KEY = "/run/kiln/products/nvidia-repository/keyring.gpg"
OTHER_KEY = "/root/other.gpg"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return baked_plan("cuda91")


@dataclass(frozen=True)
class Repository:
    """A folder as role nvidia_repository makes it."""

    folder: Path

    @property
    def fingerprint(self) -> str:
        return (self.folder / "fingerprint").read_text(encoding="utf-8").strip()


@pytest.fixture(scope="module")
def good(plan: Plan) -> Repository:
    """The repository that the images are made from."""
    folder = STORE.product(named(plan, "nvidia-repository").digest)
    assert folder is not None
    return Repository(folder)


@pytest.fixture(scope="module")
def other(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The same packages in newer versions, with a new toolkit, signed by another key: made by the role itself."""
    stage = named(plan, "nvidia-repository")
    assert stage.parent is not None
    variables = copy.deepcopy(stage.variables)
    toolkit = variables["nvidia_repository_cuda"][CUDA]
    for package in toolkit["packages"]:
        package["version"] = newer(package["version"])
    release = variables["nvidia_repository_cudnn"][CUDNN]
    release["builds"] = {CUDA: newer(release["builds"][CUDA])}
    variables["nvidia_repository_cuda"] = {CUDA: toolkit}
    variables["nvidia_repository_cudnn"] = {CUDNN: release}
    folder = tmp_path_factory.mktemp("other")
    with supplied(plan, plan.by_digest[stage.parent], [stage], folder) as target:
        run = target.run_role("nvidia_repository", **variables)
        assert run.code == 0, run.output
    return Repository(folder / "out")


def newer(version: str) -> str:
    """A version that apt prefers."""
    return f"{version}.1"


class Node:
    """A container of the base system that finds at NVIDIA's address the repository ``served``."""

    def __init__(self, target: Target, served: Path, plan: Plan) -> None:
        self.target = target
        self.served = served
        self.variables = named(plan, "cuda").variables | named(plan, "cudnn").variables

    def serve(self, repository: Path) -> None:
        self.served.unlink(missing_ok=True)
        self.served.symlink_to(repository)

    def install(self, **changed: Any) -> Run:
        """Runs roles cuda and cudnn, both with these values in place of the release's."""
        names = {f"{role}_repository_{name}": value for role in ("cuda", "cudnn") for name, value in changed.items()}
        variables = self.variables | names
        play = {"name": "GPU", "hosts": "all", "gather_facts": False, "vars": variables, "roles": ["cuda", "cudnn"]}
        return self.target.play([play])

    def versions(self) -> dict[str, str]:
        """Every package of NVIDIA's with its state and version."""
        listed = self.target.shell("dpkg-query -W -f '${Package} ${Status} ${Version}\\n' 'cuda*' 'libcudnn*' || true")
        return dict(line.split(" ", 1) for line in listed.splitlines() if not line.endswith(" "))

    def assert_untouched(self) -> None:
        assert self.versions() == {}
        assert self.target.shell("ls /etc/apt/sources.list.d /usr/share/keyrings | grep nvidia || true") == ""
        assert "Candidate" not in self.target.shell("apt-cache policy libcudnn7 cuda-cudart-9-1")


@pytest.fixture
def node(plan: Plan, good: Repository, other: Repository, tmp_path: Path) -> Iterator[Node]:
    cuda = named(plan, "cuda")
    ((host, _),) = cuda.serve
    served = tmp_path / "served"
    with (
        serving(Engine().gateway(), {host: served / host}) as proxy,
        supplied(plan, named(plan, "base"), [cuda], tmp_path / "node", {host: proxy}) as target,
    ):
        made = Node(target, served, plan)
        made.serve(good.folder)
        target.shell(f"cat > {OTHER_KEY}", stdin=(other.folder / "keyring.gpg").read_bytes())
        yield made


def test_a_repository_signed_again_by_another_key_is_refused(node: Node, good: Repository, other: Repository) -> None:
    node.serve(other.folder)
    run = node.install()
    assert run.code != 0
    assert f"is signed by {other.fingerprint[-16:]}, not by {good.fingerprint}: if its owner changed" in run.failure
    node.assert_untouched()


def test_another_key_is_refused_however_well_it_fits(node: Node, good: Repository, other: Repository) -> None:
    node.serve(other.folder)
    run = node.install(key=OTHER_KEY)
    assert run.code != 0
    assert f"is signed by {other.fingerprint}, not by {good.fingerprint}: if its owner changed" in run.failure
    assert "write its fingerprint into the channel table" in run.failure
    node.assert_untouched()


def test_a_wrong_fingerprint_in_the_table_is_refused(node: Node, good: Repository) -> None:
    wrong = "0" * 40
    run = node.install(fingerprints=[wrong], fingerprint_file="")
    assert run.code != 0
    assert f"is signed by {good.fingerprint}, not by {wrong}:" in run.failure
    node.assert_untouched()


def test_a_changed_package_list_is_refused(node: Node, good: Repository, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(good.folder, broken, symlinks=True)
    for release in broken.rglob("InRelease"):
        release.chmod(0o644)
        release.write_text(release.read_text(encoding="utf-8").replace("NVIDIA", "N\N{LATIN CAPITAL LETTER O}IDIA"))
    node.serve(broken)
    run = node.install()
    assert run.code != 0
    assert run.changed[-1] != "nvidia_apt : Install the pinned versions"
    node.assert_untouched()


def test_upgrades_leave_the_pinned_versions_alone(node: Node, other: Repository) -> None:
    assert node.install(enabled=True).code == 0
    before = node.versions()
    assert {before[name] for name in ("libcudnn7", "libcudnn7-dev")} == {"hold ok installed 7.1.3.16-1+cuda9.1"}
    assert before["cuda-cudart-9-1"].endswith(" ok installed 9.1.85-1")
    assert set(before) - set(node.variables["cuda_install"]) - set(node.variables["cudnn_packages"]), (
        "what came with them"
    )
    assert [name for name, state in before.items() if not state.startswith("hold ok installed ")] == []
    # NVIDIA publishes newer ones, and the node trusts them.
    node.serve(other.folder)
    for name in ("cuda", "machine-learning"):
        node.target.shell(f"cp {OTHER_KEY} /usr/share/keyrings/nvidia-{name}.gpg")
    node.target.shell("apt-get -q update -oDir::Etc::sourcelist=/dev/null -oAPT::Get::List-Cleanup=0")
    assert "9.1.85-1.1" in node.target.shell("apt-cache policy cuda-cudart-9-1")
    for verb in ("upgrade", "dist-upgrade"):
        assert "0 upgraded, 0 newly installed, 0 to remove" in node.target.shell(f"apt-get -q -y {verb}")
        assert node.versions() == before
    wanted = "cuda-libraries-dev-9-1=9.1.85-1.1"
    refused = node.target.shell(f"apt-get -q -y install {wanted} 2>&1 && echo installed || true")
    assert "Held packages were changed" in refused
    assert node.versions() == before
    # Without pins and holds they would have gone: the test can fail.
    node.target.shell("rm /etc/apt/preferences.d/nvidia-*; apt-mark unhold 'cuda*' 'libcudnn*'")
    planned = node.target.shell("apt-get -s dist-upgrade")
    assert "Inst libcudnn7 [7.1.3.16-1+cuda9.1] (7.1.3.16-1+cuda9.1.1" in planned
    assert "Inst cuda-cudart-9-1 [9.1.85-1] (9.1.85-1.1" in planned
