"""`agentguard.__all__` is the contract's list, and each name is where it says it is."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys

import pytest

import agentguard

#: DESIGN.md, section 3.
CONTRACT = {
    "Guard",
    "Run",
    "RunState",
    "RunSummary",
    "Scope",
    "Step",
    "Event",
    "Budget",
    "Usage",
    "VerifyReport",
    "guarded_step",
    "current_run",
    "current_step",
    "AgentGuardError",
    "RunStopped",
    "BudgetExceededError",
    "KillSwitchTriggeredError",
    "UnknownCostError",
    "ApprovalDeniedError",
    "InvalidStateTransitionError",
    "NoActiveRunError",
    "RunExistsError",
    "ReplayDivergenceError",
    "StepOutcomeUnknownError",
    "LogIntegrityError",
    "StoreUnavailableError",
    "KillSwitchUnavailableError",
}


def test_all_is_the_contracts_list():
    assert set(agentguard.__all__) == CONTRACT
    assert list(agentguard.__all__) == sorted(agentguard.__all__)


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_every_name_is_there_and_documented(name):
    exported = getattr(agentguard, name)
    assert inspect.getdoc(exported)
    home = importlib.import_module(exported.__module__)
    assert getattr(home, exported.__name__) is exported


def test_nothing_else_is_public_by_accident():
    """What stands in the namespace besides is a submodule."""
    for name, value in vars(agentguard).items():
        if not name.startswith("_") and name not in CONTRACT:
            assert inspect.ismodule(value), name


def test_importing_it_brings_in_no_backend_and_no_extra():
    """A missing extra never breaks the core, and importing touches nothing."""
    program = (
        "import sys; from agentguard import *; "
        "heavy = {'sqlite3', 'opentelemetry.sdk', 'typer', 'rich', 'redis', 'psycopg', 'langchain_core', 'pytest'}; "
        "loaded = heavy & set(sys.modules); assert not loaded, loaded; "
        "backends = [m for m in sys.modules if m.startswith(('agentguard.stores.', 'agentguard.killswitch.page'))]; "
        "assert not backends, backends"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
    )
    assert ran.returncode == 0, ran.stderr


def test_a_lazy_guard_touches_nothing(home):
    guard = agentguard.Guard.open()
    assert list(home.iterdir()) == []
    guard.close()
    assert list(home.iterdir()) == []
    with agentguard.Guard.in_memory() as memory, memory.run("r"):
        pass
    assert list(home.iterdir()) == []
