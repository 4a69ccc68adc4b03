"""One model call of an agent as a step: what it asks, what it may use, and how its end is settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from langchain_core.messages import HumanMessage

from agentguard import Run, UnknownCostError, Usage
from agentguard_langchain import _mapping as m
from agentguard_langchain._calls import Cover
from agentguard_langchain._costs import Costs, Model, prompt_tokens
from agentguard_langchain._steps import current_call

if TYPE_CHECKING:
    from langchain.agents.middleware import ModelRequest


class ModelCall:
    """A request, bounded by what the budget leaves."""

    def __init__(
        self,
        run: Run,
        request: ModelRequest[Any],
        handler: Callable[..., Any],
        costs: Costs,
        watch: Any,
    ) -> None:
        self.run = run
        self.handler = handler
        self.watch = watch
        self._costs = costs
        self._settings = request.model_settings
        params = _params(request)
        self._model = Model(m.model_name(self._settings, params), params.get("ls_provider"))
        self.name = f"chat {self._model.name}"
        self.cover = Cover("llm", self.name)
        self.attributes = Facts(m.model_attributes("chat", self._model.name, params))
        self.request = request
        self._bound(request, params)

    def _bound(self, request: ModelRequest[Any], params: dict[str, Any]) -> None:
        messages = request.messages
        if request.system_message is not None:
            messages = [request.system_message, *messages]
        self.messages = messages
        stated = m.output_bound(request.model_settings, params)
        profile = m.output_bound({}, {}, getattr(request.model, "profile", None))
        self._unpriced: UnknownCostError | None = None
        try:
            bound = self._costs.bound(
                self.run, self._model, prompt_tokens(messages, request.tools), stated, profile
            )
        except UnknownCostError as error:
            self._unpriced = error
            return
        self._reserve = bound.reserve
        if bound.max_tokens is not None:
            fields = getattr(type(request.model), "model_fields", ())
            limit = {m.limit_name(request.model_settings, fields): bound.max_tokens}
            self.request = request.override(model_settings={**request.model_settings, **limit})

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
        return (m.message_data(self.messages), m.tool_names(self.request.tools), self._settings)

    def begun(self) -> None:
        """Nothing to do."""

    def used(self, response: Any) -> Usage | None:
        """What it used, if the answer says so."""
        for message in getattr(response, "result", [response]):
            tokens = m.tokens_used(message)
            if tokens is not None:
                return self._costs.used(self.run, self._model, tokens)
        return None


def reserve(messages: Any, tools: Any, settings: Any) -> Usage:
    """What the call whose step is being made here may use at most; the arguments are what it asks."""
    call: ModelCall = current_call()
    return call.reserve()


class Facts(dict[str, Any]):
    """Attributes that never change, so that the core need not check the same options for each call."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


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
    return {"ls_model_name": None, **params}
