"""A login shell on a terminal, typed into as a person does."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

LOGIN_S = 30
"""For a login on a busy machine; one takes less than a second."""

STOP_S = 2
"""Between two presses of Ctrl-C: Jupyter asks at the first one and ends at the second."""

SIZE = (50, 2000)
"""Rows and columns: so wide that no typed line is folded."""

_STATUS = "\\033]1337;kiln=%s\\007"
"""What the shell prints before each prompt: a control sequence that terminals do not show, with the exit code."""

_PROMPT = re.compile(r"\x1b\]1337;kiln=(\d+)\x07([^\n]*?[$#] )")
_CONTROL = re.compile(r"\x1b\[\?2004l\r?|\x1b\][^\x07]*\x07|\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[=>]|\x07")


@dataclass(frozen=True)
class Answer:
    """What a typed line brought."""

    output: str
    code: int | None = None
    """Exit code; none when the command did not end."""
    prompt: str = ""
    """The prompt after it."""


class Terminal:
    """A program on a terminal of its own, and all that it printed."""

    def __init__(self, command: Sequence[str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
        try:
            # In a session of its own Ctrl-C does not reach it: whoever opened it closes it.
            self.process = subprocess.Popen(["setsid", "--ctty", *command], stdin=slave, stdout=slave, stderr=slave)
        finally:
            os.close(slave)
        self.text = ""
        self.ended = False
        self._changed = threading.Condition()
        # Read all the time: a program whose output nobody takes stands still.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: the other side is closed
                data = b""
            with self._changed:
                self.text += decoder.decode(data)
                self.ended = not data
                self._changed.notify_all()
            if not data:
                return

    def send(self, text: str) -> int:
        """Types ``text``; returns how much was printed before."""
        with self._changed:
            start = len(self.text)
        os.write(self._master, text.encode())
        return start

    def await_(self, pattern: re.Pattern[str], start: int, seconds: float) -> re.Match[str] | None:
        """The first match in what is printed from ``start`` on, or none within ``seconds`` or before the end."""
        ends = time.monotonic() + seconds
        with self._changed:
            while (found := pattern.search(self.text, start)) is None:
                left = ends - time.monotonic()
                if left <= 0 or self.ended:
                    return None
                self._changed.wait(left)
            return found

    def close(self) -> None:
        """Hangs up."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)  # a shell at its prompt heeds no SIGTERM
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        os.close(self._master)


class Shell:
    """A login shell; ``command`` logs in, ``password`` is typed when it is asked for."""

    def __init__(self, command: Sequence[str], password: str = "") -> None:
        self.terminal = Terminal(command)
        self._start = 0
        self.in_ = self._log_in(password)

    def _log_in(self, password: str) -> bool:
        terminal = self.terminal
        if password:
            asked = terminal.await_(re.compile(r"assword: *"), 0, LOGIN_S)
            if asked is None:
                return False
            terminal.send(f"{password}\n")
        if terminal.await_(re.compile(r"[$#] (?:\x1b\[[0-9;?]*[a-z])*$"), 0, LOGIN_S) is None:
            return False
        # With a space in front the line does not enter the history.
        return self.run(f" export PROMPT_COMMAND='printf \"{_STATUS}\" $?'", LOGIN_S).code == 0

    @property
    def said(self) -> str:
        """All that was printed, as a person saw it."""
        return _seen(self.terminal.text)

    def begin(self, line: str) -> None:
        """Types a line and Enter."""
        self._start = self.terminal.send(f"{line}\n")

    def output(self) -> str:
        """What the line that was typed last has printed so far."""
        return _seen(self.terminal.text[self._start :]).partition("\n")[2]

    def await_output(self, pattern: re.Pattern[str], seconds: float) -> re.Match[str] | None:
        """Returns once the running line has printed ``pattern``; none when it ended or ``seconds`` passed before."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if found := pattern.search(self.output()):
                return found
            if _PROMPT.search(self.terminal.text, self._start) or self.terminal.ended:
                return pattern.search(self.output())
            time.sleep(0.1)
        return None

    def end(self, seconds: float) -> Answer:
        """Waits until the line that was typed last ends."""
        found = self.terminal.await_(_PROMPT, self._start, seconds)
        if found is None:
            return Answer(self.output())
        text = _seen(self.terminal.text[self._start : found.start()])
        return Answer(text.partition("\n")[2], int(found[1]), _seen(found[2]))

    def run(self, line: str, seconds: float) -> Answer:
        """Types a line and waits until it ends."""
        self.begin(line)
        return self.end(seconds)

    def interrupt(self) -> bool:
        """Presses Ctrl-C, more than once if need be; whether the prompt is back."""
        for _ in range(5):
            self.terminal.send("\x03")
            if self.end(STOP_S).code is not None:
                return True
        return False

    def close(self) -> None:
        self.terminal.close()


def _seen(text: str) -> str:
    """``text`` without control sequences; a line that was written over is several lines."""
    return _CONTROL.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
