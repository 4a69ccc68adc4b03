"""What ended a run, as plain data in the log, and the error that data stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal

from agentguard._encoding import clean_text, type_name
from agentguard.errors import (
    AgentGuardError,
    BudgetExceededError,
    KillSwitchTriggeredError,
    RunStopped,
    UnknownCostError,
)
from agentguard.events.data import Termination

COMPLETED: Termination = {"type": "completed"}
_STOPS: dict[object, type[RunStopped]] = {
    cls.__name__: cls for cls in (BudgetExceededError, KillSwitchTriggeredError, UnknownCostError)
}
#: What is searched for secrets: far more than is kept, so that none is cut in two.
_SEARCHED = 20_000
_AMOUNTS = ("spent", "reserved", "requested", "limit")


def termination(error: BaseException, redact: Callable[[str], str] | None = None) -> Termination:
    """Return an error as data: type, message and facts."""
    message = _text(error)
    if redact is not None:
        message = redact(message[:_SEARCHED])
    stop = next((c for c in type(error).__mro__ if _STOPS.get(c.__name__) is c), None)
    data: Termination = {
        "type": stop.__name__ if stop else type_name(type(error)),
        "message": clean_text(message),
    }
    if isinstance(error, AgentGuardError):
        data.update({name: _plain(value) for name, value in error.facts().items()})
    return data


def stop_from(data: Mapping[str, object]) -> RunStopped | None:
    """Return the stop that a termination stands for; None if the run ended otherwise."""
    cls = _STOPS.get(data["type"])
    if cls is None:
        return None
    facts = {name: data[name] for name in cls._facts}
    if cls is BudgetExceededError and data["resource"] == "usd":
        facts |= {name: Decimal(str(data[name])) for name in _AMOUNTS}
    if cls is KillSwitchTriggeredError and data["at"]:
        facts["at"] = datetime.fromisoformat(str(data["at"]))
    return _made(cls, facts)


def _made(cls: Callable[..., RunStopped], facts: dict[str, object]) -> RunStopped:
    return cls(**facts)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        return "(its message cannot be read)"


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return clean_text(str(value))
