"""From tables to stages: what an image is made of, what of it is there already, and why the rest is not.

A stage's digest is the sha256 over everything that can change its result: its parent's digest, its playbook and every
file of the roles it runs, the variables they get, its artifacts and products by digest, the Packer template, kiln's own
code that makes a stage, and the versions of the tools. Same digest, same stage: nothing else decides what is built.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kiln import records
from kiln.artifact import Artifact
from kiln.bootstrap import INDEX_INPUT, Base, lock_name
from kiln.engine import CHANNEL_LABEL
from kiln.errors import KilnError
from kiln.image_spec import ImageSpec
from kiln.matrix import Matrix
from kiln.project import Project
from kiln.stages import Kind, StageRow, StageTable, file_digest, playbook_files
from kiln.store import Store
from kiln.templating import render
from kiln.tools import mmdebstrap_version, tool_versions
from kiln.wheels import requirement_files

REPOSITORY = "deeplearning"
"""Repository of the finished images: ``deeplearning:RELEASE-IMAGE``."""

ROOT_CODE = ("bootstrap.py", "host_python.py", "recipe.py")
STAGE_CODE = ("ansible/connection.py", "packer.py", "recipe.py", "supplies.py")
"""kiln's own files that decide what is in a bootstrap stage, and in every other."""

State = Literal["cached", "missing", "unneeded"]


@dataclass(frozen=True)
class Stage:
    """One step of one or more images."""

    name: str
    kind: Kind
    digest: str
    """64 hex digits."""
    parent: str | None
    """The parent stage's digest; none for the bootstrap stage."""
    playbook: Path
    interpreter: str
    """Python on the target that Ansible's modules run on."""
    variables: dict[str, Any]
    artifacts: tuple[tuple[str, Artifact], ...]
    """(folder under /run/kiln/artifacts, artifact)."""
    products: tuple[tuple[str, str], ...]
    """(build stage, its digest)."""
    serve: tuple[tuple[str, str], ...]
    """(host name, build stage whose product answers for it)."""
    inputs: dict[str, str] = field(repr=False)
    """Input's name to its digest or value: what the digest covers."""
    files: dict[str, str] = field(default_factory=dict, repr=False)
    """The inputs that are files of the project: relative path to digest. A bake sees these and no others."""
    images: tuple[str, ...] = ()
    """The images it serves, as release/image."""
    tag: str | None = None
    """Reference of the finished image, on an image's last stage."""
    labels: dict[str, str] = field(default_factory=dict)
    substitutions: dict[str, str] = field(default_factory=dict)
    """Component to reason, on an image's last stage."""
    state: State = "missing"
    why: tuple[str, ...] = ()
    expected_s: float | None = None
    """Seconds that the stage took last time."""

    @property
    def reference(self) -> str:
        """The stage's own image reference in the engine."""
        return f"kiln/stage:{self.digest}"


@dataclass(frozen=True)
class Plan:
    """The stages of the wanted images, parents and products before what needs them."""

    stages: tuple[Stage, ...]

    @cached_property
    def by_digest(self) -> dict[str, Stage]:
        return {stage.digest: stage for stage in self.stages}

    @property
    def missing(self) -> tuple[Stage, ...]:
        """What has to be built, in a possible order."""
        return tuple(stage for stage in self.stages if stage.state == "missing")

    @property
    def finals(self) -> tuple[Stage, ...]:
        """The last stage of each wanted image."""
        return tuple(stage for stage in self.stages if stage.tag)

    @property
    def chained(self) -> tuple[Stage, ...]:
        """The stages of the finished images themselves, build stages left out."""
        found: dict[str, Stage] = {}
        for final in self.finals:
            stage: Stage | None = final
            while stage and stage.digest not in found:
                found[stage.digest] = stage
                stage = self.by_digest.get(stage.parent or "")
        return tuple(found.values())

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Every artifact that a missing stage needs, each once."""
        return tuple(dict.fromkeys(artifact for stage in self.missing for _, artifact in stage.artifacts))

    @property
    def expected_s(self) -> float | None:
        """Seconds of work ahead, stages one after the other; none while a missing stage was never built."""
        times = [stage.expected_s for stage in self.missing]
        known = [time for time in times if time is not None]
        return sum(known) if len(known) == len(times) else None


@dataclass(frozen=True)
class _Image:
    """One image while its stages are made."""

    spec: ImageSpec
    chain: list[StageRow]
    made: dict[str, Stage | None] = field(default_factory=dict)
    """Row's name to its stage; none while it is being made."""

    @cached_property
    def name(self) -> str:
        return f"{self.spec.release}/{self.spec.image}"

    @cached_property
    def names(self) -> dict[str, Any]:
        return self.spec.names()


class Planner:
    """Turns image specs into stages; a stage that two images share comes out once."""

    def __init__(self, project: Project, store: Store, matrix: Matrix) -> None:
        self.project = project
        self.store = store
        self.matrix = matrix
        self.table = StageTable(project)
        self.tools = tool_versions(store)
        self.templates = {
            project.relative(path): file_digest(path) for path in sorted((project.templates / "packer").glob("*"))
        }
        self.root_code, self.stage_code = _code(ROOT_CODE), _code(STAGE_CODE)
        self._files: dict[str, dict[str, str]] = {}
        self._stages: dict[str, Stage] = {}

    def plan(self, images: Iterable[tuple[str, str]], present: frozenset[str], *, inputs: bool = False) -> Plan:
        """The plan for ``images`` (release, image); ``present`` holds the digests of the stage images in the engine.

        With ``inputs`` the products that their roles read are wanted too, finished images or not.
        """
        for release, image in images:
            self._add_image(self.matrix.resolve(release, image))
        return self._states(present, inputs=inputs)

    def _add_image(self, spec: ImageSpec) -> None:
        image = _Image(spec, self.table.chain(spec.device))
        if not image.chain or image.chain[-1].kind == "bootstrap":
            raise KilnError(
                f"image {image.name} has no stages", where="images/stages.yml", fix="list some for its device"
            )
        image.names["manifest"] = spec.manifest(self.store.locked_sha256, self._made(image))
        for row in image.chain:
            final = self._stage(row, image)
        self._stages[final.digest] = replace(
            final,
            tag=f"{REPOSITORY}:{spec.release}-{spec.image}",
            labels=self._labels(spec, final.digest),
            substitutions=spec.substitutions,
        )

    def _made(self, image: _Image) -> dict[str, dict[str, str]]:
        """Component to the stages that make it, by digest: what is no file has no other checksum."""
        stages = {name: part.settings.get("stand_in") for name, part in image.spec.components.items()}
        stages["base"] = image.chain[0].name
        where = "images/stages.yml"
        return {name: {stage: self._named(stage, image, where).digest} for name, stage in stages.items() if stage}

    @staticmethod
    def _labels(spec: ImageSpec, digest: str) -> dict[str, str]:
        prefix = "org.deeplearning"
        return {
            f"{prefix}.release": spec.release,
            f"{prefix}.image": spec.image,
            CHANNEL_LABEL: spec.channel.name,
            f"{prefix}.digest": digest,
            f"{prefix}.substitutions": ",".join(spec.substitutions),
        }

    def _stage(self, row: StageRow, image: _Image) -> Stage:
        """``row`` as ``image`` makes it, with everything it stands on; made once."""
        where = self.table.where(row.name)
        if row.name in image.made:
            made = image.made[row.name]
            if made is None:
                raise KilnError(f"stage {row.name} needs itself", where=where, fix="name an earlier stage")
            return made
        image.made[row.name] = None
        stage = self._make(row, image, where)
        image.made[row.name] = stage
        return stage

    def _make(self, row: StageRow, image: _Image, where: str) -> Stage:
        spec, names = image.spec, image.names
        parent = self._parent(row, image, where)
        wanted = [name for name in render(row.products, names, where) if name]
        products = tuple((name, self._product(name, image, where).digest) for name in wanted)
        serve = {host: name for host, name in render(row.serve, names, where).items() if name}
        for name in serve.values():
            if name not in wanted:
                raise KilnError(f"stage {row.name} serves {name}", where=where, fix="list it under products too")
        artifacts = self._artifacts(row, spec, names, where)
        variables: dict[str, Any] = render(row.variables, names, where)
        _check_places(row, variables, artifacts, products, where)
        files = self._files_of(row)
        inputs = self._inputs(row, spec, variables, artifacts, products, serve, parent) | files
        canonical = json.dumps({"name": row.name, "kind": row.kind, "inputs": inputs}, sort_keys=True)
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        known = self._stages.get(digest)
        stage = Stage(
            name=row.name,
            kind=row.kind,
            digest=digest,
            parent=parent.digest if parent else None,
            playbook=self.table.playbook(row),
            interpreter=spec.channel.base.interpreter,
            variables=variables,
            artifacts=artifacts,
            products=products,
            serve=tuple(serve.items()),
            inputs=inputs,
            files=files,
            images=tuple(dict.fromkeys((*(known.images if known else ()), image.name))),
            tag=known.tag if known else None,
            labels=known.labels if known else {},
            substitutions=known.substitutions if known else {},
        )
        self._stages[digest] = stage
        return stage

    def _parent(self, row: StageRow, image: _Image, where: str) -> Stage | None:
        """What the stage stands on: the stage it names, else the one before it in the chain."""
        if row.parent is None:
            index = image.chain.index(row)
            return self._stage(image.chain[index - 1], image) if index else None
        parent = self._named(str(render(row.parent, image.names, where)), image, where)
        if parent.kind == "build":
            raise KilnError(f"stage {row.name} stands on {parent.name}", where=where, fix="name an image stage")
        return parent

    def _product(self, name: str, image: _Image, where: str) -> Stage:
        product = self._named(name, image, where)
        if product.kind != "build":
            raise KilnError(f"{name} is taken for a product", where=where, fix="name a build stage")
        return product

    def _named(self, name: str, image: _Image, where: str) -> Stage:
        row = self.table.rows.get(name)
        if row is None:
            raise KilnError(f"stage {name} does not exist", where=where, fix="name one that is listed")
        if row.device not in (None, image.spec.device):
            raise KilnError(f"stage {name} is not made for {image.spec.device} images", where=where, fix="name another")
        return self._stage(row, image)

    def _artifacts(
        self, row: StageRow, spec: ImageSpec, names: Mapping[str, Any], where: str
    ) -> tuple[tuple[str, Artifact], ...]:
        found: list[tuple[str, Artifact]] = []
        for folder, expression in row.artifacts.items():
            group = render(expression, names, where)
            if group is None:
                continue
            group, _, only = str(group).partition("/")
            if group not in spec.groups:
                raise KilnError(
                    f"stage {row.name} needs artifact group {group}, which channel {spec.channel.name} lacks",
                    where=where,
                    fix=f"add it to {spec.channel.table.name}, or lock it with kiln artifacts lock",
                )
            chosen = [(folder, artifact) for artifact in spec.groups[group] if only in ("", artifact.path)]
            if not chosen:
                raise KilnError(
                    f"stage {row.name} needs {only}, which artifact group {group} lacks",
                    where=where,
                    fix="name one of its projects",
                )
            found += chosen
        return tuple(found)

    def _inputs(
        self,
        row: StageRow,
        spec: ImageSpec,
        variables: Mapping[str, Any],
        artifacts: Iterable[tuple[str, Artifact]],
        products: Iterable[tuple[str, str]],
        serve: Mapping[str, str],
        parent: Stage | None,
    ) -> dict[str, str]:
        inputs = {f"variable {name}": json.dumps(value, sort_keys=True) for name, value in variables.items()}
        inputs |= {f"artifact {folder}/{artifact.file}": self._identity(artifact) for folder, artifact in artifacts}
        inputs |= {f"product {name}": digest for name, digest in products}
        inputs |= {f"serve {host}": name for host, name in serve.items()}
        inputs["interpreter"] = spec.channel.base.interpreter
        if parent:
            inputs[f"parent {parent.name}"] = parent.digest
        inputs |= {
            f"artifact {name}": hashlib.sha256(text.encode()).hexdigest()
            for name, text in requirement_files(
                (folder, replace(artifact, sha256=self._identity(artifact))) for folder, artifact in artifacts
            ).items()
        }
        if row.kind == "bootstrap":
            inputs |= self.root_code
            inputs["tool mmdebstrap"] = mmdebstrap_version(self.store)
            inputs[INDEX_INPUT] = self.store.machine_lock(lock_name(Base.of(variables))) or "not fetched yet"
        else:
            inputs |= self.stage_code
            inputs |= {f"tool {name}": version for name, version in self.tools.items()}
        return inputs

    def _files_of(self, row: StageRow) -> dict[str, str]:
        if row.kind == "bootstrap":
            return {}
        if row.name not in self._files:
            self._files[row.name] = playbook_files(self.project, self.table.playbook(row)) | self.templates
        return self._files[row.name]

    def _identity(self, artifact: Artifact) -> str:
        return (
            artifact.sha256
            or self.store.locked_sha256(artifact)
            or f"not fetched yet: {artifact.origin} {artifact.path}"
        )

    def _states(self, present: frozenset[str], *, inputs: bool) -> Plan:
        """Walks back from the finished images: what they need and lack is missing, the rest of the graph unneeded."""
        wanted = [stage.digest for stage in self._stages.values() if stage.tag]
        if inputs:
            chained = Plan(tuple(self._stages.values())).chained
            wanted += [digest for stage in chained for _, digest in stage.products]
        states: dict[str, State] = {}
        while wanted:
            digest = wanted.pop()
            if digest in states:
                continue
            stage = self._stages[digest]
            there = self.store.product(digest) is not None if stage.kind == "build" else digest in present
            states[digest] = "cached" if there else "missing"
            if not there:
                wanted += [*([stage.parent] if stage.parent else []), *(product for _, product in stage.products)]
        history = records.read_records(self.store)
        stages = []
        for digest, stage in self._stages.items():
            state = states.get(digest, "unneeded")
            last = records.latest(history, stage.name, stage.images)
            stages.append(
                replace(
                    stage,
                    state=state,
                    why=self._why(stage, last, history) if state == "missing" else (),
                    expected_s=last.seconds if last else None,
                )
            )
        return Plan(tuple(stages))

    def _why(self, stage: Stage, last: records.Record | None, history: Mapping[str, records.Record]) -> tuple[str, ...]:
        if stage.digest in history:
            return ("built before, no longer in the store",)
        if last is None:
            return ("never built on this machine",)
        return tuple(explain(last.inputs, stage.inputs))


def _code(names: Iterable[str]) -> dict[str, str]:
    return {f"kiln/{name}": file_digest(Path(__file__).parent / name) for name in names}


_PLACE = re.compile(r"/run/kiln/(artifacts|products)/([^/]+)(?:/(.+))?")


def _check_places(
    row: StageRow,
    value: Any,
    artifacts: Iterable[tuple[str, Artifact]],
    products: Iterable[tuple[str, str]],
    where: str,
) -> None:
    """Refuses variables that name a file, or a folder, that the stage is not given."""
    given = {"artifacts": {folder for folder, _ in artifacts}, "products": {name for name, _ in products}}
    files = {(folder, artifact.file) for folder, artifact in artifacts}
    for text in _texts(value):
        place = _PLACE.fullmatch(text)
        if place and (
            place[2] not in given[place[1]]
            or (place[1] == "artifacts" and place[3] and (place[2], place[3]) not in files)
        ):
            raise KilnError(
                f"a variable of stage {row.name} names {text}, which it is not given",
                where=where,
                fix=f"list it under the stage's {place[1]}",
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def explain(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The differences between two input lists, one short clause each, causes before consequences."""
    reasons = []
    for name in sorted(set(old) | set(new), key=lambda name: (name.startswith(("parent ", "product ")), name)):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        short = name.startswith(("variable ", "tool "))
        if before is None:
            reasons.append(f"{name} added")
        elif after is None:
            reasons.append(f"{name} removed")
        elif short and len(before) + len(after) < 60:
            reasons.append(f"{name}: {before} → {after}")
        else:
            reasons.append(f"{name} changed")
    return reasons
