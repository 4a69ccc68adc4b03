"""`GuardMiddleware`: every model and tool call of an agent is a guarded step that a replay can serve."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

from langchain.agents.middleware import AgentMiddleware, ModelRequest, ToolCallRequest
from langchain_core.messages import ToolMessage
from langgraph.config import get_config

from agentguard import ApprovalDeniedError, Budget, Run
from agentguard.budget.named import check_account_budget
from agentguard.cost.usage import Unpriced
from agentguard.protocols import PriceBook
from agentguard_langchain import _mapping as m
from agentguard_langchain import _steps
from agentguard_langchain._asking import (
    Approvals,
    apply,
    apply_async,
    ask_approval,
    check_graph,
    checked_approvals,
)
from agentguard_langchain._checkpoints import resume
from agentguard_langchain._codec import CODEC
from agentguard_langchain._costs import Costs
from agentguard_langchain._hooks import listen
from agentguard_langchain._landing import WRAP_UP, SoftLimits, should_wrap_up
from agentguard_langchain._listening import Outside, checked_outside, refuse_outside
from agentguard_langchain._model_call import Asked, ModelCall, finishing, reserve
from agentguard_langchain._thread import NO_BLOCK, thread_block
from agentguard_langchain._tool_call import ToolCall, ToolOptions, softly
from agentguard_langchain._tree import TREE, Place, graph_place, numbered
from agentguard_langchain.callback import GuardCallbackHandler
from agentguard_langchain.stops import PASSING


class GuardMiddleware(AgentMiddleware[Any, Any, Any]):
    """Counts, limits, logs and makes replayable what an agent of `create_agent` does.

    Put it last in the list: then it is innermost, and sees each try of the middleware around it.
    Model and tool calls inside a tool are guarded too, as by a `GuardCallbackHandler`; give the agent one
    (or call `install()`) for the model calls of other middleware.  Both together count a call once.

    Args:
        run: the run that pays; by default the one that is active when the agent is called.
        prices: what models cost; by default genai-prices, where money is limited.
        unpriced: `"refuse"` (default) or `"allow"` calls of a model without a price where money is limited.
        max_output_tokens: sent as `max_tokens` with calls that name none.
        clamp: lower `max_tokens` to what the budget leaves (default), rather than refuse the call.
        tool_options: options of `guarded_step` by tool name: `{"send_email": {"usage": Usage(emails=1)}}`.
        soft: tools (all, or by name) whose refusal is told to the model and does not end the run: for want
            of room in their own limits, or because an operator denied the call.
        wrap_up: once a budget is used up to its `warn_at`, or has no room for another round, add a message
            to finish (this text, or one of ours) to the next model call and drop its tools.
        outside: `"refuse"` (default) or `"allow"` calls outside a run.
        approvals: `"operator"` (default): a tool call that needs an `approval`, and a call at a limit that
            asks (`on_limit="ask"`), waits for an operator; `"interrupt"`: the graph is interrupted, and the
            application answers with `Command(resume=...)`.  That needs a checkpointer.
        thread_budget: what all runs of one thread may use together (`configurable.thread_id`): its calls
            are charged to the account `thread:<id>`, across interrupts and restarts.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it.

    Example:
        >>> from agentguard import Budget, Guard
        >>> from agentguard_langchain import GuardMiddleware
        >>> from langchain.agents import create_agent
        >>> from langchain_core.language_models import FakeListChatModel
        >>> model = FakeListChatModel(responses=["Hello!"])
        >>> agent = create_agent(model, [], middleware=[GuardMiddleware()])
        >>> with Guard.in_memory() as guard, guard.run("greet", budget=Budget(steps=5)) as run:
        ...     result = agent.invoke({"messages": [("user", "Hi")]})
        >>> result["messages"][-1].content, run.spent.steps
        ('Hello!', 1)
    """

    def __init__(
        self,
        run: Run | None = None,
        *,
        prices: PriceBook | None = None,
        unpriced: Unpriced = "refuse",
        max_output_tokens: int | None = None,
        clamp: bool = True,
        tool_options: Mapping[str, Mapping[str, Any]] | None = None,
        soft: bool | Collection[str] = False,
        wrap_up: bool | str = False,
        outside: Outside = "refuse",
        approvals: Approvals = "operator",
        thread_budget: Budget | None = None,
    ) -> None:
        super().__init__()
        self.run = run
        self.tools = []
        self._costs = Costs(prices, unpriced, max_output_tokens, sends=clamp)
        self._tools = ToolOptions(tool_options)
        self._soft = soft if isinstance(soft, bool) else frozenset(soft)
        self._limits = SoftLimits()
        self._wrap_up = WRAP_UP if wrap_up is True else wrap_up
        self._allowed = checked_outside(outside)
        self._interrupts = checked_approvals(approvals, self._tools)
        self._thread_budget = thread_budget
        if thread_budget is not None:
            check_account_budget(thread_budget, "thread_budget")
        self._asked: Asked | None = None
        self._watch = GuardCallbackHandler(run, prices=prices, unpriced=unpriced, outside="allow")
        listen()

    def __getstate__(self) -> dict[str, Any]:
        # Without what is known of the last model, for `copy` and `pickle`: clients hold locks and sockets.
        return {**self.__dict__, "_asked": None}

    # --- models --------------------------------------------------------------------------------

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[..., Any]) -> Any:
        """One model call as one step."""
        with self._thread():
            call = self._model_call(request, handler)
            if call is None:
                return handler(request)
            with PASSING, _steps.Calling(call):
                response = apply(
                    call, _steps.ask, call.arguments(), None, _options(call), asks=self._interrupts
                )
            return _answered(_steps.unpaused(response))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[..., Awaitable[Any]]
    ) -> Any:
        """The same."""
        with self._thread():
            call = self._model_call(request, handler)
            if call is None:
                return await handler(request)
            with PASSING, _steps.Calling(call):
                response = await apply_async(
                    call, _steps.ask_async, call.arguments(), None, _options(call), asks=self._interrupts
                )
            return _answered(_steps.unpaused(response))

    def _model_call(self, request: ModelRequest[Any], handler: Callable[..., Any]) -> ModelCall | None:
        run = self._run("the model call of an agent")
        if run is None:
            return None
        if self._interrupts:
            check_graph("the model call of an agent")
        asked = self._asked
        if asked is None or not asked.fits(request):
            self._asked = asked = Asked(request)
        branch = _place(run).branch
        if self._wrap_up and self._nears_its_end(run, asked.name, branch):
            request = finishing(request, str(self._wrap_up))
        call = ModelCall(run, request, handler, asked, self._costs)
        call.branch, call.watch = branch, self._watch
        return call

    def _nears_its_end(self, run: Run, name: str, branch: Any) -> bool:
        def look() -> bool:
            return should_wrap_up(run, name, counters=not self._soft)

        with PASSING:  # on record, since what others spend meanwhile has a part in it
            return bool(run.record("wrap up", look, branch=branch))

    # --- tools ---------------------------------------------------------------------------------

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[..., Any]) -> Any:
        """One tool call as one step."""
        with self._thread():
            call = self._tool_call(request, handler)
            if call is None:
                return handler(request)
            if isinstance(call, ToolMessage):
                return call
            try:
                with _steps.LeavingTool(call.run), _steps.Calling(call):
                    result = apply(call, _steps.use, (), call.arguments, call.options, asks=self._interrupts)
            except ApprovalDeniedError as denied:
                return self._denied(request, denied)
            finally:
                call.begun()
            return _steps.unpaused(result)

    async def awrap_tool_call(self, request: ToolCallRequest, handler: Callable[..., Awaitable[Any]]) -> Any:
        """The same."""
        with self._thread():
            call = self._tool_call(request, handler)
            if call is None:
                return await handler(request)
            if isinstance(call, ToolMessage):
                return call
            try:
                with _steps.LeavingTool(call.run), _steps.Calling(call):
                    result = await apply_async(
                        call, _steps.use_async, (), call.arguments, call.options, asks=self._interrupts
                    )
            except ApprovalDeniedError as denied:
                return self._denied(request, denied)
            finally:
                call.begun()
            return _steps.unpaused(result)

    def _tool_call(
        self, request: ToolCallRequest, handler: Callable[..., Any]
    ) -> ToolCall | ToolMessage | None:
        """The call as a step; None outside a run; or what the model is told instead."""
        asked = request.tool_call
        run = self._run(asked["name"])
        if run is None:
            return None
        options = {"branch": _tool_place(run, request).branch, **self._tools.of(asked["name"])}
        call = ToolCall(run, request, handler, options=options, watch=self._watch)
        if self._interrupts:  # before anything of it is on record, since the node will run again from its top
            check_graph(asked["name"])
            ask_approval(call)
        if self._is_soft(asked["name"]):
            lacking = self._lacking(call)
            if lacking is not None:
                return softly(asked, f"its limit of {lacking} is used up")
        return call

    def _lacking(self, call: ToolCall) -> str | None:
        """The resource that has no room for the call of a soft tool; else the room is promised to it."""

        def look() -> str | None:
            reserved = self._tools.reserved(call.request.tool_call["name"], call.arguments)
            found = self._limits.ask(call.run, call.name, reserved)
            if isinstance(found, str):
                return found
            call.promise = found
            return None

        with PASSING:  # on record, since who of several is told no is a matter of who comes first
            lacking: str | None = call.run.record(
                f"{call.name} has room", look, branch=call.options["branch"]
            )
        return lacking

    def _denied(self, request: ToolCallRequest, denied: ApprovalDeniedError) -> Any:
        if not self._is_soft(request.tool_call["name"]):
            raise denied
        return softly(request.tool_call, f"an operator denied it ({denied.reason or 'no reason given'})")

    def _is_soft(self, tool: str) -> bool:
        return self._soft if isinstance(self._soft, bool) else tool in self._soft

    # --- where it is ---------------------------------------------------------------------------

    def _thread(self) -> AbstractContextManager[Any]:
        budget = self._thread_budget
        return NO_BLOCK if budget is None else thread_block(self._run_here(), budget)

    def _run_here(self) -> Run | None:
        return self.run or TREE.run_here(None)

    def _run(self, name: str) -> Run | None:
        run = self._run_here()
        if run is None:
            refuse_outside(name, allowed=self._allowed)
        return run


for _hook in ("wrap_model_call", "awrap_model_call", "wrap_tool_call", "awrap_tool_call"):
    # LangSmith, which LangChain puts around every hook, asks for it at each call, traced or not.
    _steps.readable(getattr(GuardMiddleware, _hook))


def _options(call: ModelCall) -> dict[str, Any]:
    attributes = call.asked.attributes
    return {
        "kind": "llm",
        "reserve": reserve,
        "codec": CODEC,
        "attributes": attributes,
        "branch": call.branch,
    }


def _answered(response: Any) -> Any:
    for message in getattr(response, "result", [response]):
        TREE.asked(message)
    return response


def _place(run: Run) -> Place:
    """The place of the graph's task that runs here."""
    try:
        config = get_config()
    except RuntimeError:  # called by hand
        return graph_place(run, {})
    node = TREE.get(getattr(config.get("callbacks"), "parent_run_id", None))
    if node is not None and node.run is run:
        place = node.place
    else:
        place = graph_place(run, config.get("metadata") or {})
    resume(run, place, config)
    return place


def _tool_place(run: Run, request: ToolCallRequest) -> Place:
    place = _place(run)
    state = request.state
    messages = state.get("messages") if isinstance(state, dict) else getattr(state, "messages", state)
    index = m.call_index(messages, request.tool_call["id"])
    return place if index is None else numbered(place, index, place.context)
