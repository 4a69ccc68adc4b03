"""How the requests of a client are guarded: which of them, in which run, and at which prices."""

from __future__ import annotations

from typing import Any

from agentguard import NoActiveRunError, Run, UnknownCostError, Usage, current_run
from agentguard.cost.prices import ModelPrices
from agentguard.cost.usage import Bound, ModelCosts, Unpriced
from agentguard.protocols import PriceBook
from agentguard.runs.current import outside_allowed
from agentguard_clients.endpoints import Asked, Body, Endpoint, Provider
from agentguard_clients.usage import tokens_of

#: What a request to an unknown model may use.
_MODEL_RESOURCES = ("usd", "tokens", "input_tokens", "output_tokens")


class Guarding:
    """How the requests of a client are guarded.

    Args:
        api: which requests call a model.
        run: the run that pays; by default the one that is active when a request is made.
        prices: what models cost; by default genai-prices.
        unpriced: `"refuse"` or `"allow"` calls without a price where USD are limited.
        max_output_tokens: sent with calls that name no bound of their answer.
        clamp: lower that bound to what the run's budget leaves.
        outside: `"refuse"` or `"allow"` requests outside a run.
        provider: who serves the models, for the price book; None goes by a model's name.
    """

    def __init__(
        self,
        api: Provider,
        *,
        run: Run | None = None,
        prices: PriceBook | None = None,
        unpriced: Unpriced = "refuse",
        max_output_tokens: int | None = None,
        clamp: bool = True,
        outside: str = "refuse",
        provider: str | None = None,
    ) -> None:
        if outside not in {"refuse", "allow"}:
            raise ValueError(f"outside must be 'refuse' or 'allow', not {outside!r}")
        self.api = api
        self._provider = provider
        self._run = run
        self._outside = outside
        self._costs, self._unclamped = (
            ModelCosts(
                prices or ModelPrices(), unpriced=unpriced, max_output_tokens=max_output_tokens, clamp=lowers
            )
            for lowers in (clamp, False)
        )

    # --- which requests ------------------------------------------------------------------------

    def paying_run(self, request: Any) -> Run | None:
        """Return the run that pays for a request; None for one that is not guarded.

        Raises:
            RunStopped: the run is stopped, and takes no request of any kind.
            NoActiveRunError: no run is active here.
        """
        run = self._run or current_run()
        path = request.url.path
        if request.method != "POST" or self.api.free.search(path):
            if run is not None:
                run.check()
            return None
        if run is None:
            self._check_outside(path)
        return run

    def _check_outside(self, path: str) -> None:
        if self._outside != "allow" and not outside_allowed():
            raise NoActiveRunError(
                f"the client is guarded and no run is active here (POST {path}): call it inside `with "
                "guard.run(...)`, or give the run: guard_client(client, run=run)"
            )

    # --- what they cost ------------------------------------------------------------------------

    def unknown(self, run: Run, path: str) -> Usage | UnknownCostError:
        """Return what to reserve for a request whose costs nobody knows."""
        if self._costs.unpriced == "allow" or not run.limits(*_MODEL_RESOURCES):
            return Usage(usd=0)
        detail = (
            f"what POST {path} costs is not known: make it with the bare client inside a guarded_step with "
            "usage=, or pass unpriced='allow' to guard_client"
        )
        return UnknownCostError(path, ("usd",), run.id, detail)

    def bound(self, run: Run, asked: Asked, input_tokens: int) -> Bound:
        """Return what a call may use, and the bound to send.

        Raises:
            UnknownCostError: nobody knows what the model costs, and money is limited.
        """
        provider = self._provider
        if not asked.has_output:
            free = self._costs.bound(
                run, asked.model, input_tokens=input_tokens, max_tokens=1, provider=provider
            )
            reserve = self._costs.priced(asked.model, Usage(input_tokens=input_tokens), provider=provider)
            return free._replace(reserve=reserve, max_tokens=None)
        most = None if asked.max_tokens is None else asked.max_tokens * asked.answers
        for costs in (self._costs, self._unclamped):
            bound = costs.bound(
                run, asked.model, input_tokens=input_tokens, max_tokens=most, provider=provider
            )
            if bound.max_tokens is None or bound.max_tokens >= asked.least_tokens * asked.answers:
                break  # else the provider would refuse the bound, and the budget refuses the call better
        return bound

    def used(self, endpoint: Endpoint, asked: Asked, answer: Body) -> Usage | None:
        """Return what an answer says that its call used, or None where it says nothing."""
        tokens = tokens_of(answer.get("usage"))
        if tokens is None:
            return None
        return self._costs.priced(asked.model, tokens, provider=self._provider, answered=answer.get("model"))
