"""Rehearses an upgrade on the simulated platform, in the platform's own order, and proves that /data is kept whole.

Create the cluster on the old release with data volumes, fill them, stop; new root disks, the same volumes; boot,
configuration, ``upgrade``, ``start``; check. Where a step after the stop fails, the way back is walked and proven too.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from kiln.errors import KilnError
from kiln.losses import LossReport, find_losses
from kiln.matrix import Matrix
from kiln.node_tools import data_manifest, rehearsal_data
from kiln.platform import Cluster, Node, Service, cluster, docker, remove_volumes, volumes_of
from kiln.project import Project
from kiln.sample_changes import read_samples, sample_changes
from kiln.store import Store
from kiln.tables import read_table

Verdict = Literal["kept", "changed", "rolled back", "failed"]

PYTHON = "/usr/bin/python3"

GIVEN = {"uid", "gid"}
"""Fields of the volume's top folder that ``upgrade`` changes on purpose: releases before 1.2 left it to root."""

# Has no name, so that the folder's own time stays as it is.
WRITE = "import os, sys; os.close(os.open(sys.argv[1], os.O_TMPFILE | os.O_WRONLY, 0o600))"

# Starts, and imports all that was installed in it; writes nothing, as /data may have to be compared again.
TRY_PYTHON = """
if ! [ -e "$python" ]; then
  echo "does not start: $(readlink -m "$python") is gone, it lay outside /data"
elif said=$("$python" -B - 2>&1 <<'END'
import pkgutil, sys
own = [path for path in sys.path if path.startswith(sys.prefix) and path.endswith("site-packages")]
for _, name, _ in pkgutil.iter_modules(own):
    __import__(name)
print("Python " + sys.version.split()[0])
END
); then
  echo "$said"
else
  echo "does not start: $(tail -n 1 <<<"$said")"
fi
"""


@dataclass(frozen=True)
class Step:
    """One step of the rehearsal."""

    name: str
    seconds: float
    error: str = ""


@dataclass
class Report:
    """What a rehearsal found."""

    image: str
    old: str
    new: str
    nodes: int
    begun: str
    """UTC, ISO 8601."""
    verdict: Verdict = "failed"
    steps: list[Step] = field(default_factory=list)
    entries: int = 0
    """Entries of the manifests of all volumes."""
    sha256: list[str] = field(default_factory=list)
    """Of each volume's manifest before the upgrade."""
    differences: list[str] = field(default_factory=list)
    """What differs in /data that should not, a sentence each."""
    given: list[str] = field(default_factory=list)
    """What differs on purpose."""
    losses: list[dict[str, Any]] = field(default_factory=list)
    """The loss report of each node."""
    changes: list[dict[str, str]] = field(default_factory=list)
    """component, old version, new version; of the images' own manifests."""
    removed: list[str] = field(default_factory=list)
    """Paths a user may know that the new image has no more."""
    renamed: list[tuple[str, str]] = field(default_factory=list)
    """Paths of files that the new image has elsewhere: old, new."""
    samples: list[str] = field(default_factory=list)
    """What became of the samples and of the flags that they take, a sentence each."""
    environments: list[dict[str, str]] = field(default_factory=list)
    """Interpreters below /data, virtualenvs' and others: their version on the new image, or why they do not start."""
    volumes: list[str] = field(default_factory=list)
    """Data volumes that were kept in the engine."""

    @property
    def exit_code(self) -> int:
        """0: upgraded and all data kept; 1: anything else."""
        return 0 if self.verdict == "kept" else 1


@dataclass
class Rehearsal:
    """One rehearsal of one image."""

    project: Project
    store: Store
    image: str
    old: str
    new: str
    nodes: int = 1
    files: int = 1000
    """Small files on each volume, besides the odd ones."""
    keep_volumes: bool = False
    told: Callable[[str], None] = lambda line: None
    before_step: Callable[[str, Cluster], None] = lambda step, made: None
    """Called before each step with its name: where tests break things."""

    def __post_init__(self) -> None:
        self._refuse_impossible()
        self._begun = time.monotonic()
        now = datetime.now(UTC)
        self.report = Report(self.image, self.old, self.new, self.nodes, now.isoformat(timespec="seconds"))
        self.folder = self.store.root / "rehearsals" / f"{now:%Y%m%dT%H%M%SZ}-{self.image}-{os.getpid()}"

    # What can be refused before anything begins

    def _refuse_impossible(self) -> None:
        accepted = self._release(self.new).get("upgrades_from", [])
        if self.old not in accepted:
            raise KilnError(
                f"release {self.new} accepts no upgrade from {self.old}",
                where=f"images/releases/{self.new}.yml",
                fix=f"upgrade from {' or '.join(accepted)}" if accepted else "list the release under upgrades_from",
            )
        matrix = Matrix(self.project, "registry")
        for release in (self.old, self.new):
            if self.image not in matrix.images(release):
                raise KilnError(
                    f"image {self.image!r} is not in release {release}",
                    where=f"images/releases/{release}.yml",
                    fix=f"choose one of {', '.join(matrix.images(release))}",
                )
            if not docker("image", "inspect", "--format", "{{.Id}}", self._reference(release), check=False):
                raise KilnError(f"{self._reference(release)} is not baked", fix=f"run make images RELEASE={release}")

    def _release(self, name: str) -> dict[str, Any]:
        path = self.project.images / "releases" / f"{name}.yml"
        if not path.is_file():
            known = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.yml")))
            raise KilnError(f"release {name} does not exist", where="images/releases", fix=f"choose one of {known}")
        data: dict[str, Any] = read_table(path, self.project.root).data
        return data

    def _reference(self, release: str) -> str:
        return f"deeplearning:{release}-{self.image}"

    def _services(self, release: str) -> dict[str, Service]:
        """What the release's package runs on a node."""
        path = self.project.images / "appcenter.yml"
        known = read_table(path, self.project.root).data["services"]
        names = self._release(release)["services"]
        return {name: Service.of(name, known[name]) for name in names}

    # The rehearsal

    def run(self) -> Report:
        """Rehearses; the report is in ``folder`` whatever happened. Volumes go unless they must be looked at."""
        self.folder.mkdir(parents=True)
        name = ""
        finished = False
        try:
            with cluster(self._services(self.old)) as made:
                name = made.name
                self._rehearse(made)
            if self.report.verdict in ("kept", "rolled back") and not self.keep_volumes:
                self._write()  # before the proof goes
                remove_volumes(name)
                finished = True
        finally:
            if not finished:
                if name:
                    self._keep(name)
                self._write()
        return self.report

    def _keep(self, name: str) -> None:
        self.report.volumes = volumes_of(name)
        kept = " ".join(self.report.volumes)
        self.told(f"volumes kept: {kept}; docker volume rm removes them" if kept else "no volume is left")

    def _rehearse(self, made: Cluster) -> None:
        old, new = self._reference(self.old), self._reference(self.new)
        with self._step("create", made):
            for _ in range(self.nodes):
                made.boot(made.add(old))
            self._configure(made, *made.order("init"))
        with self._step("fill", made):
            for node in made.nodes:
                self._fill(made, node)
        with self._step("preflight", made):
            for node in made.nodes:
                self.report.losses.append(self._losses(node).as_data())
        with self._step("stop", made):
            self._run_all(made, "stop")
        with self._step("manifest before", made):
            for node in made.nodes:
                self._manifest(node, "before")
        with self._step("power off", made):
            for node in made.nodes:
                made.power_off(node)
        try:
            self._upgrade(made, new)
            self.report.verdict = "kept"
        except KilnError:
            self._go_back(made, old)

    def _upgrade(self, made: Cluster, new: str) -> None:
        made.services = self._services(self.new)
        with self._step("new root disks", made):
            for node in list(made.nodes):
                made.boot(made.replace_root(node, new))
        with self._step("configuration", made):
            audit = {"from_app_version": self.old, "to_app_version": self.new}
            self._publish(made, upgrade_audit=audit)
        for service in made.order("upgrade"):
            with self._step(service, made):
                self._run_all(made, service)
        with self._step("manifest after", made):
            for node in made.nodes:
                self._manifest(node, "after")
                self._compare(node, "after")
            if found := self.report.differences:
                raise KilnError(f"/data differs in {len(found)} entries, first {found[0]}", fix="look at the report")
        with self._step("check", made):
            for node in made.nodes:
                self._check(made, node)
        with self._step("what changed", made):
            self._what_changed(made)

    def _go_back(self, made: Cluster, old: str) -> None:
        """The platform's way back: the old image, the same volumes, configuration, start."""
        made.services = self._services(self.old)
        self.told("going back")
        seen, self.report.differences = self.report.differences, []
        with self._step("old root disks", made):
            for node in list(made.nodes):
                made.power_off(node)
                made.boot(made.replace_root(node, old))
            self._configure(made, "start")
        with self._step("manifest after going back", made):
            for node in made.nodes:
                self._manifest(node, "back")
                self._compare(node, "back")
        with self._step("check after going back", made):
            for node in made.nodes:
                # Nobody is promised more than the old release gave.
                if self._is_users(node, "before"):
                    self._write_as_user(made, node)
                run_sample(made, node, self._node_table())
        self.report.verdict = "changed" if self.report.differences else "rolled back"
        self.report.differences = list(dict.fromkeys([*seen, *self.report.differences]))

    # Its parts

    @contextmanager
    def _step(self, name: str, made: Cluster) -> Iterator[None]:
        begun = time.monotonic()
        error = "interrupted"
        try:
            self.before_step(name, made)
            yield
            error = ""
        except KilnError as wrong:
            error = str(wrong)
            raise
        finally:
            seconds = round(time.monotonic() - begun, 1)
            self.report.steps.append(Step(name, seconds, error))
            whole = time.monotonic() - self._begun
            minutes, rest = divmod(int(whole), 60)
            self.told(f"[{minutes:3}:{rest:02}] {name}: {error or 'done'} ({seconds:.1f} s)")

    def _run_all(self, made: Cluster, service: str) -> None:
        for node in list(made.nodes):
            made.run(node, service)

    def _publish(self, made: Cluster, **more: dict[str, str]) -> None:
        made.publish(**more)
        for node in made.nodes:
            made.await_configuration(node)

    def _configure(self, made: Cluster, *services: str) -> None:
        self._publish(made)
        for service in services:
            self._run_all(made, service)

    def _fill(self, made: Cluster, node: Node) -> None:
        with Path(rehearsal_data.__file__).open("rb") as program:
            command = ["docker", "exec", "--interactive", node.container, PYTHON, "-", "/data", str(self.files)]
            done = subprocess.run(command, stdin=program, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KilnError("the volume could not be filled", where=node.name, fix=done.stderr.strip()[-200:])
        table = self._node_table()
        user, pythons = table["user"]["name"], table["python"]["path"]
        series = [row["series"] for row in self._pythons()]
        # Release 1.0 had a Miniconda of root's there. The virtualenvs are made as users make them; the Python of the
        # last lies outside of /data.
        script = f"""
            set -e
            cp -a {pythons}/{series[0]} /data/miniconda2
            ln -sfn python{series[0]} /data/miniconda2/bin/python
            install -d -o {user} -g {user} /data/environments
            su {user} -c '
              set -e
              for series in {" ".join(series)}; do
                virtualenv --quiet --no-download --no-pip --no-setuptools --no-wheel \\
                  -p {pythons}/$series/bin/python$series /data/environments/$series >/dev/null
                echo "value = 1" > /data/environments/$series/lib/python$series/site-packages/of_the_user.py
              done
              ln -s {pythons}/{series[-1]} ~/own-python
              ~/own-python/bin/python{series[-1]} -m venv --without-pip /data/environments/own
              mkdir ~/experiments
              echo "learning rate 0.01" > ~/experiments/notes.txt
            '
        """
        made.execute(node, script)

    def _node_table(self) -> dict[str, Any]:
        data: dict[str, Any] = read_table(self.project.images / "node.yml", self.project.root).data
        return data

    def _pythons(self) -> list[dict[str, Any]]:
        table = read_table(self.project.images / "components" / "python.yml", self.project.root)
        return list(table.data["versions"].values())

    def _losses(self, node: Node) -> LossReport:
        path = self._node_table()["workspaces"]["path"]
        workspaces = [f"{path}/{row['workspace']}" for row in self._pythons()]
        return find_losses(node.container, node.image, self.store, release=self.old, workspaces=workspaces)

    def _place(self, node: Node, when: str) -> Path:
        return self.folder / f"{node.name}-{when}.manifest"

    def _manifest(self, node: Node, when: str) -> None:
        command = ["docker", "exec", "--interactive", node.container, PYTHON, "-", "make", "/data"]
        path = self._place(node, when)
        with Path(data_manifest.__file__).open("rb") as program, path.open("wb") as output:
            done = subprocess.run(command, stdin=program, stdout=output, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no word"]
            raise KilnError(f"no manifest of /data ({said[0]})", where=node.name, fix="look at the volume")
        if when == "before":
            last = json.loads(path.read_bytes().splitlines()[-1])
            self.report.entries += int(last["entries"])
            self.report.sha256.append(str(last["sha256"]))

    def _top_owner(self, node: Node, when: str) -> tuple[int, int]:
        """User and group of the volume's top folder."""
        with closing(data_manifest.Manifest(str(self._place(node, when)))) as manifest:
            entry = manifest.entry(next(manifest.lines()))
        return entry["uid"], entry["gid"]

    def _is_users(self, node: Node, when: str) -> bool:
        user = self._node_table()["user"]
        return self._top_owner(node, when) == (user["uid"], user["gid"])

    def _compare(self, node: Node, when: str) -> None:
        with ExitStack() as files:
            before, after = (
                files.enter_context(closing(data_manifest.Manifest(str(self._place(node, time)))))
                for time in ("before", when)
            )
            for difference in data_manifest.differences(before, after):
                told = f"{node.name}: {data_manifest.sentence(difference)}"
                _, path, changes = difference
                given = path == "." and {name for name, _, _ in changes} <= GIVEN and self._is_users(node, when)
                (self.report.given if given else self.report.differences).append(told)

    def _check(self, made: Cluster, node: Node) -> None:
        """A user can go on: the node is healthy, the volume is theirs; what their interpreters say is noted."""
        health = Service("health-check", "/opt/dl/bin/health-check", 30)
        made.services = {**made.services, health.name: health}
        made.run(node, health.name)
        if not self._is_users(node, "after"):
            owner = "{}:{}".format(*self._top_owner(node, "after"))
            raise KilnError(f"/data belongs to {owner} and not to the user", where=node.name, fix="look at upgrade")
        self._write_as_user(made, node)
        run_sample(made, node, self._node_table())
        user = self._node_table()["user"]["name"]
        pythons = made.execute(node, "find /data -maxdepth 5 -path '*/bin/python'")
        for python in sorted(pythons.splitlines()):
            says = made.execute(node, f"python={shlex.quote(python)}\n{TRY_PYTHON}", user=user)
            self.report.environments.append({"node": node.name, "python": python, "says": says})

    def _write_as_user(self, made: Cluster, node: Node) -> None:
        command = shlex.join([PYTHON, "-c", WRITE, "/data"])
        try:
            made.execute(node, command, user=self._node_table()["user"]["name"])
        except KilnError as wrong:
            raise KilnError(
                f"the user cannot write to /data ({wrong.what})", where=node.name, fix="look at upgrade"
            ) from None

    def _what_changed(self, made: Cluster) -> None:
        held = {release: self._held(release) for release in (self.old, self.new)}
        for name in sorted(held[self.old].keys() | held[self.new].keys()):
            old, new = held[self.old].get(name, "none"), held[self.new].get(name, "none")
            if old != new:
                self.report.changes.append({"component": name, "old": old, "new": new})
        self.report.removed, self.report.renamed = moved(self._paths(self.old), self._paths(self.new))
        folder = self._node_table()["paths"]["samples"]
        self.report.samples = sample_changes(
            *(read_samples(self._reference(release), folder) for release in (self.old, self.new))
        )

    def _held(self, release: str) -> dict[str, str]:
        path = self._node_table()["paths"]["manifest"]
        said = docker("run", "--rm", "--entrypoint=cat", self._reference(release), path)
        found = {}
        for name, part in json.loads(said)["components"].items():
            installed = part["installed"]
            found[name] = (
                part["version"] if installed == part["version"] else f"{part['version']} ({installed} installed)"
            )
        return found

    def _paths(self, release: str) -> dict[str, str]:
        """Paths near the surface of what a user works with, to the content's digest where it is a file of some."""
        near = f"find {self._node_table()['user']['home']} /opt /usr/local/bin -maxdepth 3 -not -path '*/lib/*'"
        script = f"{near}; echo; {near} -type f -size +0 -exec sha256sum {{}} +"
        said = docker("run", "--rm", "--entrypoint=sh", self._reference(release), "-c", script)
        paths, _, digests = said.partition("\n\n")
        return dict.fromkeys(paths.splitlines(), "") | {line[66:]: line[:64] for line in digests.splitlines()}

    # The report

    def _write(self) -> None:
        data = asdict(self.report)
        (self.folder / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (self.folder / "report.html").write_text(as_html(self.project, data), encoding="utf-8")


def run_sample(made: Cluster, node: Node, table: dict[str, Any]) -> None:
    """A sample trains and tests; raises KilnError. ``table``: images/node.yml."""
    script = f"""
        set -e
        source {table["workspaces"]["path"]}/py3/bin/activate
        cd {table["paths"]["samples"]}/pytorch
        python mnist.py --steps 2 >/tmp/sample.log 2>&1 || {{ tail -n 1 /tmp/sample.log >&2; exit 1; }}
        grep -q "test accuracy" /tmp/sample.log || {{ echo "it tells no test accuracy" >&2; exit 1; }}
    """
    try:
        made.execute(node, script, user=table["user"]["name"])
    except KilnError as wrong:
        raise KilnError(
            f"the sample pytorch/mnist.py fails: {wrong.what}", where=node.name, fix=f"run it in {node.image}"
        ) from None


def moved(old: dict[str, str], new: dict[str, str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Paths that are gone, and (old, new) of a file whose content one new path has; the trees are path to digest."""
    places: dict[str, list[str]] = {}
    for path in sorted(new.keys() - old.keys()):
        places.setdefault(new[path], []).append(path)
    gone, renamed = [], []
    for path in sorted(old.keys() - new.keys()):
        found = places.get(old[path], []) if old[path] else []
        if len(found) == 1:
            renamed.append((path, found[0]))
        else:
            gone.append(path)
    return gone, renamed


def as_html(project: Project, report: dict[str, Any]) -> str:
    """The report as one HTML page that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(project.templates / "report"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("upgrade.html.j2").render(report=report)
