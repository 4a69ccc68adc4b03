"""The rule for what an llm step does not name: money under a limit on money, tokens under one on tokens.

Before the call it is refused.  After it, what the reservation named is charged in its place; where nothing
was reserved, the run stops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.budget import resources as r
from agentguard.budget.account import ONE_STEP, Amounts
from agentguard.errors import UnknownCostError
from agentguard.steps.spec import LLM

if TYPE_CHECKING:
    from agentguard.steps.model import Step

#: What names each resource: a part of the tokens tells of all parts, since those that are 0 are left out.
_NAMED_BY = {
    r.NANO_USD: (r.NANO_USD,),
    r.TOKENS: (r.TOKENS,),
    **dict.fromkeys(r.TOKEN_PARTS, r.TOKEN_PARTS),
}


def unknown_cost(step: Step) -> UnknownCostError | None:
    """Return why an llm step must not start: it names nothing of what is limited, and takes no overshoot."""
    if step.unpriced is not None:
        return step.unpriced
    request = step.request
    if step.spec.kind != LLM or (request.postpaid and request.reserve is ONE_STEP):
        return None
    return _error(step, _unnamed(step, request.reserve))


def charged(step: Step, usage: Amounts) -> Amounts:
    """Return what an llm step is charged that used `usage`: what that does not name, as it was reserved.

    Where it was not reserved either, the step keeps the error that is to stop the run.
    """
    if step.spec.kind != LLM:
        return usage
    unnamed, reserve = _unnamed(step, usage), step.request.reserve
    if not unnamed:
        return usage
    step.unpriced = _error(step, [name for name in unnamed if not _names(reserve, name)])
    parts = {part for name in unnamed for part in (name, *_NAMED_BY[name])}
    return {name: reserve[name] for name in parts if name in reserve} | usage


def _unnamed(step: Step, amounts: Amounts) -> list[str]:
    limited = step.live_run.levels.limited(_NAMED_BY, step.scope_key, step.account)
    return [name for name in limited if not _names(amounts, name)]


def _names(amounts: Amounts, resource: str) -> bool:
    said_none = resource != r.NANO_USD and amounts.get(r.TOKENS) == 0
    return said_none or any(name in amounts for name in _NAMED_BY[resource])


def _error(step: Step, unnamed: list[str]) -> UnknownCostError | None:
    names = [r.public_name(name) for name in unnamed]
    return UnknownCostError(step.spec.name, names, step.live_run.run_id) if names else None
