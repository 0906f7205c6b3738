"""Bakes the missing stages of a plan: shared ones once, independent ones side by side, nothing half.

A stage is a Packer run of its own (a bootstrap stage: mmdebstrap). What a bake has at work carries its run's name:
containers by their name, processes by $KILN_RUN, files by their folder. Only one bake at a time works on a store, so
whatever carries another run's name is the remains of a dead one, and goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TextIO

from kiln import bootstrap, recipe
from kiln.ansible.connection import CALLBACKS, connection, mitogen_strategy
from kiln.ansible.events import Events
from kiln.engine import DIGEST_LABEL, STAGE_LABEL, STAGES, Engine, stage_tags
from kiln.errors import KilnError
from kiln.lock import Holder, bake_lock
from kiln.packer import TERM_S, Build, Packer, render_templates
from kiln.plan import Plan, Stage
from kiln.progress import Job, Reporter
from kiln.project import Project
from kiln.records import write_record
from kiln.remains import RUN_VARIABLE, end_processes, remove_containers, remove_remains, remove_tree
from kiln.stages import file_digest
from kiln.standin import serving
from kiln.store import Store
from kiln.supplies import Mount, Supplies
from kiln.tools import find_packer, packer_version

FREE_BYTES = 3 * 2**30
"""Room that the downloads need, and the largest stage at once; a fuller disk is refused at the start."""

STAGE_BYTES = 2**28
"""Room that each stage leaves filled in the engine, on average: three images from nothing take 10 GiB in 40 stages."""

LAST_LINES = 20
"""Of a failed command's output in the error; the rest stands in the log."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StageError(KilnError):
    """A stage's playbook or tool failed: the input was fine, so the exit code is 1."""

    exit_code = 1


class StoppedError(KilnError):
    """A signal ended the bake; everything of it is gone."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(
            f"ended by {signal.Signals(number).name}; nothing is half done",
            fix="run it again to continue at the stage that was being baked",
        )


def bake(plan: Plan, project: Project, store: Store, *, reporter: Reporter, jobs: int | None = None) -> None:
    """Bakes what is missing, ``jobs`` stages at a time (default: one per core), and names the finished images.

    Artifacts must be in the store already. Raises StageError for the first stage that failed, once those running
    beside it are done; StoppedError on a signal; KilnError for everything that can be told before work starts.
    """
    with _signals(), bake_lock(store.root / "bake.lock", lambda holder: reporter.waiting(_whom(holder))):
        Bake(plan, project, store, reporter, jobs or os.cpu_count() or 1).run()


def check_room(plan: Plan, store: Store, engine: Engine) -> None:
    """Raises KilnError where the disks of the store and the engine have too little room for what is missing."""
    store.root.mkdir(parents=True, exist_ok=True)
    for folder, stages in ((store.root, 0), (engine.root(), len(plan.missing))):
        needed = FREE_BYTES + stages * STAGE_BYTES
        if folder.is_dir() and shutil.disk_usage(folder).free < needed:
            raise KilnError(
                f"less than {needed / 2**30:.1f} GiB free on its disk, which this bake may need",
                where=str(folder),
                fix="make room, e.g. with kiln gc or docker image prune",
            )


def _whom(holder: Holder | None) -> str:
    return str(holder) if holder else "another bake"


@contextmanager
def _signals() -> Iterator[None]:
    """The first signal raises StoppedError wherever the main thread is; later ones must not disturb the clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise StoppedError(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        if before[number] is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Work:
    """One stage being baked."""

    stage: Stage
    job: Job
    folder: Path
    log: Path
    container: str


class Bake:
    """One run over the missing stages; the lock is held by the caller."""

    def __init__(self, plan: Plan, project: Project, store: Store, reporter: Reporter, workers: int) -> None:
        self.plan = plan
        self.project = project
        self.store = store
        self.reporter = reporter
        self.workers = workers
        self.engine = Engine()
        self.supplies = Supplies(plan, store)
        self.prefix = f"kiln-{hashlib.sha256(os.fsencode(store.root.resolve())).hexdigest()[:12]}-"
        self.name = f"{self.prefix}{os.getpid()}-{time.time_ns() // 1_000_000:x}"
        self._snapshot = self._runs / self.name / "project"
        self._cancels: dict[str, Callable[[], None]] = {}
        self._guard = threading.Lock()
        self._stopping = threading.Event()

    def run(self) -> None:
        """Removes what dead runs left, bakes, names the images."""
        # Another bake may have made some of them while this one waited for the lock.
        there = stage_tags()
        missing = [stage for stage in self.plan.missing if not self._exists(stage, there)]
        if missing:
            self._check()
            self._remove_remains()
            self._take_snapshot(missing)
            jobs = {stage.digest: self._job(stage) for stage in missing}
            try:
                self.reporter.begin(list(jobs.values()), self.workers)
                self._bake_all(missing, jobs)
            finally:
                self.reporter.end()
                self._remove_own()
            there = stage_tags()
        for stage in self.plan.finals:
            if stage.tag and stage.tag not in there.get(stage.digest, frozenset()):
                self.engine.tag(stage.digest, stage.tag)

    def _exists(self, stage: Stage, there: Mapping[str, object]) -> bool:
        return self.store.product(stage.digest) is not None if stage.kind == "build" else stage.digest in there

    @staticmethod
    def _job(stage: Stage) -> Job:
        return Job(stage.name, stage.digest, stage.images, stage.expected_s)

    # Before the work

    def _check(self) -> None:
        """Everything that would fail later for sure, told now."""
        self.engine.check()
        for program, fix in (
            ("docker", "install the docker-cli package"),
            ("setpriv", "install the util-linux package"),
        ):
            if shutil.which(program) is None:
                raise KilnError(f"{program} is not installed", where="PATH", fix=fix)
        find_packer()
        if not self._ansible.is_file():
            raise KilnError("ansible-playbook is not installed", where=str(self._ansible), fix="run make setup")
        check_room(self.plan, self.store, self.engine)

    @cached_property
    def _ansible(self) -> Path:
        return Path(sys.executable).with_name("ansible-playbook")

    @property
    def _runs(self) -> Path:
        return self.store.root / "runs"

    @property
    def _temporary(self) -> Path:
        """Outside the store: Packer's and Mitogen's sockets stand here, and their paths may have 107 characters."""
        return Path(tempfile.gettempdir()) / self.name

    def _remove_remains(self) -> None:
        roots = (self._runs, self._temporary.parent)
        folders = [path for root in roots for path in root.glob(f"{self.prefix}*") if path.name != self.name]
        removed = remove_remains(self.engine, self.prefix, folders)
        self.store.remove_stale()
        if removed:
            self.reporter.note(f"removed what an earlier bake left: {removed}")

    def _remove_own(self) -> None:
        """Ends what still runs and removes what must not outlive the bake."""
        end_processes(self.name)
        remove_containers(self.engine, self.name)
        remove_tree(self._runs / self.name)
        remove_tree(self._temporary)

    def _take_snapshot(self, missing: Iterable[Stage]) -> None:
        """Copies the files that the digests cover, and only these: what is edited during a bake waits for the next."""
        files = {name: digest for stage in missing for name, digest in stage.files.items()}
        for name, digest in files.items():
            copy = self._snapshot / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copy2(self.project.root / name, copy, follow_symlinks=False)
            except OSError as error:
                raise KilnError(f"cannot be copied ({error.strerror})", where=name, fix="run it again") from None
            if file_digest(copy) != digest:
                raise KilnError("was changed after the plan was made", where=name, fix="run it again")

    # The work

    def _bake_all(self, missing: Sequence[Stage], jobs: Mapping[str, Job]) -> None:
        waiting = {stage.digest: stage for stage in missing}
        weights = self._weights(waiting)
        running: dict[Future[None], Stage] = {}
        failure: BaseException | None = None
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while running or (waiting and failure is None):
                    ready = [] if failure else self._ready(waiting, running.values())
                    ready.sort(key=lambda stage: -weights[stage.digest])
                    for stage in ready[: self.workers - len(running)]:
                        del waiting[stage.digest]
                        running[pool.submit(self._bake_one, stage, jobs[stage.digest])] = stage
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[future]
                        failure = failure or future.exception()
            except BaseException:
                self._stop()
                raise
        if failure:
            raise failure

    @staticmethod
    def _needs(stage: Stage) -> Iterator[str]:
        if stage.parent:
            yield stage.parent
        for _, digest in stage.products:
            yield digest

    def _ready(self, waiting: Mapping[str, Stage], running: Iterable[Stage]) -> list[Stage]:
        undone = set(waiting) | {stage.digest for stage in running}
        return [stage for stage in waiting.values() if undone.isdisjoint(self._needs(stage))]

    def _weights(self, stages: Mapping[str, Stage]) -> dict[str, float]:
        """Seconds from each stage's start to the end of the longest chain on it: the longest chain goes first."""
        weights: dict[str, float] = {}
        for stage in reversed(list(stages.values())):
            after = [other.digest for other in stages.values() if stage.digest in self._needs(other)]
            weights[stage.digest] = (stage.expected_s or 1.0) + max((weights[digest] for digest in after), default=0.0)
        return weights

    def _stop(self) -> None:
        """Ends every running stage at once."""
        self._stopping.set()
        with self._guard:
            cancels = list(self._cancels.values())
        threads = [threading.Thread(target=cancel) for cancel in cancels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TERM_S + 5)

    def _bake_one(self, stage: Stage, job: Job) -> None:
        if self._stopping.is_set():
            return
        started = time.monotonic()
        short = f"{stage.name}-{stage.digest[:8]}"
        folder = self._runs / self.name / short
        folder.mkdir(parents=True)
        logs = self.store.root / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        work = Work(stage, job, folder, logs / f"{stamp}-{short}.log", f"{self.name}-{short}")
        self.reporter.started(job, work.log)
        try:
            with work.log.open("w", encoding="utf-8") as log:
                if stage.kind == "bootstrap":
                    self._bootstrap(work, log)
                else:
                    self._packer(work, log)
        except KilnError as error:
            if not self._stopping.is_set():
                self.reporter.failed(job, str(error))
            raise
        seconds = time.monotonic() - started
        write_record(self.store, stage, seconds)
        self.reporter.finished(job, seconds)

    def _environment(self, temporary: Path) -> dict[str, str]:
        """What a stage's processes get; keys, sockets and other remains go with ``temporary``."""
        temporary.mkdir(parents=True, exist_ok=True)
        return recipe.environment(os.environ, {RUN_VARIABLE: self.name}, temporary)

    def _changes(self, stage: Stage) -> list[str]:
        labels = {STAGE_LABEL: stage.name, DIGEST_LABEL: stage.digest, **stage.labels}
        if stage.tag:
            labels["org.deeplearning.revision"] = self.project.revision
        return recipe.changes(labels)

    # The bootstrap stage

    def _bootstrap(self, work: Work, log: TextIO) -> None:
        stage = work.stage
        base = bootstrap.Base.of(stage.variables)
        tar = work.folder / "root.tar"
        tarball = self.supplies.tarball(stage) if base.kind == "tarball" else None
        self.reporter.task(work.job, f"mmdebstrap {base.suite}")

        def run(command: Sequence[str], extra: Mapping[str, str]) -> int:
            return self._run(work, command, {**self._environment(work.folder / "tmp"), **extra}, log)

        try:
            bootstrap.make_root(base, self.supplies.index(stage), tar, work.folder, run, tarball=tarball)
        except KilnError as error:
            raise self._failed(work, error.what, _last_lines(work.log)) from None
        self.reporter.task(work.job, "import")
        self.engine.import_tar(tar, stage.digest, self._changes(stage))

    def _run(self, work: Work, command: Sequence[str], environment: Mapping[str, str], log: TextIO) -> int:
        """Runs a command in a process group of its own that a signal ends."""
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

        def cancel() -> None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)

        with self._cancellable(work, cancel):
            return process.wait()

    @contextmanager
    def _cancellable(self, work: Work, cancel: Callable[[], None]) -> Iterator[None]:
        with self._guard:
            self._cancels[work.stage.digest] = cancel
        if self._stopping.is_set():
            cancel()
        try:
            yield
        finally:
            with self._guard:
                del self._cancels[work.stage.digest]

    # Stages made by Packer

    def _packer(self, work: Work, log: TextIO) -> None:
        stage = work.stage
        with ExitStack() as stack:
            proxies: dict[str, str] = {}
            if stage.serve:
                hosts = self.supplies.served(stage)
                proxy = stack.enter_context(serving(self.engine.gateway(), hosts))
                proxies = dict.fromkeys(hosts, proxy)
            mounts = self.supplies.mounts(stage, work.folder, proxies, stack)
            out: Path | None = None
            if stage.kind == "build":
                out = self.store.new_product()
                stack.callback(remove_tree, out)
                mounts.append((str(out), "/run/kiln/out", "rw"))
            self._build(work, mounts, log)
            if out is not None:
                self.store.keep_product(out, stage.digest)
        if stage.kind != "build" and not self.engine.image_exists(stage.digest):
            raise self._failed(work, "Packer ended well, yet there is no image", [])

    def _build(self, work: Work, mounts: list[Mount], log: TextIO) -> None:
        stage = work.stage
        strategy = mitogen_strategy()
        variables = work.folder / "variables.json"
        entry = connection(work.container, stage.interpreter, mitogen=strategy is not None)
        variables.write_text(json.dumps(stage.variables | entry, indent=1), encoding="utf-8")
        templates = work.folder / "packer"
        templates.mkdir()
        build = Build(
            parent=f"{STAGES}:{stage.parent}",
            container=work.container,
            mounts=mounts,
            playbook=str(self._snapshot / self.project.relative(stage.playbook)),
            variables=str(variables),
            ansible_playbook=str(self._ansible),
            commit="" if stage.kind == "build" else self._commit(work),
        )
        written = render_templates(self._snapshot / "templates", templates, build, packer_version(self.store))
        events = Events(work.folder / "events.jsonl")
        temporary = self._temporary / stage.digest[:8]
        environment = self._environment(temporary) | {
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CONFIG": str(self._snapshot / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(temporary),
            "ANSIBLE_HOME": str(work.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "CHECKPOINT_DISABLE": "1",
            "KILN_EVENTS": str(events.path),
            "PACKER_CACHE_DIR": str(work.folder / "cache"),
            "PACKER_LOG": "",
            "PACKER_TMP_DIR": str(temporary),
        }
        if strategy:
            environment |= {"ANSIBLE_STRATEGY": "mitogen_linear", "ANSIBLE_STRATEGY_PLUGINS": str(strategy)}

        def follow() -> None:
            events.follow(lambda task: self.reporter.task(work.job, task))

        packer = Packer(find_packer(), environment, work.folder, log, follow)
        with self._cancellable(work, packer.cancel):
            if len(written) > 1:  # what its own binary lacks; does nothing where the plugins are installed
                code, _, _ = packer.execute_cmd("init", str(templates))
                if code:
                    words = packer.errors[-3:] or _last_lines(work.log)
                    raise self._failed(work, f"packer init ended with code {code}", words)
            code, _, _ = packer.build(str(templates), color="false")
        follow()
        self._judge(work, packer, code, events)

    def _commit(self, work: Work) -> str:
        changes = [argument for change in self._changes(work.stage) for argument in ("--change", change)]
        return shlex.join(["docker", "commit", "--pause=false", *changes, work.container, work.stage.reference])

    def _judge(self, work: Work, packer: Packer, code: int, events: Events) -> None:
        """Raises StageError, with the words of whoever failed, unless the stage is done."""
        # Packer's word alone is not enough: killed at the right moment it ends with 0.
        if code == 0 and events.played:
            return
        if events.failed_task and not events.played:
            raise self._failed(work, f"task “{events.failed_task}” failed", events.words(LAST_LINES))
        words = [error for error in packer.errors if "use_proxy is false" not in error]
        raise self._failed(work, f"Packer ended with code {code}", words[-3:] or _last_lines(work.log))

    def _failed(self, work: Work, what: str, words: Sequence[str]) -> StageError:
        # A file is named where a person edits it.
        lines = [line.replace(str(self._snapshot), str(self.project.root)) for line in words]
        text = "".join(f"\n    {line}" for line in lines)
        return StageError(
            f"stage {work.stage.name}: {what}{text}\n  log: {work.log}",
            fix=way_out(words),
        )


def way_out(words: Sequence[str]) -> str:
    """What helps against a stage's failure, by the ``words`` that it ended with."""
    text = "\n".join(words)
    if "No space left on device" in text:
        return "make room on the disk, then run it again"
    if re.search(r"Failed to fetch \S+\s+404 ", text):
        return "the mirror no longer has what this machine's apt index names: run kiln bake --refresh"
    return "run it again to continue at this stage"


def _last_lines(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-LAST_LINES:]
