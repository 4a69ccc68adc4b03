"""The pytest plugin: the fixtures `guarded_run` and `guarded_clock`, and the ini option `agentguard_outside`.

Cassettes, which record a test's run and replay it, are in `agentguard.testing.replaying`.

refuse   (default) a guarded step outside a run raises, as in production
allow    it is the bare function there
run      every test is inside a run of its own, that of `guarded_run`
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import pytest

from agentguard.errors import RunStopped
from agentguard.guard import Guard
from agentguard.run import Run
from agentguard.testing.fakes import FakeClock, FakeIds
from agentguard.testing.outside import allow_outside

#: Cassettes are a plugin of their own, which comes with this one.
pytest_plugins = ("agentguard.testing.replaying",)

OPTION: Final = "agentguard_outside"
MODES: Final = ("refuse", "allow", "run")

_allowed = pytest.StashKey[contextlib.ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    said = "what a guarded step does outside a run: refuse (default), allow, or run (each test is in a run)"
    parser.addini(OPTION, said, default="refuse")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and allow steps outside a run for the whole session if that was asked for."""
    pytest.register_assert_rewrite("agentguard.testing.conformance")
    config.addinivalue_line(
        "markers", "guarded_run(**options): the options of `guard.run` for the fixture `guarded_run`"
    )
    mode = config.getini(OPTION)
    if mode not in MODES:
        raise pytest.UsageError(f"{OPTION} must be one of {', '.join(MODES)}, not {mode!r}")
    stack = config.stash[_allowed] = contextlib.ExitStack()
    if mode == "allow":
        # Here, so that the contexts of all loops and tasks are copies of this one.
        stack.enter_context(allow_outside())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the permission back."""
    config.stash.get(_allowed, contextlib.ExitStack()).close()


@pytest.fixture
def guarded_clock() -> FakeClock:
    """The clock of `guarded_run`: it stands still until the test advances it."""
    return FakeClock()


@pytest.fixture
def guarded_run(request: pytest.FixtureRequest, guarded_clock: FakeClock) -> Iterator[Run]:
    """A run that the test is in, of a guard in memory without telemetry.

    `@pytest.mark.guarded_run(budget=Budget(steps=3))` gives the options of `guard.run`.  A stop of the
    run is not raised after the test: look at `guarded_run.stop`.
    """
    marker = request.node.get_closest_marker("guarded_run")
    options: dict[str, Any] = {"name": _name(request), **(marker.kwargs if marker is not None else {})}
    with Guard.in_memory(clock=guarded_clock, ids=FakeIds(), telemetry=False) as guard:
        run = guard.run(options.pop("name"), **options)
        with contextlib.suppress(RunStopped), run:
            yield run


def _name(request: pytest.FixtureRequest) -> str:
    name: str = request.node.name
    return "".join(c if c.isprintable() else "?" for c in name)[:200]


@pytest.fixture(autouse=True)
def _agentguard_outside(request: pytest.FixtureRequest) -> None:
    if request.config.getini(OPTION) == "run":
        request.getfixturevalue("guarded_run")
