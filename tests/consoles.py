"""A console in a process of its own, beside agents in theirs, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from agentguard.console.tokens import Role, Tokens
from tests.kit import wait_until
from tests.servers import free_port

#: Runs a program of `console_agents.py`: its name, then what it is given.
AGENTS = Path(__file__).parent / "integration" / "console_agents.py"


class Served(NamedTuple):
    """A console, a token for it, and what starts agents beside it."""

    url: str
    token: str
    agent: Callable[..., subprocess.Popen[str]]

    def client(self) -> httpx.Client:
        """Return a client that sends the token."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.token}"}, timeout=60)


@contextmanager
def serving(home: Path) -> Iterator[Served]:
    """Serve a console over a home in a process, and end it and all agents that were started."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "AGENTGUARD_HOME": str(home)}
    environment.pop("AGENTGUARD_STORE", None)

    def start(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    def agent(*arguments: str) -> subprocess.Popen[str]:
        return start(str(AGENTS), *arguments)

    token = Tokens(home / "console-tokens.json").add("on-call", Role.OPERATOR)
    port = free_port()
    try:
        line(agent("spend", "first", "quiet"))  # so that there is a store
        start("-m", "agentguard.cli", "serve", "--port", str(port))
        wait_until(lambda: _answers(port), 60)
        yield Served(f"http://127.0.0.1:{port}", token, agent)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that an agent prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
