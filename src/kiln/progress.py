"""What a person or a program sees while stages are baked."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Job:
    """One stage that is going to be baked."""

    name: str
    digest: str
    """64 hex digits."""
    images: tuple[str, ...]
    expected_s: float | None
    """Seconds it took last time; none when it was never baked."""

    @property
    def title(self) -> str:
        """The name, and the first digits of the digest that tell two variants apart."""
        return f"{self.name} {self.digest[:8]}"


class Reporter(Protocol):
    """Receives a bake's events, from any thread."""

    def begin(self, jobs: Sequence[Job], workers: int) -> None:
        """The stages that will be baked, ``workers`` at a time."""

    def waiting(self, holder: str) -> None:
        """Another bake has the lock."""

    def note(self, text: str) -> None:
        """Something worth a line, e.g. what a dead bake left and was removed."""

    def started(self, job: Job, log: Path) -> None:
        """A stage begins; its output goes to ``log``."""

    def task(self, job: Job, task: str) -> None:
        """The stage's playbook reached a task."""

    def finished(self, job: Job, seconds: float) -> None:
        """A stage is done."""

    def failed(self, job: Job, words: str) -> None:
        """A stage failed; ``words`` tell why, the first line in short: the rest of it a person reads in the error."""

    def end(self) -> None:
        """The last call, after success, failure or a signal."""


def choose_reporter(*, as_json: bool, stream: TextIO | None = None) -> Reporter:
    """JSON lines where asked for, a live table on a terminal, plain lines elsewhere."""
    stream = stream or sys.stdout
    if as_json:
        return JsonReporter(stream)
    return LiveReporter(stream) if stream.isatty() else PlainReporter(stream)


def clock(seconds: float) -> str:
    """``75`` as ``1:15``, hours only where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Schedule:
    """How far a bake is, and how long the rest takes by earlier runs."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.workers = 1
        self.began = time.monotonic()
        self.running: dict[str, float] = {}
        self.done: set[str] = set()

    def begin(self, jobs: Sequence[Job], workers: int) -> None:
        self.jobs = {job.digest: job for job in jobs}
        self.workers = workers
        self.began = time.monotonic()

    def start(self, job: Job) -> None:
        self.running[job.digest] = time.monotonic()

    def finish(self, job: Job) -> None:
        self.running.pop(job.digest, None)
        self.done.add(job.digest)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first stage could start."""
        return time.monotonic() - self.began

    def elapsed(self, job: Job) -> float:
        """Seconds since ``job`` started."""
        return time.monotonic() - self.running.get(job.digest, time.monotonic())

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last stage is done; none while one of them was never baked before.

        The work left over all workers, or the longest stage left where that is longer: stages wait for each other, so
        this is a floor, and it is shown as "about".
        """
        left = []
        for job in self.jobs.values():
            if job.digest in self.done:
                continue
            if job.expected_s is None:
                return None
            left.append(max(job.expected_s - (self.elapsed(job) if job.digest in self.running else 0.0), 0.0))
        return max(sum(left) / self.workers, max(left, default=0.0))

    @property
    def position(self) -> str:
        """``3/17``: stages done of those to bake."""
        return f"{len(self.done)}/{len(self.jobs)}"


class PlainReporter:
    """One line per event, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.schedule = Schedule()
        self._lock = threading.Lock()

    def _line(self, text: str) -> None:
        with self._lock:
            self.stream.write(f"[{clock(self.schedule.elapsed_s):>6}] {text}\n")
            self.stream.flush()

    def begin(self, jobs: Sequence[Job], workers: int) -> None:
        self.schedule.begin(jobs, workers)
        expected = self.schedule.remaining_s
        about = f", about {clock(expected)}" if expected else ""
        self._line(f"{len(jobs)} stages to bake, {workers} at a time{about}")

    def waiting(self, holder: str) -> None:
        self._line(f"waiting for {holder}")

    def note(self, text: str) -> None:
        self._line(text)

    def started(self, job: Job, log: Path) -> None:
        self.schedule.start(job)
        expected = f", about {clock(job.expected_s)}" if job.expected_s else ""
        self._line(f"{job.title}: started{expected}, log {log}")

    def task(self, job: Job, task: str) -> None:
        self._line(f"{job.title}: {task}")

    def finished(self, job: Job, seconds: float) -> None:
        self.schedule.finish(job)
        left = self.schedule.remaining_s
        self._line(
            f"{job.title}: done in {clock(seconds)} ({self.schedule.position})"
            + (f", about {clock(left)} left" if left else "")
        )

    def failed(self, job: Job, words: str) -> None:
        self._line(f"{job.title}: failed: {words.splitlines()[0]}")

    def end(self) -> None:
        return


class JsonReporter:
    """One JSON object per line: ``event``, ``time`` (UTC), and what the event has to say."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.schedule = Schedule()
        self._lock = threading.Lock()

    def _event(self, event: str, **values: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock:
            self.stream.write(json.dumps({"event": event, "time": now, **values}) + "\n")
            self.stream.flush()

    def begin(self, jobs: Sequence[Job], workers: int) -> None:
        self.schedule.begin(jobs, workers)
        stages = [
            {"stage": job.name, "digest": job.digest, "images": list(job.images), "expected_s": job.expected_s}
            for job in jobs
        ]
        self._event("begin", stages=stages, workers=workers, remaining_s=self.schedule.remaining_s)

    def waiting(self, holder: str) -> None:
        self._event("waiting", holder=holder)

    def note(self, text: str) -> None:
        self._event("note", text=text)

    def started(self, job: Job, log: Path) -> None:
        self.schedule.start(job)
        self._event("started", stage=job.name, digest=job.digest, log=str(log), expected_s=job.expected_s)

    def task(self, job: Job, task: str) -> None:
        elapsed = round(self.schedule.elapsed(job), 1)
        self._event("task", stage=job.name, digest=job.digest, task=task, elapsed_s=elapsed)

    def finished(self, job: Job, seconds: float) -> None:
        self.schedule.finish(job)
        left = self.schedule.remaining_s
        self._event("finished", stage=job.name, digest=job.digest, seconds=round(seconds, 1), remaining_s=left)

    def failed(self, job: Job, words: str) -> None:
        self._event("failed", stage=job.name, digest=job.digest, words=words)

    def end(self) -> None:
        self._event("end", elapsed_s=round(self.schedule.elapsed_s, 1))


class LiveReporter:
    """A table that stays in place: running stages with task, elapsed and expected time; finished ones scroll above."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self.schedule = Schedule()
        self._tasks: dict[str, str] = {}
        self._logs: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._console = Console(file=stream)
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def _render(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        left = self.schedule.remaining_s
        header = f"{self.schedule.position} stages, {clock(self.schedule.elapsed_s)} elapsed"
        if left is not None:
            header += f", about {clock(left)} left"
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        table.add_row(Text("bake", style="bold"), "", Text(header, style="bold"))
        with self._lock:
            running = [self.schedule.jobs[digest] for digest in self.schedule.running if digest in self.schedule.jobs]
            tasks = dict(self._tasks)
        for job in running:
            expected = f" / {clock(job.expected_s)}" if job.expected_s else ""
            took = clock(self.schedule.elapsed(job)) + expected
            table.add_row(Text(job.title, style="cyan"), took, Text(tasks.get(job.digest, "starting")))
        return table

    def begin(self, jobs: Sequence[Job], workers: int) -> None:
        with self._lock:
            self.schedule.begin(jobs, workers)
        self._live.start()

    def waiting(self, holder: str) -> None:
        self._print(f"waiting for {holder}", "yellow")

    def note(self, text: str) -> None:
        self._print(text, "dim")

    def started(self, job: Job, log: Path) -> None:
        with self._lock:
            self.schedule.start(job)
            self._logs[job.digest] = log

    def task(self, job: Job, task: str) -> None:
        with self._lock:
            self._tasks[job.digest] = task

    def finished(self, job: Job, seconds: float) -> None:
        with self._lock:
            self.schedule.finish(job)
        self._print(f"{job.title}  {clock(seconds)}", "green")

    def failed(self, job: Job, words: str) -> None:
        with self._lock:
            self.schedule.running.pop(job.digest, None)
        self._print(f"{job.title}  failed: {words.splitlines()[0]}, log {self._logs[job.digest]}", "red")

    def end(self) -> None:
        self._live.stop()

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style))
