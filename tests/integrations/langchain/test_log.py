"""What an agent's run leaves behind: a log that reads well, and spans that say the same."""

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import interrupt

from agentguard import Budget, BudgetExceededError, Guard
from agentguard.audit.reading import read_whole
from agentguard.cost.prices import ModelPrices
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware

HI = {"messages": [("user", "hi")]}
GUARDS = pytest.mark.parametrize("guarded_by", ["handler", "middleware", "both"])
MODES = pytest.mark.parametrize("mode", ["sync", "async"])
PRICES = ModelPrices({"scripted": {"input": 1, "output": 2}}, fallback=None)


def guards(guarded_by: str) -> tuple[list[Any], Any]:
    middleware = [] if guarded_by == "handler" else [GuardMiddleware(prices=PRICES)]
    return middleware, {
        "callbacks": [] if guarded_by == "middleware" else [GuardCallbackHandler(prices=PRICES)]
    }


def payloads(guard: Guard, run_id: str) -> dict[int, Any]:
    return {
        s.seq: json.loads(s.payload)
        for s in read_whole(guard.components.store, run_id)
        if s.payload is not None
    }


@GUARDS
@MODES
def test_the_log_of_an_agent_reads_well(
    guard: Guard, model: Any, search: Any, says: Any, guarded_by: str, mode: str
) -> None:
    answer, wants = says
    model.script = lambda n, m: (
        answer("let me see", wants("search", "call_1", query="weather")) if n == 1 else answer("it rains")
    )
    middleware, config = guards(guarded_by)
    agent = create_agent(model, [search[0]], middleware=middleware)
    with guard.run("agent", budget=Budget(usd=1)) as run:
        asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)
    steps = [e for e in guard.history(run.id) if e.key]
    assert [(e.type, e.key, e.kind) for e in steps] == [
        ("step_started", "main/model@1/chat scripted#1", "llm"),
        ("step_completed", "main/model@1/chat scripted#1", "llm"),
        ("step_started", "main/tools@2.0/search#1", "tool"),
        ("step_completed", "main/tools@2.0/search#1", "tool"),
        ("step_started", "main/model@3/chat scripted#1", "llm"),
        ("step_completed", "main/model@3/chat scripted#1", "llm"),
    ]
    asked, used, _ = [e.data["attributes"] for e in steps if e.type == "step_started" and e.data]
    assert (asked["gen_ai.operation.name"], asked["gen_ai.request.model"]) == ("chat", "scripted")
    assert used == {"gen_ai.tool.name": "search", "gen_ai.tool.call.id": "call_1"}
    usage = steps[1].usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, str(usage.usd)) == (10, 5, "0.00002")
    kept = [json.dumps(payloads(guard, run.id)[e.seq]) for e in steps]
    assert '"content": "hi"' in kept[0]
    assert '"call_1"' in kept[1]
    assert '"weather"' in kept[2]
    assert '"call_1"' in kept[3]
    assert '"found weather"' in kept[3]
    assert '"it rains"' in kept[5]


class Traced:
    """A guard that traces into memory, and the spans that have ended."""

    def __init__(self) -> None:
        pytest.importorskip("opentelemetry.sdk")
        from opentelemetry.metrics import NoOpMeterProvider
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        from agentguard.telemetry.spans import Telemetry

        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.guard = Guard.in_memory(telemetry=Telemetry(provider, NoOpMeterProvider()))

    def spans(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())


@GUARDS
@MODES
def test_spans_have_the_model_the_provider_and_the_id_of_the_tool_call(
    model: Any, search: Any, says: Any, guarded_by: str, mode: str
) -> None:
    from opentelemetry import trace

    traced = Traced()
    answer, wants = says
    model.script = lambda n, m: answer("", wants("search", "call_1", query="q")) if n == 1 else answer("done")
    middleware, config = guards(guarded_by)
    agent = create_agent(model, [search[0]], middleware=middleware)
    outside = trace.get_current_span()
    with traced.guard, traced.guard.run("agent"):
        inside = trace.get_current_span()
        asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)
        assert trace.get_current_span() is inside
    assert trace.get_current_span() is outside
    first, used, second, root = traced.spans()
    assert [s.name for s in (first, used, second)] == [
        "chat scripted",
        "execute_tool search",
        "chat scripted",
    ]
    assert {s.parent.span_id for s in (first, used, second)} == {root.context.span_id}
    assert first.attributes["gen_ai.request.model"] == "scripted"
    assert first.attributes["gen_ai.provider.name"] == "scripted"
    assert first.attributes["gen_ai.usage.input_tokens"] == 10
    assert used.attributes["gen_ai.tool.name"] == "search"
    assert used.attributes["gen_ai.tool.call.id"] == "call_1"


@GUARDS
@MODES
def test_an_interrupt_is_no_error_in_spans(model: Any, says: Any, guarded_by: str, mode: str) -> None:
    from opentelemetry.trace import StatusCode

    traced = Traced()

    @tool
    def confirm(question: str) -> str:
        """Ask."""
        return str(interrupt(question))

    answer, wants = says
    model.script = [answer("", wants("confirm", "c1", question="?"))]
    middleware, config = guards(guarded_by)
    agent = create_agent(model, [confirm], middleware=middleware, checkpointer=InMemorySaver())
    config["configurable"] = {"thread_id": "t"}
    with traced.guard, traced.guard.run("agent"):
        asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)
    assert [s.status.status_code for s in traced.spans()] == [StatusCode.UNSET] * 3


@GUARDS
@MODES
def test_a_stop_is_an_error_in_spans(model: Any, search: Any, says: Any, guarded_by: str, mode: str) -> None:
    traced = Traced()
    answer, wants = says
    model.script = lambda n, m: answer("", wants("search", f"c{n}", query="q"))
    middleware, config = guards(guarded_by)
    agent = create_agent(model, [search[0]], middleware=middleware)
    with (
        pytest.raises(BudgetExceededError),
        traced.guard,
        traced.guard.run("agent", budget=Budget(calls={"search": 1})),
    ):
        asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)
    refused = traced.spans()[-2]
    assert refused.name == "execute_tool search"
    assert refused.attributes["error.type"] == "agentguard.budget_exceeded"
    assert refused.attributes["agentguard.decision"] == "deny"


@GUARDS
def test_a_stop_inside_a_tool_is_logged_as_what_it_is(
    guard: Guard, model: Any, scripted: Any, says: Any, guarded_by: str
) -> None:
    inner = scripted(seen=[], settings=[])

    @tool
    def ask(topic: str) -> str:
        """Ask another model."""
        return str(inner.invoke(topic).content)

    answer, wants = says
    model.script = lambda n, m: answer("", wants("ask", f"c{n}", topic="q"))
    middleware, config = guards(guarded_by)
    agent = create_agent(model, [ask], middleware=middleware)
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"kind:llm": 1})) as run:
        agent.invoke(HI, config)
    [failed] = [e for e in guard.history(run.id) if e.type == "step_failed"]
    assert (failed.data or {})["error"]["type"] == "BudgetExceededError"
    assert inner.seen == []


@MODES
def test_retrievers_are_steps_too(guard: Guard, mode: str) -> None:
    class Shelf(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            if query == "nothing":
                raise OSError("empty")
            return [Document(query)]

    config: Any = {"callbacks": [GuardCallbackHandler()]}
    shelf = Shelf(name="shelf")

    def look(query: str) -> None:
        asyncio.run(shelf.ainvoke(query, config)) if mode == "async" else shelf.invoke(query, config)

    with (
        pytest.raises(BudgetExceededError),
        guard.run("look", budget=Budget(calls={"kind:retriever": 2})) as run,
    ):
        look("books")
        with pytest.raises(OSError, match="empty"):
            look("nothing")
        look("more")
    kinds = [(e.type, e.name) for e in guard.history(run.id) if e.key]
    assert kinds == [
        ("step_started", "shelf"),
        ("step_completed", "shelf"),
        ("step_started", "shelf"),
        ("step_failed", "shelf"),
        ("step_refused", "shelf"),
    ]
