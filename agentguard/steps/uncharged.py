"""Limits that nothing was charged to: most likely a misspelt name, or money that nobody counts."""

from __future__ import annotations

from collections.abc import Iterator

from agentguard.budget import resources as r
from agentguard.events.data import BudgetWarning
from agentguard.runs.fold import RunFold


def uncharged(fold: RunFold) -> Iterator[BudgetWarning]:
    """Yield a budget warning for each limit of the run and its scopes that no step has charged.

    A run without any step says nothing of its limits, nor does a limit of 0, which forbids.
    """
    if not fold.account.spent:
        return
    for level in fold.scopes.values():
        account = level.accounts[0]
        for name, limit in account.untouched():
            yield {
                "level": level.key,
                "path": account.path,
                "resource": r.public_name(name),
                "used": str(r.public_amount(name, 0)),
                "limit": str(r.public_amount(name, limit)),
                "uncharged": True,
            }
