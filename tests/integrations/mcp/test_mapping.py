"""MCP's messages as agentguard's values, without a server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agentguard import BudgetExceededError, KillSwitchTriggeredError, StoreUnavailableError
from agentguard_mcp import GuardError
from agentguard_mcp import _mapping as m


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"name": "add", "arguments": {"a": 1}}, ("add", {"a": 1})),
        ({"name": "add"}, ("add", {})),
        ({"name": 3}, None),
        ({"name": "add", "arguments": [1]}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_call_is_read_from_raw_parameters(params: Any, expected: Any) -> None:
    assert m.tool_call(params) == expected


@pytest.mark.parametrize(
    ("hints", "effect"),
    [
        (None, "once"),
        ({}, "once"),
        ({"readOnlyHint": True}, "read"),
        ({"idempotentHint": True}, "idempotent"),
        ({"readOnlyHint": True, "idempotentHint": True}, "read"),
        ({"readOnlyHint": "yes", "destructiveHint": True}, "once"),
    ],
)
def test_hints_become_effects(hints: Any, effect: str) -> None:
    assert m.effects([{"name": "f", "annotations": hints}]) == {"f": effect}


def test_tools_that_are_none_have_no_effect() -> None:
    assert m.effects([{"annotations": {}}, "f", None]) == {}


@pytest.mark.parametrize(
    ("tool", "name"), [("add", "add"), ("", "tool"), ("a\nb", "a%0Ab"), ("x" * 500, "x" * 128)]
)
def test_any_tool_name_makes_a_step_name(tool: str, name: str) -> None:
    assert m.step_name(tool) == name


def test_a_branch_is_named_by_the_request() -> None:
    assert m.branch_name(7) == "request-7"
    assert m.branch_name("a/b#1") == "request-a%2Fb%231"


def test_a_stop_and_a_refusal_are_told_apart() -> None:
    stop = GuardError(BudgetExceededError("usd", 1, 0, 1, 1, run_id="r"))
    refusal = GuardError(StoreUnavailableError("the disk is full"))

    assert (stop.code, refusal.code) == (GuardError.RUN_STOPPED, GuardError.CALL_REFUSED)
    assert refusal.data == {"type": "StoreUnavailableError"}
    assert isinstance(stop.cause, BudgetExceededError)


def test_facts_are_plain_data() -> None:
    class Stranger(KillSwitchTriggeredError):
        pass

    data = m.error_data(Stranger("run", "enough", "ann", datetime(2026, 1, 1, tzinfo=UTC), "r"))

    assert data == {
        "type": "KillSwitchTriggeredError",
        "scope": "run",
        "reason": "enough",
        "actor": "ann",
        "at": "2026-01-01 00:00:00+00:00",
        "run_id": "r",
    }
