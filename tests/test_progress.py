"""What the three reporters say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from kiln.progress import (
    Job,
    JsonReporter,
    LiveReporter,
    PlainReporter,
    Reporter,
    Schedule,
    choose_reporter,
    clock,
)

BASE = Job("base", "a" * 64, ("1.2/cpu",), 60.0)
CAFFE = Job("caffe", "b" * 64, ("1.2/cpu",), 300.0)
NEW = Job("keras", "c" * 64, ("1.2/cpu",), None)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def play(reporter: Reporter) -> None:
    """A short bake: one stage well, one failed."""
    reporter.begin([BASE, CAFFE], 2)
    reporter.waiting("kiln bake of ann (process 7)")
    reporter.started(BASE, Path("/logs/base.log"))
    reporter.task(BASE, "base : Create the user")
    reporter.finished(BASE, 61.4)
    reporter.started(CAFFE, Path("/logs/caffe.log"))
    reporter.failed(CAFFE, "make: no rule\n    words of make")
    reporter.end()


def test_plain_lines_name_stage_task_log_and_time() -> None:
    stream = io.StringIO()
    play(PlainReporter(stream))
    text = stream.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert "2 stages to bake, 2 at a time, about 5:00" in lines[0]
    assert "waiting for kiln bake of ann (process 7)" in lines[1]
    assert lines[2].endswith("base aaaaaaaa: started, about 1:00, log /logs/base.log")
    assert lines[3].endswith("base aaaaaaaa: base : Create the user")
    assert "base aaaaaaaa: done in 1:01 (1/2), about 5:00 left" in lines[4]
    assert lines[6].endswith("caffe bbbbbbbb: failed: make: no rule")
    assert "words of make" not in text, "the error tells them"


def test_json_lines_are_one_object_each() -> None:
    stream = io.StringIO()
    play(JsonReporter(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == [
        "begin", "waiting", "started", "task", "finished", "started", "failed", "end",
    ]  # fmt: skip
    assert events[0]["stages"][1] == {
        "stage": "caffe", "digest": "b" * 64, "images": ["1.2/cpu"], "expected_s": 300.0,
    }  # fmt: skip
    assert events[3]["task"] == "base : Create the user"
    assert events[4]["seconds"] == 61.4
    assert events[6]["words"] == "make: no rule\n    words of make"


def test_live_table_shows_running_stage_and_task() -> None:
    stream = Terminal()
    reporter = LiveReporter(stream)
    reporter.begin([BASE, CAFFE], 2)
    reporter.started(BASE, Path("/logs/base.log"))
    reporter.task(BASE, "base : Create the user")
    reporter.started(CAFFE, Path("/logs/caffe.log"))
    reporter.finished(CAFFE, 300)
    reporter.end()
    text = stream.getvalue()
    assert "base : Create the user" in text
    assert "caffe bbbbbbbb  5:00" in text
    assert "1/2 stages" in text


def test_live_table_treats_names_as_text() -> None:
    stream = Terminal()
    reporter = LiveReporter(stream)
    reporter.begin([BASE], 1)
    reporter.started(BASE, Path("/logs/base.log"))
    reporter.task(BASE, "base : Write [sources] and [/] lists")
    reporter.failed(BASE, "[Errno 28] [/nope]\n    words of a task")
    reporter.end()
    assert "failed: [Errno 28] [/nope], log /logs/base.log" in stream.getvalue()
    assert "words of a task" not in stream.getvalue(), "the error tells them"


@pytest.mark.parametrize(
    ("stream", "as_json", "kind"),
    [
        (io.StringIO(), False, PlainReporter),
        (Terminal(), False, LiveReporter),
        (io.StringIO(), True, JsonReporter),
        (Terminal(), True, JsonReporter),
    ],
)
def test_reporter_fits_the_stream(stream: io.StringIO, as_json: bool, kind: type) -> None:
    assert isinstance(choose_reporter(as_json=as_json, stream=stream), kind)


def test_remaining_is_the_longest_stage_or_the_shared_work() -> None:
    schedule = Schedule()
    schedule.begin([BASE, CAFFE], 2)
    assert schedule.remaining_s == 300
    schedule.begin([BASE, CAFFE], 1)
    assert schedule.remaining_s == 360
    schedule.start(CAFFE)
    schedule.finish(CAFFE)
    assert schedule.remaining_s == 60
    schedule.start(BASE)
    schedule.finish(BASE)
    assert schedule.remaining_s == 0


def test_remaining_is_unknown_with_a_new_stage() -> None:
    schedule = Schedule()
    schedule.begin([BASE, NEW], 2)
    assert schedule.remaining_s is None
    schedule.start(NEW)
    schedule.finish(NEW)
    assert schedule.remaining_s == 60


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3725, "1:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
