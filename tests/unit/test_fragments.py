"""Arguments in fragments go on record as they would whole, secrets or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agentguard import Budget, Guard
from agentguard.audit.reading import read_whole
from agentguard.fragments import JsonFragment, JsonFragments

KEY = "sk-proj-abcdefghijklmnopqrstuvwx"  # gitleaks:allow
SETTINGS = {"api_key": "k", "temperature": 0}
MESSAGES: list[Any] = [
    {"type": "human", "content": "Hi"},
    {"type": "human", "content": f"my key is {KEY}"},
    {"type": "ai", "content": "", "tool_calls": [{"name": "login", "args": {"password": "hunter2"}}]},
]
REDACTING = {
    "built in": True,
    "off": False,
    "names": ["ssn", "settings"],
    "the fragments themselves": ["messages"],
    "rule": lambda name, value: "?" if value == "Hi" else value,
}


def ask(messages: Any, tools: Any = None, settings: Any = None) -> str:
    return "answer"


def recorded(redact: Any, *calls: tuple[Sequence[Any], dict[str, Any]]) -> list[Any]:
    """What goes on record of the arguments of calls in one run."""
    with (
        Guard.in_memory(telemetry=False, redact=redact) as guard,
        guard.run("r", budget=Budget(steps=9)) as run,
    ):
        for args, kwargs in calls:
            run.apply("ask", ask, args, kwargs, kind="llm")
        payloads = [stored.payload for stored in read_whole(guard.components.store, run.id)]
    return [msgspec.json.decode(found) for found in payloads if found is not None and found[:2] == b"[["]


@pytest.mark.parametrize("redact", REDACTING.values(), ids=REDACTING)
@pytest.mark.parametrize("named", [False, True])
def test_pieces_go_on_record_as_the_whole_would(redact: Any, named: bool) -> None:
    def call(messages: Any, tools: Any) -> tuple[Sequence[Any], dict[str, Any]]:
        values = {"messages": messages, "tools": tools, "settings": SETTINGS}
        return ((), values) if named else (list(values.values()), {})

    fragments = JsonFragments(map(JsonFragment, MESSAGES))
    tools = ["search", "Hi"]
    whole, *others = recorded(
        redact,
        call(MESSAGES, tools),
        call(fragments, JsonFragment(tools)),
        call(fragments, tools),
        call(fragments, tools),
    )
    assert others == [whole] * 3
    assert (KEY in str(whole)) == (redact is False)


def test_a_piece_that_runs_share_is_searched_by_the_redactor_of_each() -> None:
    fragments = JsonFragments([JsonFragment({"ssn": "078-05-1120"})])
    for _ in range(2):
        assert "1120" in str(recorded(True, ([fragments], {})))
        assert "1120" not in str(recorded(["ssn"], ([fragments], {})))


def test_each_call_has_its_own_conversation_on_record() -> None:
    """Whether it grows, is cut, or is another one."""
    fragments = list(map(JsonFragment, range(6)))
    asked = [[0], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1], [], [4, 1, 2, 3], [0, 1, 2, 3, 5]]
    calls: list[tuple[Sequence[Any], dict[str, Any]]] = [
        ([JsonFragments(fragments[number] for number in numbers)], {}) for numbers in asked
    ]
    assert [args[0] for args, _ in recorded(True, *calls)] == asked
