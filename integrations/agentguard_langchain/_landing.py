"""Ending well: when an agent had better finish, and tools that are refused with a word to the model."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from agentguard import Run, Usage
from agentguard_langchain._costs import Here

WRAP_UP = (
    "The budget of this task is nearly used up. Do not call any tool. "
    "Give your final answer now, briefly, with what you have."
)
#: A model call, a tool call and the model call that reads its result: fewer steps make no round.
_ROUND = 3
_OURS = frozenset(
    (
        "usd",
        "tokens",
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "steps",
        "seconds",
    )
)


def should_wrap_up(run: Run, name: str, *, counters: bool = True) -> bool:
    """Whether a budget here is used up to its `warn_at`, or has no room for another round of the agent.

    `counters` says whether counters of one's own matter: not those that only soft tools use.
    """
    here = Here(run)
    steps = here["steps"]
    if steps is not None and steps < _ROUND:
        return True
    if any(here[calls] == 1 for calls in ("calls:kind:llm", f"calls:{name}")):
        return True
    scope = run.here().scope
    levels: list[tuple[Any, Any, Any]] = [(run.summary().budget, run.spent, run.remaining)]
    if scope is not None:
        levels.append((scope.budget, scope.spent, scope.remaining))
    return any(_warned(*level, counters=counters) for level in levels)


def _warned(budget: Any, spent: Any, remaining: Any, *, counters: bool) -> bool:
    for limited in budget.limits:
        resource = "usd" if limited == "nano_usd" else limited
        if not (counters or resource in _OURS):
            continue
        limit = float(budget[resource])
        used = limit - remaining.seconds if resource == "seconds" else float(spent[resource])
        if used and used >= limit * budget.warn_at:
            return True
    return False


class Promise:
    """Room that a tool call was told it has, until the core has reserved it."""

    def __init__(self, limits: SoftLimits, amounts: dict[tuple[str, str], Any]) -> None:
        self._limits = limits
        self._amounts = amounts

    def keep(self) -> None:
        """The core has reserved it, or refused.  A second time does nothing."""
        amounts, self._amounts = self._amounts, {}
        if amounts:
            self._limits.promised.subtract(amounts)


class SoftLimits:
    """Whether a tool call would fit, asked before the core is: what the core refuses ends the run.

    A call that fits counts from the question until it has its reservation, so that of two calls side by
    side only one is told that the last one is its.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By run and resource.
        self.promised: Counter[tuple[str, str]] = Counter()

    def __deepcopy__(self, memo: Any) -> SoftLimits:
        return self  # copies of a middleware promise out of the same room

    def __reduce__(self) -> Any:
        return SoftLimits, ()

    def ask(self, run: Run, name: str, usage: Usage | None) -> Promise | str:
        """The promise, or the resource that has no room for the call."""
        wanted: dict[str, Any] = {f"calls:{name}": 1}
        if usage is not None:
            wanted |= {resource: usage[resource] for resource in usage}
        amounts = {}
        with self._lock:
            here = Here(run)
            for resource, amount in wanted.items():
                left = here[resource]
                if left is None:
                    continue
                if left - self.promised[run.id, resource] < amount:
                    return resource
                amounts[run.id, resource] = amount
            self.promised.update(amounts)
        return Promise(self, amounts)
