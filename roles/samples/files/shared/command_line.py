"""What all samples do at the command line: flags, progress, and one sentence where something is wrong."""

from __future__ import absolute_import, division, print_function

import argparse
import os
import sys
import threading
from contextlib import contextmanager


MOST = 10000000
"""Of anything that a flag counts: Python 2 holds a range in memory."""


class SampleError(Exception):
    """Why a sample cannot go on, in one sentence for its user."""


class Flags(argparse.ArgumentParser):
    """A parser that answers a wrong flag with one sentence."""

    def error(self, message):
        complain(message + " (see --help)")
        sys.exit(2)


def positive(text):
    """Return a whole number from 1 to MOST; argparse turns the error into a sentence."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= MOST:
        raise argparse.ArgumentTypeError("%r is not a whole number from 1 to %d" % (text, MOST))
    return number


def port_number(text):
    """Return a TCP port, 1 to 65535."""
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("%r is not a port, 1 to 65535" % text)
    return int(text)


def say(text):
    """Print a line at once, also into a pipe."""
    print(text)
    sys.stdout.flush()


def complain(text):
    """Print what is wrong on standard error."""
    sys.stdout.flush()
    sys.stderr.write("%s: %s\n" % (os.path.basename(sys.argv[0]), text))
    sys.stderr.flush()


def run(main):
    """Run a sample: exit code 1 and one sentence for a SampleError, 130 for Ctrl-C."""
    try:
        main()
    except SampleError as error:
        complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        complain("stopped")
        sys.exit(130)


def abandon(sentence):
    """End the process although a library may never return: no clean-up, exit code 1."""
    complain(sentence)
    os._exit(1)


@contextmanager
def deadline(seconds, sentence):
    """Abandon the process with the sentence unless the block ends within that many seconds."""
    timer = threading.Timer(seconds, abandon, [sentence])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
