"""One model call of an agent as a step: what it asks, what it may use, and how its end is settled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import HumanMessage

from agentguard import Run, UnknownCostError, Usage
from agentguard.cost import RawAnswers
from agentguard.fragments import JsonFragment
from agentguard_langchain import _mapping as m
from agentguard_langchain._calls import Cover
from agentguard_langchain._costs import Costs, Model, limited
from agentguard_langchain._prompt import Tools, prompt
from agentguard_langchain._steps import current_call

if TYPE_CHECKING:
    from langchain.agents.middleware import ModelRequest


class Asked:
    """What is the same for every call of a model with these settings and tools."""

    def __init__(self, request: ModelRequest[Any]) -> None:
        self._of = request.model
        self.settings = dict(request.model_settings)
        #: What goes on record of every call, after the messages.
        self.told = JsonFragment(self.settings)
        self.tools = Tools(request.tools)
        params = _params(request)
        self.model = Model(m.model_name({**params, **self.settings}, params), params.get("ls_provider"))
        self.name = f"chat {self.model.name}"
        self.attributes = m.model_attributes("chat", self.model.name, params)
        self.stated = m.output_bound(self.settings, params)
        self.thinking = m.thinking_tokens(self.settings, self._of)
        self.profile = m.output_bound({}, {}, getattr(self._of, "profile", None))
        self.limit = m.limit_name(self.settings, getattr(type(self._of), "model_fields", ()))

    def fits(self, request: ModelRequest[Any]) -> bool:
        """Whether the request is one of those calls."""
        return request.model is self._of and request.model_settings == self.settings

    def offers(self, tools: Sequence[Any]) -> Tools:
        """What is known of the tools of a request."""
        if not self.tools.are(tools):
            self.tools = Tools(tools)
        return self.tools


class ModelCall:
    """A request, bounded by what the budget leaves."""

    def __init__(
        self, run: Run, request: ModelRequest[Any], handler: Callable[..., Any], asked: Asked, costs: Costs
    ) -> None:
        self.run = run
        self.request = request
        self.handler = handler
        self.watch: Any = None
        self.branch: Any = None
        self.asked = asked
        self.name = asked.name
        self.cover = Cover(run, "llm", asked.name)
        self._costs = costs
        messages: list[Any] = request.messages
        if request.system_message is not None:
            messages = [request.system_message, *messages]
        self._prompt = prompt(messages)
        self._tools = asked.offers(request.tools)
        self._model = asked.model.asked_for(
            m.asked_of(asked.settings, request.model, tools=self._tools.hosted, blocks=self._prompt.blocks)
        )
        #: What the provider's SDK received, of which LangChain drops a part.
        self.raw = RawAnswers()
        self._unpriced: UnknownCostError | None = None
        given = self._prompt.tokens + self._tools.tokens
        self._limited = limited(run)
        bounded = (self._model, given, asked.stated, asked.profile, asked.thinking)
        try:
            bound = costs.bound(run, *bounded) if self._limited else costs.unlimited(*bounded)
        except UnknownCostError as error:
            self._unpriced = error
            return
        self._reserve = bound.reserve
        if bound.max_tokens is not None:
            settings = {**asked.settings, asked.limit: bound.max_tokens}
            self.request = request.override(model_settings=settings)

    def reserve(self) -> Usage:
        """What it may use at most.

        Raises:
            UnknownCostError: money is limited, and the model has no price.
        """
        if self._unpriced is not None:
            raise self._unpriced
        return self._reserve

    def arguments(self) -> tuple[Any, ...]:
        """What is asked, for the log; the bound is our own doing, and lies in the reservation."""
        return (self._prompt.fragments, self._tools.names, self.asked.told)

    def begun(self) -> None:
        """Nothing to do."""

    def used(self, result: Any) -> Usage | None:
        """What it used, if the answer says so."""
        for message in getattr(result, "result", [result]):
            tokens = m.tokens_used(message)
            if tokens is not None:
                return self._costs.used(
                    self.run,
                    self._model,
                    tokens,
                    limited=self._limited,
                    raw=self.raw,
                    place_told=m.place_told(message),
                )
        return None


def reserve(messages: Any, tools: Any, settings: Any) -> Usage:
    """What the call whose step is being made here may use at most; the arguments are what it asks."""
    call: ModelCall = current_call()
    return call.reserve()


def finishing(request: ModelRequest[Any], text: str) -> ModelRequest[Any]:
    """The request without its tools, and with a word to finish."""
    return request.override(messages=[*request.messages, HumanMessage(text)], tools=[], tool_choice=None)


def _params(request: ModelRequest[Any]) -> dict[str, Any]:
    """What the model says of itself: `ls_provider`, `ls_model_name`, `ls_max_tokens`."""
    try:
        # Not public, but what every chat model overrides, and what callbacks are told.
        params = request.model._get_ls_params(**request.model_settings)  # noqa: SLF001
    except Exception:  # noqa: BLE001 - a model of somebody else's; its name is not worth a failed call
        params = {}
    return {"ls_model_name": None, "_type": getattr(request.model, "_llm_type", None), **params}
