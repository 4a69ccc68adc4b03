"""Spending that a recovered log has and its program has not reached yet.

The fold of a recovered run, or of a fork, knows all that is on record from the start.  A program that
asks what is spent, or left, must hear what it heard the first time, or it would go another way.
"""

from __future__ import annotations

from agentguard.budget.account import ONE_STEP, Amounts
from agentguard.events.data import StepStarted, data_of
from agentguard.replay.tape import Call
from agentguard.runs.fold import RunFold


class NotYetReplayed:
    """Spending and reservations by the keys of scopes, the empty one for the run.  Its user holds a lock."""

    def __init__(self, fold: RunFold) -> None:
        self._fold = fold
        self._spent = {key: dict(scope.accounts[0].spent) for key, scope in fold.scopes.items()}
        self._reserved = {key: dict(scope.accounts[0].reserved) for key, scope in fold.scopes.items()}

    def of(self, scope: str) -> tuple[Amounts, Amounts] | None:
        """What of a level's spending and reservations lies ahead; None where nothing does."""
        spent, reserved = self._spent.get(scope, {}), self._reserved.get(scope, {})
        return (spent, reserved) if any(spent.values()) or any(reserved.values()) else None

    def passed(self, call: Call) -> None:
        """Count what a call and the calls inside it used: the program has made it."""
        for inner in (*call.before, *call.children):
            self.passed(inner)
        self.ended(call)

    def ended(self, call: Call) -> None:
        """Count what an ended call used."""
        if call.end is not None and call.end_data.get("body_ran") is not False:
            self._take(self._spent, call, call.end.usage or {})

    def doubted(self, call: Call, *, own: bool) -> None:
        """Count what a call without an outcome holds; a fork was charged for one not its own."""
        self._take(
            self._reserved if own else self._spent,
            call,
            data_of(call.start, StepStarted).get("reserve", ONE_STEP),
        )

    def _take(self, ahead: dict[str, Amounts], call: Call, amounts: Amounts) -> None:
        for level in self._fold.chain(call.data.get("scope", "")):
            left = ahead.get(level.key, {})
            for resource, amount in amounts.items():
                if resource in left:
                    left[resource] -= amount
