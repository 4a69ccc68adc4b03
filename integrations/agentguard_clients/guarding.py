"""How the requests of a client are guarded: which of them, in which run, and at which prices."""

from __future__ import annotations

import functools
from types import EllipsisType
from typing import Any, NoReturn

from agentguard import NoActiveRunError, ReplayDivergenceError, Run, UnknownCostError, Usage, current_run
from agentguard.cost import Bound, ModelCosts, ModelPrices, ModelRequest, ModelUsage, model_usage
from agentguard.cost.usage import USUAL_OUTPUT, Unpriced
from agentguard.protocols import PriceBook
from agentguard.steps.current import outside_allowed
from agentguard_clients.endpoints import Body, Endpoint, Provider

#: What a provider's own template adds to a prompt, on the high side.
_TEMPLATE_TOKENS = 16
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
        provider: who serves the models, for the price book; None goes by a model's name, and by default
            the address of each request says it.
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
        provider: str | EllipsisType | None = ...,
    ) -> None:
        if outside not in {"refuse", "allow"}:
            raise ValueError(f"outside must be 'refuse' or 'allow', not {outside!r}")
        self.api = api
        self._provider = provider
        self._run = run
        self._outside = outside
        #: Sent with calls that name no bound of their answer.
        self.max_output_tokens = max_output_tokens
        self._costs = ModelCosts(
            prices or ModelPrices(), unpriced=unpriced, max_output_tokens=max_output_tokens, clamp=clamp
        )

    # --- which requests ------------------------------------------------------------------------

    def is_free(self, request: Any) -> bool:
        """Return whether a request costs nothing, and is no step."""
        return request.method != "POST" or bool(self.api.free.search(request.url.path))

    def run_of(self, request: Any) -> Run | None:
        """Return the run that a request belongs to; None for one that is not guarded.

        Raises:
            RunStopped: the run is stopped, and takes no request of any kind.
            NoActiveRunError: no run is active here.
        """
        run = self._run or current_run()
        if self.is_free(request):
            if run is not None:
                run.check()
        elif run is None:
            self._check_outside(f"POST {request.url.path}")
        return run

    def _check_outside(self, what: str) -> None:
        if self._outside != "allow" and not outside_allowed():
            raise NoActiveRunError(
                f"the client is guarded and no run is active here ({what}): call it inside `with "
                "guard.run(...)`, or give the run: guard_client(client, run=run)"
            )

    # --- what they cost ------------------------------------------------------------------------

    def served_by(self, host: str) -> str | None:
        """Return who serves the models at an address, in the words of the price book."""
        return self.api.served_by(host) if isinstance(self._provider, EllipsisType) else self._provider

    def unknown(self, run: Run, what: str) -> Usage | UnknownCostError:
        """Return what to reserve for what nobody knows the costs of, as `POST /images`."""
        if self._costs.unpriced == "allow" or not run.limits(*_MODEL_RESOURCES):
            return Usage(usd=0)
        detail = (
            f"what {what} costs is not known: make it with the bare client inside a guarded_step with "
            "usage=, or pass unpriced='allow' to guard_client"
        )
        return UnknownCostError(what.rpartition(" ")[2], ("usd",), run.id, detail)

    def check_socket(self, name: str) -> None:
        """Refuse a web socket where a run limits what it may cost: nothing here sees what goes over it.

        Raises:
            UnknownCostError: the run limits money or tokens; it is stopped.
            ReplayDivergenceError: this is a replay.
            RunStopped: the run is stopped.
            NoActiveRunError: no run is active here.
        """
        run = self._run or current_run()
        if run is None:
            self._check_outside(name)
            return
        run.check()
        if run.replayed:
            raise ReplayDivergenceError(
                "not_replayable", None, expected=f"{name}: a web socket; open and read it in a guarded_step"
            )
        reserved = self.unknown(run, f"the web socket {name}")
        if isinstance(reserved, UnknownCostError):
            run.apply(name, _nothing, kind="llm", reserve=functools.partial(_refuse, reserved))

    def bound(self, run: Run, endpoint: Endpoint, url: Any, body: Body) -> Bound:
        """Return what a call may use, and the bound to send, of all its answers.

        Raises:
            UnknownCostError: nobody knows what the model costs, and money is limited.
        """
        request, model = ModelRequest((), body), endpoint.model(url.path, body)
        unbounded = endpoint.tells_later(body) and request.max_tokens is None
        if unbounded and self._costs.unpriced == "refuse" and run.limits(*_MODEL_RESOURCES):
            field = endpoint.bounds[0]
            detail = f"what it uses in the background is not told here: name {field}, which is charged"
            raise UnknownCostError(model, ("usd",), run.id, detail)
        most = request.max_tokens
        if most is None and request.answers > 1:
            most = USUAL_OUTPUT * request.answers
        return self._costs.bound(
            run,
            model,
            input_tokens=request.input_tokens + _TEMPLATE_TOKENS,
            max_tokens=most if endpoint.bounds else 0,
            provider=self.served_by(url.host),
            terms=self.api.terms(url.host) | request.terms,
            cache_writes=request.cache_writes,
            spoken=request.spoken,
            hosted=request.hosted,
            least_output=endpoint.least_output(body) * request.answers,
        )

    def counted(self, told: Any, host: str) -> ModelUsage | None:
        """Return what an answer, or an event of one, says of its usage; None where that cannot be right."""
        by = self.served_by(host) or self.api.name  # whoever serves it
        try:
            return model_usage(told, provider=by, terms=self.api.terms(host))
        except (TypeError, ValueError):
            return None

    def used(self, model: str, counted: ModelUsage, host: str) -> Usage:
        """Return what a call has used, and what that costs."""
        return self._costs.priced(model, counted, provider=self.served_by(host))


def _nothing() -> None:
    """Stand for what is refused."""


def _refuse(error: UnknownCostError) -> NoReturn:
    raise error
