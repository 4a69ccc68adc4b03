"""For pytest: `@pytest.mark.agentguard_cassette` records a test's run once, and replays it from then on.

--agentguard-record=once   (default) record where there is no cassette, else replay
--agentguard-record=all    record again
--agentguard-record=none   replay; a test without a cassette fails: for CI

The ini option `agentguard_record` sets the default.  A cassette lies beside its test, in
`cassettes/<test file>/<test name>.jsonl`; see `agentguard.testing.cassettes` for what is in it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from agentguard.budget.model import Budget
from agentguard.errors import ReplayDivergenceError, RunStopped
from agentguard.guard import Guard
from agentguard.run import Run
from agentguard.sessions.live import LiveSession
from agentguard.sessions.options import RunOptions
from agentguard.testing import cassettes

MARKER: Final = "agentguard_cassette"
OPTION: Final = "agentguard_record"
MODES: Final = ("once", "all", "none")
_LONGEST: Final = 120

_cassette = pytest.StashKey["Cassette"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option, and its ini form."""
    said = "cassettes: once (default: record what is missing), all (record again), none (only replay)"
    parser.getgroup("agentguard").addoption("--agentguard-record", choices=MODES, dest=OPTION, help=said)
    parser.addini(OPTION, said, default="once")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(name=None, redact=None, **options): record the test's run once, and replay it from then "
        "on; options are those of `guard.run`",
    )
    if (mode := _mode(config)) not in MODES:
        raise pytest.UsageError(f"{OPTION} must be one of {', '.join(MODES)}, not {mode!r}")


def _mode(config: pytest.Config) -> str:
    return str(config.getoption(OPTION) or config.getini(OPTION))


class Cassette:
    """The run of a test, recorded or replayed: what the fixture `agentguard_cassette` gives.

    `run` is the run that the test is in, `guard` the guard that runs inside it are opened with.
    """

    def __init__(self, path: Path, label: str, options: dict[str, Any], *, record: bool) -> None:
        self.path = path
        #: Whether steps run and are recorded, or are served from the file.
        self.recording = record
        self._options = options
        self.guard = Guard.in_memory(telemetry=False, redact=options.pop("redact", None))
        self.guard.runtime.adopts = True  # what the test opens with a guard of its own is in the cassette too
        self.run = self._recorded(label) if record else self._replayed()

    def _recorded(self, label: str) -> Run:
        given: dict[str, Any] = {"run_id": label, "detached": True} | self._options
        options = RunOptions(name=label, **given)
        return Run(_Recording(self.guard.runtime, options))

    def _replayed(self) -> Run:
        run_id = cassettes.read(self.path, self.guard.components.store)
        recorded = self.guard.summary(run_id).budget.to_fields()
        budget = self._options.get("budget") or Budget()
        if budget.to_fields() != recorded:
            raise ReplayDivergenceError("arguments", None, recorded, budget.to_fields())
        return self.guard.replay(run_id)

    def around(self) -> Generator[None, object, object]:
        """Run the test inside the run, and keep a recording of a test that passed."""
        self.run.__enter__()
        try:
            result = yield
        except BaseException as error:
            # A first difference that the test swallowed says more than what became of it.
            with contextlib.suppress(Exception):
                self.run.__exit__(type(error), error, error.__traceback__)
            difference = getattr(self.run.live_run.player, "divergence", None)
            if difference is not None and difference is not error:
                raise difference from error
            raise
        with contextlib.suppress(RunStopped):  # it is there to be looked at: `run.stop`
            self.run.__exit__(None, None, None)
        if self.recording:
            cassettes.write(self.guard.components.store, self.run.id, self.path)
        return result


class _Recording(LiveSession):
    """A run whose id, seed and salt follow from its cassette's name, so that they never differ."""

    def _salt(self) -> bytes:
        return cassettes.SALT

    def _seed(self) -> str:
        return sha256(self.run_id.encode()).hexdigest()[:32]


@pytest.fixture
def agentguard_cassette(request: pytest.FixtureRequest) -> Generator[Cassette, None, None]:
    """The run that the test is in, recorded once and replayed from then on.

    `@pytest.mark.agentguard_cassette(name=..., budget=...)` names the file, and gives the options of
    `guard.run`; the marker alone does too.  A stop of the run is no error of the test: look at
    `agentguard_cassette.run.stop`.
    """
    item = request.node
    path, label, options = _place(item)
    mode = _mode(request.config)
    record = mode == "all" or (mode == "once" and not path.exists())
    if not record and not path.exists():
        pytest.fail(f"there is no cassette {path}; record it with --agentguard-record=once", pytrace=False)
    try:
        cassette = Cassette(path, label, options, record=record)
    except cassettes.CassetteError as error:
        pytest.fail(f"{error}; --agentguard-record=all records it again", pytrace=False)
    item.stash[_cassette] = cassette
    with cassette.guard:
        yield cassette
    del item.stash[_cassette]


def _place(item: pytest.Item) -> tuple[Path, str, dict[str, Any]]:
    """The file of a test's cassette, what its run is called, and its options."""
    marker = item.get_closest_marker(MARKER)
    options: dict[str, Any] = dict(marker.kwargs) if marker is not None else {}
    given = options.pop("name", None) or (marker.args[0] if marker is not None and marker.args else None)
    around = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    name = _file_name(given or ".".join([*around, item.name]))
    folder = item.path.stem
    return item.path.parent / "cassettes" / folder / f"{name}.jsonl", f"{folder}/{name}", options


def _file_name(name: str) -> str:
    """A name for every file system; where it had to be changed, with a digest that tells it from others."""
    plain = re.sub(r"[^\w.\[\]=,-]+", "-", name, flags=re.ASCII).strip(".-")[:_LONGEST]
    return plain if plain == name else f"{plain}~{sha256(name.encode()).hexdigest()[:8]}"


@pytest.fixture(autouse=True)
def _agentguard_cassette_by_marker(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker(MARKER) is not None:
        request.getfixturevalue(MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test that has a cassette inside its run."""
    cassette = item.stash.get(_cassette, None)
    if cassette is None:
        return (yield)
    return (yield from cassette.around())
