"""A home of its own, switches on it, and other processes that take part in it."""

from __future__ import annotations

import os
import queue
import signal as signals
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import agentguard
from agentguard.killswitch.page import PageKillSwitch
from tests.kit import wait_until

DEADLINE = 60.0

PRELUDE = """
import os, sys, threading, time
from pathlib import Path
from agentguard.errors import KillSwitchUnavailableError
from agentguard.killswitch.model import GENERATION
from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.page import PageKillSwitch

switch = PageKillSwitch(Path(sys.argv[1]))

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""

JOINS = """
switch.join(lambda generation: say("told", generation))
say("ready")
sys.stdin.read()
"""


class Child:
    """A Python process, read line by line."""

    def __init__(self, program: str, home: Path, *, before: str = "") -> None:
        source = Path(agentguard.__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-c", before + PRELUDE + program, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        return self._lines.get(timeout=DEADLINE)

    def expect(self, line: str) -> None:
        assert self.line() == line

    def end(self) -> int:
        """Close its input, and give its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(DEADLINE)

    def pause(self) -> None:
        """Stop it, and return when it stands still."""
        self.process.send_signal(signals.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def dispose(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def home(home: Path) -> Path:
    """Below the test's own, and not there yet."""
    return home / "state"


@pytest.fixture
def open_switch(home: Path) -> Iterator[Callable[[], PageKillSwitch]]:
    opened: list[PageKillSwitch] = []

    def open_one() -> PageKillSwitch:
        opened.append(PageKillSwitch(home))
        return opened[-1]

    yield open_one
    for switch in opened:
        switch.close()


@pytest.fixture
def switch(open_switch: Callable[[], PageKillSwitch]) -> PageKillSwitch:
    return open_switch()


@pytest.fixture
def spawn(home: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(program: str, *, before: str = "") -> Child:
        children.append(Child(program, home, before=before))
        children[-1].expect("ready")
        return children[-1]

    yield start
    for child in children:
        child.dispose()


@pytest.fixture
def attach(spawn: Callable[..., Child]) -> Callable[[], Child]:
    """Start a process that takes part, and says what it is told."""
    return lambda: spawn(JOINS)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until a condition holds; longer than elsewhere, since other processes have to start."""
    return wait_until
