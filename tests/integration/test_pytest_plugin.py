"""The pytest plugin, in pytest processes of its own, as its users run it."""

from __future__ import annotations

import pytest

from agentguard.testing.conformance import KillSwitchContract

pytest_plugins = ["pytester"]

STEPS = """
import asyncio
import pytest
from agentguard import Budget, BudgetExceededError, NoActiveRunError, current_run, guarded_step

@guarded_step
def double(number):
    return 2 * number

@guarded_step
async def double_later(number):
    return 2 * number
"""


def outcomes(pytester: pytest.Pytester, tests: str, ini: str = "", *args: str) -> dict[str, int]:
    """What a fresh pytest says of a file of tests."""
    pytester.makepyfile(STEPS + tests)
    pytester.makeini(f"[pytest]\nfilterwarnings = error\n{ini}")
    result = pytester.runpytest_subprocess(
        "-p", "no:langsmith_plugin", "-p", "no:xdist", "--strict-markers", *args
    )
    return result.parseoutcomes()


REFUSED = """
def test_refused():
    with pytest.raises(NoActiveRunError):
        double(1)
    with pytest.raises(NoActiveRunError):
        asyncio.run(double_later(1))
"""
GUARDED_RUN = """
def test_it_is_in_memory_with_a_clock_that_stands_still(guarded_run, guarded_clock):
    assert guarded_run.name == "test_it_is_in_memory_with_a_clock_that_stands_still"
    assert guarded_run.id == "run-1"
    double(1)
    assert guarded_run.spent.steps == 1
    assert guarded_run.live_run.store.url == "memory://"
    before = guarded_run.now()
    guarded_clock.advance(60)
    assert (guarded_run.now() - before).total_seconds() == 60

@pytest.mark.guarded_run(name="mine", budget=Budget(steps=1), tenant="acme")
def test_a_marker_gives_its_options_and_its_stop_is_no_error_of_the_test(guarded_run):
    assert (guarded_run.name, guarded_run.tenant) == ("mine", "acme")
    double(1)
    with pytest.raises(BudgetExceededError):
        double(2)
    assert guarded_run.stop.resource == "steps"

@pytest.mark.parametrize("value", ["x" * 300, "a\\nb\\x07", "é"])
def test_a_name_with_anything_in_it_will_do(guarded_run, value):
    assert double(1) == 2

def test_that_fails(guarded_run):
    assert double(1) == 3

def test_nothing_is_left_of_it():
    assert current_run() is None
"""


def test_pytest_finds_the_plugin_by_itself_and_steps_outside_a_run_refuse(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no environment variable relaxes that."""
    for name in ("AGENTGUARD_OUTSIDE", "agentguard_outside", "AGENTGUARD_ALLOW_OUTSIDE"):
        monkeypatch.setenv(name, "allow")
    assert outcomes(pytester, GUARDED_RUN + REFUSED) == {"passed": 7, "failed": 1}


def test_refuse_can_be_said(pytester: pytest.Pytester) -> None:
    assert outcomes(pytester, REFUSED, "agentguard_outside = refuse") == {"passed": 1}


def test_allow_lets_steps_be_the_bare_functions(pytester: pytest.Pytester) -> None:
    tests = """
def test_allowed():
    assert double(21) == 42
    assert asyncio.run(double_later(21)) == 42
    assert current_run() is None

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_allowed_in_an_async_test(anyio_backend):
    assert await double_later(21) == 42
"""
    assert outcomes(pytester, tests, "agentguard_outside = allow") == {"passed": 2}


def test_run_puts_every_test_into_a_run_of_its_own(pytester: pytest.Pytester) -> None:
    tests = """
seen = []

@pytest.mark.parametrize("number", [1, 2])
def test_in_a_run(number):
    assert double(number) == 2 * number
    run = current_run()
    assert run.spent.steps == 1
    assert run not in seen
    seen.append(run)

def test_it_is_that_of_the_fixture(guarded_run):
    assert guarded_run is current_run()

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_in_an_async_test(anyio_backend):
    assert await double_later(21) == 42
    assert current_run().spent.steps == 1
"""
    assert outcomes(pytester, tests, "agentguard_outside = run") == {"passed": 4}


def test_a_wrong_mode_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nagentguard_outside = sometimes")
    result = pytester.runpytest_subprocess("-p", "no:langsmith_plugin")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*agentguard_outside must be one of refuse, allow, run, not 'sometimes'*"])


def test_another_authors_backend_runs_the_suites(pytester: pytest.Pytester) -> None:
    """A store that breaks its contract in one place fails there, with pytest's own explanation."""
    pytester.makepyfile("""
import pytest
from agentguard.killswitch.memory import MemoryKillSwitch
from agentguard.stores.memory import MemoryEventStore
from agentguard.testing.conformance import EventStoreContract, KillSwitchContract

class Forgetful(MemoryEventStore):
    def children(self, run_id):
        return super().children(run_id)[:1]

class Stores:
    @pytest.fixture
    def store(self):
        store = Forgetful()
        yield store
        store.close()

class TestStore(Stores, EventStoreContract):
    pass

class TestSwitch(KillSwitchContract):
    @pytest.fixture
    def switch(self, clock):
        switch = MemoryKillSwitch(clock)
        yield switch
        switch.close()

class TestNothing(KillSwitchContract):
    pass
""")
    result = pytester.runpytest_subprocess("-p", "no:langsmith_plugin", "-p", "no:xdist", "-q")
    result.stdout.fnmatch_lines(
        [
            "*NotImplementedError: override this fixture: yield your KillSwitch*",
            "*test_children_are_those_of_the_run_the_oldest_first*",
            "*assert [[]'b'[]] == [[]'b', 'd'[]]*",
        ]
    )
    counted = result.parseoutcomes()
    of_the_switch = sum(name.startswith("test_") for name in dir(KillSwitchContract))
    assert (counted["failed"], counted["errors"]) == (1, of_the_switch)
    assert of_the_switch > 10
    assert counted["passed"] > 60
