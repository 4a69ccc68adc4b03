"""Limits on the command line, for fork and what-if."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from agentguard.budget.model import Budget
from agentguard.cli import exit_codes

UsdOption = Annotated[str | None, typer.Option("--usd", metavar="USD", help="At most so much money.")]


TokensOption = Annotated[int | None, typer.Option("--tokens", metavar="N", help="At most so many tokens.")]


StepsOption = Annotated[int | None, typer.Option("--steps", metavar="N", help="At most so many steps.")]


SecondsOption = Annotated[float | None, typer.Option("--seconds", metavar="S", help="At most so long.")]


CounterOption = Annotated[
    list[str] | None,
    typer.Option("--counter", metavar="NAME=N", help="At most so many, as emails=3; may be repeated."),
]


def limits_of(
    usd: str | None, tokens: int | None, steps: int | None, seconds: float | None, counters: Sequence[str]
) -> dict[str, Any]:
    """The limits that were typed, as the fields of a Budget.

    Raises:
        UsageError: one of them cannot be a limit.
    """
    named = {"usd": usd, "tokens": tokens, "steps": steps, "seconds": seconds}
    limits: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for counter in counters:
        name, _, number = counter.partition("=")
        if not name or not number.isdigit():
            raise exit_codes.UsageError(f"--counter {counter!r} is not NAME=N, as in emails=3")
        limits[name] = int(number)
    try:
        Budget(**limits)
    except (TypeError, ValueError) as error:
        raise exit_codes.UsageError(str(error)) from error
    return limits
