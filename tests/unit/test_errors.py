"""The errors: the tree, the facts as attributes, the messages, and that they survive pickling."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime
from decimal import Decimal

import pytest

import agentguard
from agentguard import errors
from agentguard.steps.generator_step import GeneratorAbandonedError

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

#: Each error with its facts, and what its message must say.
CASES = [
    (
        errors.BudgetExceededError(
            "usd", Decimal("0.9"), Decimal("0.2"), Decimal("0.3"), Decimal(1), "run", "r1"
        ),
        {
            "resource": "usd",
            "spent": Decimal("0.9"),
            "reserved": Decimal("0.2"),
            "requested": Decimal("0.3"),
            "limit": Decimal(1),
            "scope": "run",
            "run_id": "r1",
        },
        ["usd", "0.9 spent", "0.2 reserved", "0.3 more", "1 allowed", "the run", "r1"],
    ),
    (
        errors.KillSwitchTriggeredError("tenant", "runaway", "ann", AT, "r1"),
        {"scope": "tenant", "reason": "runaway", "actor": "ann", "at": AT, "run_id": "r1"},
        ["tenant", "runaway", "ann", "2026-01-02T03:04:05"],
    ),
    (
        errors.UnknownCostError("ask", ["usd", "tokens"], "r1"),
        {"name": "ask", "resources": ("usd", "tokens"), "run_id": "r1", "detail": None},
        ["ask", "usd and tokens", "reserve=", "usage="],
    ),
    (
        errors.ApprovalDeniedError("main/wire#1", "too much", "ann", "r1"),
        {"key": "main/wire#1", "reason": "too much", "actor": "ann", "run_id": "r1"},
        ["main/wire#1", "too much", "ann"],
    ),
    (
        errors.LimitAskedError("main/pay#1", "pay", "usd", "0.9", 0, "0.3", 1, "r1"),
        {
            "key": "main/pay#1",
            "name": "pay",
            "resource": "usd",
            "spent": "0.9",
            "reserved": 0,
            "requested": "0.3",
            "limit": 1,
            "run_id": "r1",
        },
        ["pay", "usd", "1 allowed", "0.9 spent", "0 reserved", "0.3 more"],
    ),
    (
        errors.InvalidStateTransitionError("r1", "KILLED", "RUNNING"),
        {"run_id": "r1", "from_state": "KILLED", "to_state": "RUNNING"},
        ["r1", "KILLED", "RUNNING"],
    ),
    (errors.EventLoopUnsupportedError("ask"), {}, ["ask", "asyncio", "trio.to_thread.run_sync"]),
    (errors.RunExistsError("r1"), {"run_id": "r1"}, ["r1", "attach", "if_exists='recover'"]),
    (errors.RunNotFoundError("r1"), {"run_id": "r1"}, ["r1", "agentguard runs"]),
    (
        errors.ProgramError("pkg.mod:fn", "there is no function fn in pkg.mod"),
        {"target": "pkg.mod:fn", "problem": "there is no function fn in pkg.mod"},
        ["pkg.mod:fn: there is no function fn"],
    ),
    (errors.QueueUnavailableError("memory://"), {"store": "memory://"}, ["memory://", "postgresql://"]),
    (errors.RunGivenUpError("the customer is gone"), {}, ["the customer is gone"]),
    (errors.WorkersDiedError("r1", 5), {"run_id": "r1", "deaths": 5}, ["5 workers", "r1"]),
    (errors.DuplicateKeyError("k", "r1"), {"key": "k", "run_id": "r1"}, ["'k'", "r1", "failure"]),
    (errors.RunOwnedError("r1", "host 7"), {"run_id": "r1", "owner": "host 7"}, ["host 7", "take_over=True"]),
    (
        errors.ReplayDivergenceError("name", "main/f#1", "f", "g"),
        {"kind": "name", "key": "main/f#1", "expected": "f", "found": "g"},
        ["name", "main/f#1", "recorded: f", "now:      g"],
    ),
    (
        errors.StepOutcomeUnknownError("r1", "main/f#1"),
        {"run_id": "r1", "key": "main/f#1"},
        ["main/f#1", "guard.resolve('r1', 'main/f#1', 'retry'|'completed'|'failed')"],
    ),
    (
        errors.LogIntegrityError("r1", 7, "it was edited"),
        {"run_id": "r1", "seq": 7, "problem": "it was edited"},
        ["r1", "event 7", "it was edited"],
    ),
    (
        errors.RecordedError("shop.GoneError", "no", {"status": 503}),
        {"type_name": "shop.GoneError", "message": "no", "recorded": {"status": 503}},
        ["shop.GoneError: no"],
    ),
    (errors.NoActiveRunError(), {}, ["run.bind(fn)", "guard.run(...)", "guard.attach"]),
    (errors.EventsEvictedError("the events were evicted"), {}, ["evicted"]),
    (errors.StoreUnavailableError("disk full"), {}, ["disk full"]),
    (errors.KillSwitchUnavailableError("no page"), {}, ["no page"]),
    (errors.ControlLogDeniedError("no right"), {}, ["no right"]),
]
IDS = [type(case[0]).__name__ for case in CASES]


@pytest.mark.parametrize(("error", "facts", "words"), CASES, ids=IDS)
def test_the_facts_are_attributes(error, facts, words):
    assert {name: getattr(error, name) for name in facts} == facts
    assert error.facts() == facts


@pytest.mark.parametrize(("error", "facts", "words"), CASES, ids=IDS)
def test_the_message_says_the_values_and_the_way_out(error, facts, words):
    message = str(error)
    assert [word for word in words if word not in message] == []
    assert not message.endswith(("!", ".")) or isinstance(error, errors.NoActiveRunError)


@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize(("error", "facts", "words"), CASES, ids=IDS)
def test_errors_survive_pickling(error, facts, words, again):
    """As they must between the processes of a pool."""
    copied = again(error)
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert copied.facts() == facts


def test_every_error_is_listed_here():
    classes = {
        cls
        for cls in vars(errors).values()
        if inspect.isclass(cls) and issubclass(cls, errors.AgentGuardError)
    }
    groups = {errors.AgentGuardError, errors.RunStopped, errors.StepRefused}
    assert classes - groups == {type(case[0]) for case in CASES}


@pytest.mark.parametrize("name", sorted(agentguard.__all__))
def test_every_public_error_has_the_one_base(name):
    exported = getattr(agentguard, name)
    if inspect.isclass(exported) and issubclass(exported, BaseException):
        assert issubclass(exported, errors.AgentGuardError)


@pytest.mark.parametrize(
    ("error", "parent"),
    [
        (errors.BudgetExceededError, errors.RunStopped),
        (errors.KillSwitchTriggeredError, errors.RunStopped),
        (errors.UnknownCostError, errors.RunStopped),
        (errors.ApprovalDeniedError, errors.StepRefused),
        (errors.LimitAskedError, errors.StepRefused),
        (errors.StoreUnavailableError, errors.StepRefused),
        (errors.KillSwitchUnavailableError, errors.StepRefused),
        (errors.RunNotFoundError, LookupError),
        (GeneratorAbandonedError, errors.AgentGuardError),
        (errors.RecordedError, errors.AgentGuardError),
    ],
)
def test_the_tree(error, parent):
    assert issubclass(error, parent)
    assert not issubclass(error, errors.RunStopped) or parent is errors.RunStopped


FRAMEWORKS_OWN = (RuntimeError, ValueError, NotImplementedError, TypeError, OSError, AttributeError, KeyError)


@pytest.mark.parametrize("error", [errors.RunStopped, *errors.RunStopped.__subclasses__()])
def test_a_stop_is_an_exception_and_nothing_that_frameworks_give_a_meaning_to(error):
    assert issubclass(error, Exception)
    assert not issubclass(error, FRAMEWORKS_OWN)


def test_a_stop_knows_its_run():
    assert errors.RunStopped().run_id is None
    for error in (case[0] for case in CASES if isinstance(case[0], errors.RunStopped)):
        assert error.run_id == "r1"


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = errors.__doc__
    for cls in (type(case[0]) for case in CASES):
        assert cls.__name__ in drawn


@pytest.mark.parametrize(
    ("scope", "words"), [("run", "the run"), ("research/web", "research/web"), ("tenant:acme", "tenant:acme")]
)
def test_where_a_limit_lies(scope, words):
    assert f"limit of {words}:" in str(errors.BudgetExceededError("usd", 1, 0, 1, 1, scope))


def test_messages_without_the_optional_facts():
    assert "None" not in str(errors.BudgetExceededError("usd", 1, 0, 1, 1))
    assert str(errors.KillSwitchTriggeredError("global", "stop")) == "killed (global): stop"
    assert "no reason given" in str(errors.ApprovalDeniedError("k"))
    assert "cannot be priced" in str(errors.UnknownCostError("ask", detail="the model cannot be priced"))
