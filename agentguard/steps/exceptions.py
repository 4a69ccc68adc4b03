"""Exceptions as the log keeps them, and how a replay brings them back: never by running their code."""

from __future__ import annotations

import sys
from typing import Any

from agentguard._encoding import clean_text, type_name
from agentguard.errors import AgentGuardError, RecordedError
from agentguard.runs.termination import stop_from, termination
from agentguard.steps.redaction import Redactor

_PLAIN = (str, int, float, bool, type(None))


def keep(error: BaseException, redactor: Redactor | None = None) -> dict[str, Any]:
    """An exception as data: type, message, and those arguments and attributes that are plain.

    `redactor` takes the secrets out of all of it.
    """
    if isinstance(error, AgentGuardError):
        return termination(error)
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a stranger's __str__ may raise anything
        message = "(its message cannot be read)"
    if redactor is not None:
        message = redactor.text(_head(message))
    data: dict[str, Any] = {"type": type_name(type(error)), "message": clean_text(message)}
    try:
        return data | _particulars(error, data["message"], redactor)
    except Exception:  # noqa: BLE001 - a stranger's __str__ may raise anything
        return data


def _particulars(error: BaseException, message: str, redactor: Redactor | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if error.args and all(_plain(value) for value in error.args) and error.args != (message,):
        args = [_head(value) for value in error.args]
        args = args if redactor is None else redactor.plain(args)
        found["args"] = [_clean(value) for value in args]
    facts = {k: _head(v) for k, v in vars(error).items() if _plain(v) and not k.startswith("_")}
    if facts:
        facts = facts if redactor is None else redactor.plain(facts)
        found["facts"] = {_clean(k): _clean(v) for k, v in facts.items()}
    return found


def restore(data: dict[str, Any]) -> BaseException:
    """The exception of what `keep` gave: of its own class where that is imported, else a `RecordedError`."""
    stop = stop_from(data)
    if stop is not None:
        return stop
    cls = _imported(data["type"])
    if cls is None:
        facts = {k: v for k, v in data.items() if k not in ("type", "message")}
        return RecordedError(data["type"], data["message"], data.get("facts", facts))
    args = tuple(data.get("args", (data["message"],)))
    try:
        error = cls.__new__(cls, *args)
    except Exception:  # noqa: BLE001 - a stranger's __str__ may raise anything
        return RecordedError(data["type"], data["message"], data.get("facts"))
    error.args = args
    for name, value in data.get("facts", {}).items():
        setattr(error, name, value)
    if isinstance(error, AgentGuardError):
        for name in error._facts:
            setattr(error, name, data.get(name))
    return error


def _imported(name: str) -> type[BaseException] | None:
    module_name, _, qualname = name.rpartition(".")
    module = sys.modules.get(module_name or "builtins")
    found = getattr(module, qualname, None) if module is not None else None
    if found is None and (agentguard := sys.modules.get("agentguard.errors")) is not None:
        found = getattr(agentguard, name, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _plain(value: Any) -> bool:
    return type(value) in _PLAIN and not (isinstance(value, int) and abs(value) >= 1 << 63)


def _head(value: Any) -> Any:
    """What is searched for secrets: far more than is kept, so that none is cut in two."""
    return value[:20_000] if isinstance(value, str) else value


def _clean(value: Any) -> Any:
    return clean_text(value) if isinstance(value, str) else value
