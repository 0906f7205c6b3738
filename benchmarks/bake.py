"""Times kiln's bakes beside what one would do instead: the same playbooks without stages, and a Dockerfile.

``python benchmarks/bake.py [warm] [cold] [dockerfile] [unshared]`` prints a table; run it on a machine that does
nothing else. Downloads must be in the store: run ``kiln artifacts fetch`` first. Nothing of the project's own store and
no image of it is touched: every part works on a copy of the checkout and a store of its own, and removes what it baked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kiln.project import find_project

PROJECT = find_project(Path(__file__).resolve().parent.parent)
KILN = Path(sys.executable).parent / "kiln"
COPIED = ("images", "roles", "playbooks", "templates", "ansible.cfg")

DOCKERFILE = """\
FROM {parent}
COPY --chown=ubuntu:ubuntu wheels /tmp/wheels
COPY --chown=ubuntu:ubuntu requirements /tmp/requirements
USER ubuntu
RUN for series in 2.7 3.6; do \\
      name=py${{series%%.*}}; \\
      virtualenv -p /opt/python/$series/bin/python$series --no-download /home/ubuntu/workspaces/$name && \\
      /home/ubuntu/workspaces/$name/bin/pip install --no-cache-dir --no-index --find-links /tmp/wheels \\
        -r /tmp/requirements/$name.txt || exit 1; \\
    done
USER root
ADD caffe.tar /home/ubuntu/
RUN echo {nonce} > /etc/nonce
"""


def timed(command: list[str], **environment: str) -> float:
    """Wall seconds of a command that must succeed."""
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.monotonic() - started


def best(runs: int, command: list[str], **environment: str) -> float:
    """The least wall seconds of several runs: the machine's noise only ever adds."""
    return min(timed(command, **environment) for _ in range(runs))


@contextmanager
def copy(nonce: str = "") -> Iterator[tuple[list[str], Path]]:
    """A kiln command on a copy of the checkout and a store with the downloads alone.

    With a ``nonce`` no stage of the copy has the digest of one that exists already, the bootstrap stage included.
    """
    folder = Path(tempfile.mkdtemp(prefix="kiln-bench-", dir=PROJECT.store))
    checkout, store = folder / "checkout", folder / "store"
    checkout.mkdir()
    store.mkdir()
    for name in COPIED:
        source = PROJECT.root / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, checkout / name)
    # Hard links: a download is never written to.
    subprocess.run(["cp", "-al", PROJECT.store / "blobs", store / "blobs"], check=True)
    for name in ("apt", "locks.json", "packer-version.json", "mmdebstrap-version.json", "archives"):
        if (PROJECT.store / name).exists():
            subprocess.run(["cp", "-a", PROJECT.store / name, store / name], check=True)
    if nonce:
        channel = checkout / "images" / "channels" / "registry.yml"
        text = channel.read_text(encoding="utf-8")
        # A package named twice changes the stage's variables and not its content.
        channel.write_text(text.replace("include: [", "include: [" + "sudo, " * int(nonce), 1), encoding="utf-8")
    kiln = [str(KILN), "--root", str(checkout), "--store", str(store)]
    try:
        yield kiln, checkout
    finally:
        records = [path.stem for path in (store / "records").glob("*.json")] if nonce else []
        for digest in records:
            subprocess.run(["docker", "rmi", "-f", f"kiln/stage:{digest}"], capture_output=True, check=False)
        shutil.rmtree(folder)


@contextmanager
def kept_names() -> Iterator[None]:
    """Gives the finished images their names back, which a bake of a copy takes."""
    listed = subprocess.run(
        ["docker", "images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "deeplearning"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    try:
        yield
    finally:
        for line in listed.splitlines():
            name, image = line.split()
            subprocess.run(["docker", "tag", image, name], check=True)


def warm() -> dict[str, float]:
    """Nothing changed, and one late role changed, on the images as they are."""
    kiln = [str(KILN), "--root", str(PROJECT.root)]
    times = {
        "kiln plan, nothing changed": best(5, [*kiln, "plan"]),
        "make images, nothing changed": best(5, ["make", "-s", "-C", str(PROJECT.root), "images"]),
    }
    role = PROJECT.root / "roles" / "seal" / "defaults" / "main.yml"
    before = role.read_bytes()
    try:
        role.write_bytes(before + f"# {time.time()}\n".encode())
        with kept_names():
            times["three images, the last role changed"] = timed([*kiln, "bake"])
    finally:
        role.write_bytes(before)
    return times


def cold() -> dict[str, float]:
    """From no image at all, downloads done: cpu alone, then all three."""
    times = {}
    with kept_names():
        for nonce, name, selection in (("1", "cpu alone, cold", ["--image", "cpu"]), ("2", "three images, cold", [])):
            with copy(nonce) as (kiln, _):
                times[name] = timed([*kiln, "bake", *selection])
    return times


def unshared() -> dict[str, float]:
    """The cpu image by the same playbooks, one after the other, over Ansible's own Docker connection."""
    with kept_names(), copy("3") as (kiln, _):
        command = [*kiln, "bake", "--image", "cpu", "--jobs", "1"]
        return {"cpu alone, one stage at a time, Ansible's own connection": timed(command, KILN_CONNECTION="docker")}


def dockerfile() -> dict[str, float]:
    """Virtualenvs and Caffe by a Dockerfile on the same Python: cold, nothing changed, last line changed."""
    plan = json.loads(
        subprocess.run([KILN, "plan", "--json", "--image", "cpu"], capture_output=True, check=True).stdout
    )
    stages = {stage["name"]: stage["digest"] for stage in plan["stages"]}
    with tempfile.TemporaryDirectory(dir=PROJECT.store) as scratch:
        context = Path(scratch)
        spread(context, stages)

        def build(nonce: str) -> float:
            text = DOCKERFILE.format(parent=f"kiln/stage:{stages['python']}", nonce=nonce)
            (context / "Dockerfile").write_text(text, encoding="utf-8")
            return timed(["docker", "build", "-t", "kiln-bench", scratch], DOCKER_BUILDKIT="0")

        try:
            times = {"Dockerfile of virtualenvs and a ready Caffe, cold": build("1")}
            times["Dockerfile, nothing changed"] = min(build("1") for _ in range(3))
            times["Dockerfile, the last line changed"] = build("2")
            size = subprocess.run(
                ["docker", "image", "inspect", "--format", "{{.Size}}", "kiln-bench"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            times["Dockerfile's image, GB"] = int(size) / 1e9
        finally:
            subprocess.run(["docker", "rmi", "-f", "kiln-bench"], capture_output=True, check=False)
    return times


def spread(context: Path, stages: dict[str, str]) -> None:
    """The wheels, the requirements and Caffe's archive where a Dockerfile can copy them."""
    from kiln.matrix import Matrix
    from kiln.store import Store

    store = Store.of(PROJECT)
    spec = Matrix(PROJECT, "registry").resolve(Matrix(PROJECT, "registry").releases()[-1], "cpu")
    (context / "wheels").mkdir()
    (context / "requirements").mkdir()
    wanted = ("tools", *(spec.components[name].group for name in ("pytorch", "tensorflow", "keras")))
    lines: dict[str, list[str]] = {"py2": [], "py3": []}
    for group in wanted:
        for artifact in spec.groups[str(group)]:
            path = store.lookup(artifact)
            if path is None or not artifact.file.endswith(".whl"):
                continue
            os.link(path, context / "wheels" / artifact.file)
            name, version = artifact.file.split("-")[:2]
            for workspace, tags in (("py2", ("cp27", "py2")), ("py3", ("cp36", "py3"))):
                if any(tag in artifact.file for tag in tags):
                    lines[workspace].append(f"{name}=={version}")
    built = store.product(stages["wheels-build"])
    caffe = store.product(stages["caffe-build"])
    assert built
    assert caffe
    for path in built.rglob("*.whl"):
        shutil.copy2(path, context / "wheels")
    for workspace, requirements in lines.items():
        (context / "requirements" / f"{workspace}.txt").write_text("\n".join(sorted(set(requirements))) + "\n")
    shutil.copy2(caffe / "mkl" / "caffe.tar", context)


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "warm": warm,
    "cold": cold,
    "dockerfile": dockerfile,
    "unshared": unshared,
}


def main() -> None:
    """Runs the parts named on the command line, else all."""
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"there is no part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    for part in chosen:
        for name, value in PARTS[part]().items():
            print(f"| {name} | {value:.2f}{'' if name.endswith('GB') else ' s'} |", flush=True)


if __name__ == "__main__":
    main()
