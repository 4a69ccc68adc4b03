"""Consoles for tests: one in this process over a guard in memory, or one in a process beside its agents."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from agentguard import Guard
from agentguard.console.app import create_app
from agentguard.console.tokens import Role, Tokens
from tests.kit import wait_until
from tests.servers import free_port

#: Runs a program of `console_agents.py`: its name, then what it is given.
AGENTS = Path(__file__).parent / "integration" / "console_agents.py"


class Site:
    """A console over a guard in memory, spoken to as a browser and as a program do."""

    def __init__(self, folder: Path, *, hide_payloads: bool = False) -> None:
        self.guard = Guard.in_memory(telemetry=False)
        self.tokens = Tokens(folder / "tokens.json")
        self.app = create_app(self.guard, self.tokens, hide_payloads=hide_payloads)

    def token(self, role: Role, tenant: str | None = None) -> str:
        return self.tokens.add(f"{role.name.lower()}-{tenant or 'all'}", role, tenant=tenant)

    def client(self, secret: str | None = None) -> Client:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        return Client(self.app, headers)

    def browser(self, role: Role = Role.OPERATOR, tenant: str | None = None) -> Client:
        client = self.client()
        answer = client.log_in(self.token(role, tenant))
        assert answer.status_code == 303
        return client


class Client:
    """A synchronous client of an ASGI application, with the cookies of one browser."""

    def __init__(self, app: object, headers: dict[str, str]) -> None:
        from starlette.testclient import TestClient

        self.http = TestClient(app, headers=headers, follow_redirects=False, raise_server_exceptions=True)  # type: ignore[arg-type]

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path)

    def csrf(self, path: str) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', self.get(path).text)
        assert found is not None
        return found[1]

    def post(self, path: str, *, csrf: str | None = None, **fields: str) -> httpx.Response:
        token = self.csrf("/") if csrf is None else csrf
        return self.http.post(path, data={"csrf": token, **fields})

    def log_in(self, secret: str) -> httpx.Response:
        return self.post("/login", csrf=self.csrf("/login"), token=secret)


class Served(NamedTuple):
    """A console, a token for it, and what starts agents beside it."""

    url: str
    token: str
    agent: Callable[..., subprocess.Popen[str]]

    def client(self) -> httpx.Client:
        """Return a client that sends the token."""
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.token}"}, timeout=60)


@contextmanager
def serving(home: Path, *options: str) -> Iterator[Served]:
    """Serve a console over a home in a process, and end it and all agents that were started.

    `options` are those of `agentguard serve`.
    """
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
        start("-m", "agentguard.cli", "serve", "--port", str(port), *options)
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
