"""A part of a measurement in a process of its own, and what it says among whatever else is printed."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys

#: Seconds that an answer may take.
PATIENCE = 30
_MARK = "found: "


@contextlib.contextmanager
def started(*arguments):
    """Give a process of the same program, and end it afterwards with what it has started."""
    command = [sys.executable, sys.argv[0], *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, bufsize=1, start_new_session=True) as process:  # noqa: S603
        try:
            yield process
            process.stdin.close()
            process.wait(PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def say(what):
    print(f"{_MARK}{json.dumps(what)}\n", end="", flush=True)  # in one piece: threads say something, too


def heard(process):
    """Return what a process says next, or None where it has ended without a word."""
    while select.select([process.stdout], [], [], PATIENCE)[0]:
        line = process.stdout.readline()
        if not line:
            return None
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    raise TimeoutError(f"no answer in {PATIENCE} s")
