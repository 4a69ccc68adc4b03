"""What a usage and an error become as attributes.  Pure."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Mapping
from typing import Final

from agentguard import errors
from agentguard.budget.resources import NANO, NANO_USD, SECONDS, STEPS, TOKENS
from agentguard.telemetry import attributes as a

Scalar = str | bool | int | float
Attributes = dict[str, Scalar]

DENY: Final = "deny"
SHADOW_DENY: Final = "shadow_deny"
ALLOW: Final = "allow"

_STEP_NAMES: Final = {
    NANO_USD: a.COST,
    "input_tokens": a.INPUT_TOKENS,
    "output_tokens": a.OUTPUT_TOKENS,
    "cached_tokens": a.CACHE_READ_TOKENS,
    "reasoning_tokens": a.REASONING_TOKENS,
}
_RUN_NAMES: Final = {
    NANO_USD: a.RUN_COST,
    "input_tokens": a.RUN_INPUT_TOKENS,
    "output_tokens": a.RUN_OUTPUT_TOKENS,
}

#: The first class that fits names the error.
_ERROR_TYPES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (errors.BudgetExceededError, "agentguard.budget_exceeded"),
    (errors.KillSwitchTriggeredError, "agentguard.killed"),
    (errors.ApprovalDeniedError, "agentguard.denied"),
    (errors.UnknownCostError, "agentguard.unknown_cost"),
    (TimeoutError, "timeout"),
    (asyncio.CancelledError, "cancelled"),
    (concurrent.futures.CancelledError, "cancelled"),
)
_DENY_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (errors.BudgetExceededError, "budget_exceeded"),
    (errors.KillSwitchTriggeredError, "killed"),
    (errors.ApprovalDeniedError, "denied"),
    (errors.UnknownCostError, "unknown_cost"),
    (errors.StoreUnavailableError, "store_unavailable"),
    (errors.KillSwitchUnavailableError, "kill_switch_unavailable"),
)
#: LangGraph pauses and hands over by raising these; known by name, so that nothing is imported.
_CONTROL_FLOW: Final = frozenset({"GraphBubbleUp"})


def of_usage(usage: Mapping[str, int]) -> Attributes:
    """A step's usage, from internal amounts.

    Example:
        >>> of_usage({"nano_usd": 2_000_000, "emails": 1})["agentguard.cost.amount"]
        0.002
    """
    found = _amounts(usage, _STEP_NAMES, a.USAGE_PREFIX)
    if a.COST in found:
        found[a.COST_CURRENCY] = "USD"
    return found


def of_totals(usage: Mapping[str, int], steps: int) -> Attributes:
    """A run's total usage, under names of its own."""
    return {**_amounts(usage, _RUN_NAMES, a.RUN_USAGE_PREFIX), a.RUN_STEPS: steps}


def _amounts(usage: Mapping[str, int], names: Mapping[str, str], prefix: str) -> Attributes:
    found: Attributes = {}
    for resource, amount in usage.items():
        known = names.get(resource)
        if resource == NANO_USD:
            found[names[NANO_USD]] = amount / NANO
        elif known is not None:
            found[known] = amount
        elif resource == TOKENS:
            # The parts say it already, where they are known.
            if amount != usage.get("input_tokens", 0) + usage.get("output_tokens", 0):
                found[prefix + TOKENS] = amount
        elif resource != STEPS and resource != SECONDS:
            found[prefix + resource] = amount
    return found


def of_metadata(metadata: Mapping[str, object]) -> Attributes:
    """A run's metadata: its scalars, and under their own names those the conventions know."""
    return {
        key if key.startswith("gen_ai.") else a.RUN_METADATA_PREFIX + key: value
        for key, value in metadata.items()
        if isinstance(value, Scalar)
    }


def of_refusal(error: BaseException) -> Attributes:
    """Why a step was refused, with the error's facts."""
    found: Attributes = {
        a.DECISION: DENY,
        a.DENY_REASON: deny_reason(error),
        a.ERROR_TYPE: error_type(error) or qualified_name(error),
    }
    if isinstance(error, errors.BudgetExceededError):
        found[a.BUDGET_SCOPE] = error.scope
        found[a.BUDGET_UNIT] = error.resource
        found[a.BUDGET_LIMIT] = float(error.limit)
        found[a.BUDGET_SPENT] = float(error.spent)
        found[a.BUDGET_RESERVED] = float(error.reserved)
        found[a.BUDGET_REQUESTED] = float(error.requested)
    elif isinstance(error, errors.KillSwitchTriggeredError):
        found[a.KILL_SCOPE] = error.scope
        found[a.KILL_REASON] = error.reason
    return found


def error_type(error: BaseException | None) -> str | None:
    """The value of `error.type`, or None for what is no error: control flow and early closing.

    Example:
        >>> error_type(TimeoutError()), error_type(KeyError("k")), error_type(GeneratorExit())
        ('timeout', 'KeyError', None)
    """
    if error is None or isinstance(error, GeneratorExit) or _is_control_flow(error):
        return None
    for kind, name in _ERROR_TYPES:
        if isinstance(error, kind):
            return name
    return qualified_name(error)


def deny_reason(error: BaseException) -> str:
    """Why a step was refused, from a closed list, since metrics carry it."""
    for kind, reason in _DENY_REASONS:
        if isinstance(error, kind):
            return reason
    return "other"


def qualified_name(error: BaseException) -> str:
    """The class's full name, without the module for what is built in."""
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_control_flow(error: BaseException) -> bool:
    return any(kind.__name__ in _CONTROL_FLOW for kind in type(error).__mro__)
