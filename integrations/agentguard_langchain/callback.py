"""`GuardCallbackHandler`: every model, tool and retriever call that LangChain reports is a guarded step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from agentguard import AgentGuardError, Run, UnknownCostError, Usage
from agentguard.cost import ModelUsage, proves_refusal
from agentguard.cost.usage import Unpriced, estimated_tokens
from agentguard.protocols import PriceBook
from agentguard_langchain import _mapping as m
from agentguard_langchain._calls import CALLS, FREE, Call, Cover
from agentguard_langchain._costs import Costs, Model
from agentguard_langchain._listening import (
    Guarding,
    Outside,
    checked_outside,
    close,
    nothing,
    refuse_unknown_cost,
)
from agentguard_langchain._prompt import prompt, tool_tokens
from agentguard_langchain._tree import TREE
from agentguard_langchain.stops import PASSING

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult


class GuardCallbackHandler(Guarding):
    """Counts, limits and logs the calls of whatever LangChain object it is given to.

    One sync class for sync and async alike: LangChain swallows what an async handler raises in sync
    calls.  A call reserves before it is made and settles when it ends; a stop is raised where calls
    begin and at streamed tokens, never at an end.  Handlers and `GuardMiddleware` count a call once.

    Args:
        run: the run that pays; by default the one that is active where a call begins.
        prices: what models cost; by default genai-prices, where money is limited.
        unpriced: `"refuse"` (default) or `"allow"` calls of a model without a price where money is limited.
        max_output_tokens: the longest answer to reserve for, where a call does not say and its model
            has no known maximum.  Without it, such a call reserves an estimate and may overshoot.
        outside: `"refuse"` (default) or `"allow"` calls outside a run.

    Example:
        >>> from agentguard import Budget, Guard
        >>> from agentguard_langchain import GuardCallbackHandler
        >>> from langchain_core.language_models import FakeListChatModel
        >>> model = FakeListChatModel(responses=["Hello!"])
        >>> with Guard.in_memory() as guard, guard.run("greet", budget=Budget(steps=5)) as run:
        ...     answer = model.invoke("Hi", config={"callbacks": [GuardCallbackHandler()]})
        >>> answer.content, run.spent.steps
        ('Hello!', 1)
    """

    def __init__(
        self,
        run: Run | None = None,
        *,
        prices: PriceBook | None = None,
        unpriced: Unpriced = "refuse",
        max_output_tokens: int | None = None,
        outside: Outside = "refuse",
    ) -> None:
        self.run = run
        self._costs = Costs(prices, unpriced, max_output_tokens, sends=False)
        self._allowed = checked_outside(outside)

    # --- models --------------------------------------------------------------------------------

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """Reserve, and refuse what the budget has no room for."""
        if CALLS.covered(run_id, "llm") is None:
            asked = [message for several in messages for message in several]
            self._model_starts("chat", lambda: _chat(asked), asked, run_id, **kwargs)

    def on_llm_start(
        self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """The same for text completion."""
        if CALLS.covered(run_id, "llm") is None:
            self._model_starts("text_completion", lambda: _completion(prompts), prompts, run_id, **kwargs)

    def _model_starts(
        self,
        operation: str,
        taken: Callable[[], tuple[dict[str, Any], int, list[Any]]],
        asked: Any,
        run_id: UUID,
        *,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        invocation_params: dict[str, Any] | None = None,
        batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        params, metadata = invocation_params or {}, metadata or {}
        model = Model(m.model_name(params, metadata), metadata.get("ls_provider"))
        name = f"{operation} {model.name}"
        run = self._begins(run_id, parent_run_id, name)
        if run is None:
            return
        place = TREE.place(run, parent_run_id, tags, metadata, asked)
        options: dict[str, Any] = {
            "kind": "llm",
            "branch": place.branch,
            "attributes": m.model_attributes(operation, model.name, metadata),
        }
        group = invocation_params if batch_size > 1 else None
        with PASSING:
            try:
                inputs, tokens, blocks = taken()
                model = model.asked_for(m.asked_of(params, blocks=blocks))
                stated = m.output_bound(params, metadata)
                given = tokens + tool_tokens(params.get("tools"))
                reserve = self._costs.bound(run, model, given, stated).reserve
            except UnknownCostError as error:
                CALLS.revoke(group, error)
                refuse_unknown_cost(run, name, error, options)
            call = Call(run, run.step(name, reserve=reserve, **options), model, group)
            self._start(run_id, parent_run_id, call, inputs)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A kill ends a stream at its next token."""
        self._look(kwargs.get("parent_run_id"))

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """The same, where LangChain streams events."""
        self._look(kwargs.get("parent_run_id"))

    def _look(self, parent_id: UUID | None) -> None:
        run = self._run_here(parent_id)
        if run is not None:
            with PASSING:
                run.check()

    def on_llm_end(
        self, response: LLMResult, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Settle by the usage that the answer reports; what is over is not refused any more."""
        call = CALLS.pop(run_id)
        if isinstance(call, Cover) or (call is None and run_id in CALLS):
            return  # the middleware's, or old news
        answer = response.generations[0][0] if response.generations and response.generations[0] else None
        message = getattr(answer, "message", None)
        TREE.asked(message)
        tokens = m.tokens_used(message) if message is not None else m.tokens_reported(response.llm_output)
        if call is None:
            if tokens is not None and tokens.counts:
                self._charge(parent_run_id, tokens, message)
        elif call.model is not None:
            usage = None if tokens is None else self._used(call.run, call.model, tokens, message)
            if usage is None and call.reported:
                usage = FREE
            elif usage is not None and message is None:
                CALLS.report(call.group)
            result = m.answer_data(message) if message is not None else getattr(answer, "text", None)
            call.finish(usage=usage, result=result)

    def _used(self, run: Run, model: Model, tokens: ModelUsage, message: Any) -> Usage:
        return self._costs.used(run, model, tokens, place_told=m.place_told(message))

    def _charge(self, parent_id: UUID | None, tokens: ModelUsage, message: Any) -> None:
        """A call that nobody saw begin is charged all the same."""
        run = self._run_here(parent_id)
        if run is None:
            return
        model = Model(m.model_name(getattr(message, "response_metadata", None) or {}, {}))
        usage = self._used(run, model, tokens, message)
        with contextlib.suppress(AgentGuardError):  # stopped already: its log takes nothing more
            run.apply(f"chat {model.name}", nothing, kind="llm", reserve=None, usage=lambda _: usage)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Charge the reservation; nothing where the provider refused the call."""
        self._fails(run_id, error, FREE if proves_refusal(error) else None)

    # --- tools and retrievers ------------------------------------------------------------------

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        tool_call_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Count the call, or refuse it."""
        name = m.step_name((serialized or {}).get("name") or kwargs.get("name") or "tool")
        cover = CALLS.covered(run_id, "tool", name, tool_call_id)
        if cover is not None:
            TREE.begin_in_step(run_id, cover.run)
            return
        run = self._begins(run_id, parent_run_id, name)
        if run is not None:
            given = inputs if inputs is not None else {"input": input_str}
            place = TREE.tool_place(run, parent_run_id, tool_call_id, metadata, given)
            options = {"kind": "tool", "attributes": m.tool_attributes(name, tool_call_id)}
            with PASSING:
                block = run.step(name, branch=place.branch, **options)
                self._start(run_id, parent_run_id, Call(run, block), given)
            TREE.begin(run_id, run, place.inside(block.step.branch))

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Put the result on record."""
        close(run_id)
        if (call := CALLS.pop(run_id)) is not None:
            call.finish(result=m.answer_data(output))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Put the error on record; `interrupt()` is none."""
        close(run_id)
        self._fails(run_id, error)

    def on_retriever_start(
        self,
        serialized: dict[str, Any],
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Count the call, or refuse it."""
        name = m.step_name(kwargs.get("name") or (serialized or {}).get("name") or "retriever")
        run = self._begins(run_id, parent_run_id, name)
        if run is None:
            return
        place = TREE.place(run, parent_run_id, tags, metadata, query)
        with PASSING:
            block = run.step(name, kind="retriever", effect="read", branch=place.branch)
            self._start(run_id, parent_run_id, Call(run, block), {"query": query})

    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> None:
        """Put on record that it ended."""
        if (call := CALLS.pop(run_id)) is not None:
            call.finish()

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Put the error on record."""
        self._fails(run_id, error)


def _chat(messages: Sequence[BaseMessage]) -> tuple[dict[str, Any], int, list[Any]]:
    """What goes on record of a prompt, about how many tokens it has, and what of it is more than text."""
    found = prompt(messages)
    return {"messages": found.fragments}, found.tokens, found.blocks


def _completion(prompts: Sequence[str]) -> tuple[dict[str, Any], int, list[Any]]:
    return {"prompts": prompts}, sum(map(estimated_tokens, prompts)), []
