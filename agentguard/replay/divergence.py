"""The first difference between a program and its log, as a good test runner would show it."""

from __future__ import annotations

import difflib
from typing import Any

import msgspec

from agentguard._encoding import decode
from agentguard.errors import ReplayDivergenceError
from agentguard.events.model import Record

NAME = "name"
ARGUMENTS = "arguments"
MISSING = "missing"
LEFT_OVER = "left_over"
ORDER = "order"
OUTCOME = "outcome"
NOT_REPLAYABLE = "not_replayable"
#: Why a step of an attachment without a name cannot be replayed.
UNNAMED_BRANCH = "replay needs branch names: guard.attach(run_id, branch=...)"


def describe(record: Record) -> str:
    """A recorded call in one line."""
    return f"{record.kind or record.type} {record.key} (event {record.seq})"


def arguments(key: str, recorded: bytes | None, found: bytes | None) -> ReplayDivergenceError:
    """The divergence of a call that was made with other arguments."""
    error = ReplayDivergenceError(ARGUMENTS, key, _shown(recorded), _shown(found))
    if recorded is not None and found is not None:
        error.add_note(side_by_side(decode(recorded), decode(found)))
    return error


def _shown(payload: bytes | None) -> Any:
    return "(not captured)" if payload is None else decode(payload)


def side_by_side(recorded: Any, found: Any) -> str:
    """The lines that differ between two values, `-` recorded and `+` now."""
    lines = difflib.unified_diff(_lines(recorded), _lines(found), "recorded", "now", lineterm="", n=1)
    return "\n".join(lines)


def _lines(value: Any) -> list[str]:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode().splitlines()
