"""What a model call may cost, before it is made, and what it did cost: LangChain's side of `ModelCosts`."""

from __future__ import annotations

from typing import Any, NamedTuple

from agentguard import Run, Usage
from agentguard.cost import ModelRequest, ModelUsage, RawAnswers
from agentguard.cost.hosted import offered
from agentguard.cost.prices import GENAI_PRICES
from agentguard.cost.usage import LEAST_OUTPUT, USUAL_OUTPUT, Bound, ModelCosts, Unpriced
from agentguard.protocols import PriceBook

#: A call whose length nobody has bounded may take one of this many parts of what is left, so that calls
#: side by side find room.
_SHARES = 4
_ENDLESS = 10**12
#: What a budget may limit of a model call, beside the number of calls.
_LIMITING = ("usd", "tokens", "output_tokens")


class Model(NamedTuple):
    """A model by its name and LangChain's name of its provider, and what is asked of it."""

    name: str
    provider: str | None = None
    #: What a call's settings say, in the words of the provider's API: tier, place, cache.
    asked: ModelRequest = ModelRequest((), {})

    def asked_for(self, asked: ModelRequest) -> Model:
        """Return the model with what a call asks of it."""
        return Model(self.name, self.provider, asked)


def limited(run: Run) -> bool:
    """Whether anything that a model call uses is limited here."""
    return run.limits(*_LIMITING)


class Here:
    """What is left at this place: the least of the run's own budget and of the scope's."""

    def __init__(self, run: Run) -> None:
        self.id = run.id
        self.limits = run.limits
        scope = run.here().scope
        self._rooms = [run.remaining] if scope is None else [run.remaining, scope.remaining]

    @property
    def remaining(self) -> Any:
        """What is left, by resource."""
        return self._rooms[0] if len(self._rooms) == 1 else self

    def __getitem__(self, resource: str) -> Any:
        left = [room[resource] for room in self._rooms]
        return min((amount for amount in left if amount is not None), default=None)

    def __getattr__(self, resource: str) -> Any:
        if resource.startswith("_"):
            raise AttributeError(resource)
        return self[resource]


class Costs:
    """The prices and bounds of one handler or middleware.

    `prices=None` takes those of genai-prices where money is limited, and asks for none elsewhere.
    `sends` says whether `max_tokens` can be sent with a call: then what a budget limits is bounded.
    """

    def __init__(
        self, prices: PriceBook | None, unpriced: Unpriced, max_output_tokens: int | None, *, sends: bool
    ) -> None:
        self._chosen = max_output_tokens
        self._sends = sends
        self._asks = prices is None
        books = (prices, prices) if prices is not None else (None, GENAI_PRICES)
        estimated = max_output_tokens is None and not sends
        #: By whether money is limited where the call is made: with a bound of its own, and without.
        self._bounded = [ModelCosts(book, unpriced=unpriced, clamp=sends) for book in books]
        self._open = [
            ModelCosts(book, unpriced=unpriced, max_output_tokens=max_output_tokens, clamp=estimated or sends)
            for book in books
        ]

    def bound(  # noqa: PLR0917 - the last four are one line's worth, from one place
        self,
        run: Run,
        model: Model,
        given: int,
        stated: int | None,
        profile: int | None = None,
        thinking: int = 0,
    ) -> Bound:
        """What the call may use, and the `max_tokens` to send with it.

        Args:
            run: where it is made.
            model: the model asked for.
            given: an estimate of the prompt.
            stated: the bound that the call or its model is set to.
            profile: the longest answer that the model can give.
            thinking: how many tokens of the answer are set aside to think; fewer are never sent.

        Raises:
            UnknownCostError: money is limited, and the model has no price.
        """
        if not limited(run):
            return self.unlimited(model, given, stated, profile, thinking)
        money = run.limits("usd")
        here = Here(run)

        def bounded(costs: ModelCosts, tokens: int | None) -> Bound:
            return costs.bound(
                here,
                model.name,
                input_tokens=given,
                max_tokens=tokens,
                provider=model.provider,
                terms=model.asked.terms,
                cache_writes=model.asked.cache_writes,
                hosted=offered(model.asked.kwargs, model.name),
                least_output=thinking + LEAST_OUTPUT,
            )

        if stated is not None or self._chosen is not None or not self._sends:
            found = bounded((self._open if stated is None else self._bounded)[money], stated)
            return found if self._sends or self._chosen else found._replace(max_tokens=None)
        room = bounded(self._bounded[money], _ENDLESS).reserve.output_tokens
        share = thinking + USUAL_OUTPUT
        if profile is not None and room != _ENDLESS:
            share = min(profile, max(room // _SHARES, share))
        found = bounded(self._bounded[money], share)
        return found._replace(max_tokens=found.max_tokens or share)

    def unlimited(
        self, model: Model, given: int, stated: int | None, profile: int | None = None, thinking: int = 0
    ) -> Bound:
        """The same where nothing is limited of a model call, so that there is nothing to clamp to.

        The reservation is what a call is charged that never says what it used.
        """
        made = stated or self._chosen or profile or thinking + USUAL_OUTPUT
        tokens = Usage.from_amounts({"input_tokens": given, "output_tokens": made, "tokens": given + made})
        reserve = self._bounded[False].priced(model.name, tokens, provider=model.provider)
        return Bound(reserve, self._chosen if stated is None else None)

    def used(
        self,
        run: Run,
        model: Model,
        counted: ModelUsage,
        *,
        limited: bool = True,
        raw: RawAnswers | None = None,
        place_told: bool = True,
    ) -> Usage:
        """Return what the call used, by what its answer reports; `limited` is what that one says.

        What LangChain drops of an answer is that of the `raw` one, else the most that it can be.
        """
        if raw is not None and raw.told:
            counted = raw.completed(counted)
        elif counted.counts:
            counted = model.asked.completed(counted, place_told=place_told)
        # Where prices were given, they are the same whether money is limited or not.
        costs = self._bounded[self._asks and limited and run.limits("usd")]
        return costs.priced(model.name, counted, provider=model.provider)
