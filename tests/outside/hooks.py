"""A pytest plugin: each test of another project runs inside a guarded run, with the guard's hooks installed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_failed: set[str] = set()
_runs: list[Any] = []
GUARDED = os.environ.get("AGENTGUARD_OUTSIDE_GUARDED") == "1"


def _install() -> None:
    """Install what hooks into a whole process, for the frameworks that are there."""
    with contextlib.suppress(ImportError):
        import agentguard_langchain

        agentguard_langchain.install()
        agentguard_langchain.GuardMiddleware()  # lets its listener into every call
    with contextlib.suppress(ImportError):
        from agentguard_openai_agents import _runner

        _runner.install()
    with contextlib.suppress(ImportError):
        from mcp.server.lowlevel import Server

        from agentguard_mcp import GuardMiddleware

        made = Server.__init__

        def guarded(self: Any, *args: Any, **options: Any) -> None:
            made(self, *args, **options)
            self.middleware.append(GuardMiddleware(lambda _: _runs[-1]))  # servers run in any task or thread

        Server.__init__ = guarded  # type: ignore[method-assign]


if GUARDED:
    _install()


@pytest.fixture(autouse=GUARDED)
def _guarded_run() -> Iterator[None]:
    from agentguard import Guard

    with Guard.in_memory() as guard, guard.run("outside") as run:
        _runs.append(run)
        yield
        _runs.pop()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what does not pass."""
    if report.failed:
        _failed.add(report.nodeid)


def pytest_sessionfinish() -> None:
    """Write it down."""
    Path(os.environ["AGENTGUARD_OUTSIDE_REPORT"]).write_text(json.dumps(sorted(_failed)))
