"""Spans and metrics of runs and steps: compared whole, through providers of the test's own."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import logging
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import Context, copy_context
from decimal import Decimal
from importlib import metadata

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import context, trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    StaticSampler,
)
from opentelemetry.trace import NoOpTracerProvider

from agentguard import Budget, Guard, RunExistsError, errors
from agentguard.telemetry import _harmless, attributes
from agentguard.telemetry.spans import Telemetry

RUN = {
    "gen_ai.agent.name": "triage",
    "agentguard.run.id": "r1",
    "agentguard.tenant.id": "acme",
}
BUDGET_ERROR = errors.BudgetExceededError(
    "usd", Decimal("0.75"), Decimal(0), Decimal("0.5"), Decimal(1), "research/web", "r1"
)
KILL_ERROR = errors.KillSwitchTriggeredError("tenant", "runaway", "ops")


class Traced:
    """A telemetry on an in-memory exporter, one run, and the ended spans as plain data."""

    def __init__(self, provider: TracerProvider | None = None, **options):
        self.exporter = InMemorySpanExporter()
        self.provider = provider or TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.telemetry = Telemetry(self.provider, options.get("meters", NoOpMeterProvider()))

    def run(self, **options):
        return self.telemetry.start_run(**{"name": "triage", "run_id": "r1", "tenant": "acme"} | options)

    def user_span(self, name="user's"):
        return self.provider.get_tracer("user").start_as_current_span(name)

    def spans(self):
        ended = self.exporter.get_finished_spans()
        names = {span.context.span_id: span.name for span in ended}
        return {
            span.name: {
                "parent": span.parent and names.get(span.parent.span_id),
                "kind": span.kind.name,
                "attributes": dict(span.attributes),
                "status": (span.status.status_code.name, span.status.description),
                "events": len(span.events),
            }
            for span in ended
        }

    def parents(self):
        return {name: span["parent"] for name, span in self.spans().items()}


@pytest.fixture
def traced():
    """Leaves the current context as it found it."""
    before = context.get_current()
    yield Traced()
    context.attach(before)


def end_run(run, *, error=None, state="COMPLETED", head=(9, "ab12"), usage=None, steps=0):
    run.end(error=error, state=state, head=head, usage=usage or {}, steps=steps)


def test_attribute_names_are_pinned():
    """As of 2026-11: a name that changes here changes dashboards and queries of users."""
    names = {key: value for key, value in vars(attributes).items() if key.isupper()}
    assert names == {
        "ERROR_TYPE": "error.type",
        "OPERATION": "gen_ai.operation.name",
        "PROVIDER": "gen_ai.provider.name",
        "CONVERSATION": "gen_ai.conversation.id",
        "AGENT_NAME": "gen_ai.agent.name",
        "WORKFLOW_NAME": "gen_ai.workflow.name",
        "REQUEST_MODEL": "gen_ai.request.model",
        "RESPONSE_MODEL": "gen_ai.response.model",
        "INPUT_TOKENS": "gen_ai.usage.input_tokens",
        "OUTPUT_TOKENS": "gen_ai.usage.output_tokens",
        "CACHE_READ_TOKENS": "gen_ai.usage.cache_read.input_tokens",
        "CACHE_WRITE_TOKENS": "gen_ai.usage.cache_write.input_tokens",
        "CACHE_CREATION_TOKENS": "gen_ai.usage.cache_creation.input_tokens",
        "REASONING_TOKENS": "gen_ai.usage.reasoning.output_tokens",
        "TOOL_NAME": "gen_ai.tool.name",
        "TOOL_CALL_ID": "gen_ai.tool.call.id",
        "TOOL_TYPE": "gen_ai.tool.type",
        "TOOL_ARGUMENTS": "gen_ai.tool.call.arguments",
        "TOOL_RESULT": "gen_ai.tool.call.result",
        "TENANT": "agentguard.tenant.id",
        "RUN_ID": "agentguard.run.id",
        "RUN_STATE": "agentguard.run.state",
        "RUN_INPUT_TOKENS": "agentguard.run.input_tokens",
        "RUN_OUTPUT_TOKENS": "agentguard.run.output_tokens",
        "RUN_COST": "agentguard.run.cost.amount",
        "RUN_STEPS": "agentguard.run.steps",
        "RUN_USAGE_PREFIX": "agentguard.run.usage.",
        "RUN_METADATA_PREFIX": "agentguard.run.metadata.",
        "LOG_HEAD": "agentguard.log.head",
        "STEP_ID": "agentguard.step.id",
        "SCOPE_PATH": "agentguard.scope.path",
        "STEP_KIND": "agentguard.step.kind",
        "STEP_ATTEMPT": "agentguard.step.attempt",
        "COST": "agentguard.cost.amount",
        "COST_CURRENCY": "agentguard.cost.currency",
        "COST_SOURCE": "agentguard.cost.source",
        "USAGE_PREFIX": "agentguard.usage.",
        "QUEUE": "agentguard.queue.name",
        "QUEUE_STATE": "agentguard.queue.state",
        "DECISION": "agentguard.decision",
        "DENY_REASON": "agentguard.deny.reason",
        "BUDGET_SCOPE": "agentguard.budget.scope",
        "BUDGET_UNIT": "agentguard.budget.unit",
        "BUDGET_LIMIT": "agentguard.budget.limit",
        "BUDGET_SPENT": "agentguard.budget.spent",
        "BUDGET_RESERVED": "agentguard.budget.reserved",
        "BUDGET_REQUESTED": "agentguard.budget.requested",
        "KILL_SCOPE": "agentguard.kill.scope",
        "KILL_REASON": "agentguard.kill.reason",
    }


# --- what spans say --------------------------------------------------------------------------


def test_run_span_holds_the_totals_and_the_head_of_the_log(traced):
    run = traced.run(metadata={"gen_ai.conversation.id": "t7", "ticket": 4711, "nested": {"left": "out"}})
    usage = {"nano_usd": 1_500_000, "input_tokens": 90, "output_tokens": 10, "tokens": 100}
    end_run(run, usage={**usage, "emails": 2, "steps": 3}, steps=3)
    assert traced.spans() == {
        "invoke_agent triage": {
            "parent": None,
            "kind": "INTERNAL",
            "attributes": {
                **RUN,
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.conversation.id": "t7",
                "agentguard.run.metadata.ticket": 4711,
                "agentguard.run.state": "COMPLETED",
                "agentguard.run.cost.amount": 0.0015,
                "agentguard.run.input_tokens": 90,
                "agentguard.run.output_tokens": 10,
                "agentguard.run.usage.emails": 2,
                "agentguard.run.steps": 3,
                "agentguard.log.head": "9:ab12",
            },
            "status": ("UNSET", None),
            "events": 0,
        }
    }


MODEL = {"gen_ai.request.model": "gpt-4o-mini", "gen_ai.provider.name": "openai"}
CHAT = {"gen_ai.operation.name": "chat"}
TOOL = {"gen_ai.operation.name": "execute_tool"}
RETRIEVAL = {"gen_ai.operation.name": "retrieval"}


@pytest.mark.parametrize(
    ("kind", "given", "name", "expected"),
    [
        ("llm", MODEL, "chat gpt-4o-mini", MODEL | CHAT),
        ("llm", None, "chat", CHAT),
        ("tool", None, "execute_tool look", TOOL | {"gen_ai.tool.name": "look"}),
        (
            "tool",
            {"gen_ai.tool.name": "web.look", "gen_ai.tool.call.id": "c1"},
            "execute_tool web.look",
            TOOL | {"gen_ai.tool.name": "web.look", "gen_ai.tool.call.id": "c1"},
        ),
        ("step", None, "step look", {}),
        ("node", {"mine": 1}, "step look", {"mine": 1}),
        ("retriever", RETRIEVAL, "retrieval look", RETRIEVAL),
    ],
)
def test_step_span_follows_its_kind(traced, kind, given, name, expected):
    run = traced.run()
    run.start_step("look", kind, "main/look#1", 2, given).end(None, None, 1)
    end_run(run)
    assert traced.spans()[name] == {
        "parent": "invoke_agent triage",
        "kind": "CLIENT" if kind == "llm" else "INTERNAL",
        "attributes": {
            **RUN,
            **expected,
            "agentguard.step.kind": kind,
            "agentguard.step.id": "main/look#1",
            "agentguard.step.attempt": 2,
            "agentguard.decision": "allow",
        },
        "status": ("UNSET", None),
        "events": 0,
    }


def test_what_a_sampler_decides_by_is_there_at_the_start(traced):
    class Seen(SpanProcessor):
        def on_start(self, span, parent_context=None):
            self.attributes = dict(span.attributes)

    traced.provider.add_span_processor(seen := Seen())
    run = traced.run()
    assert seen.attributes == RUN | {"gen_ai.operation.name": "invoke_agent"}
    step = run.start_step("ask", "llm", "ask#1", 1, MODEL)
    step_facts = {"step.kind": "llm", "step.id": "ask#1", "step.attempt": 1, "decision": "allow"}
    assert seen.attributes == RUN | MODEL | CHAT | {
        f"agentguard.{key}": value for key, value in step_facts.items()
    }
    step.end(None, None, 1)
    end_run(run)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {
                "nano_usd": 2_000_000,
                "input_tokens": 90,
                "output_tokens": 10,
                "cached_tokens": 80,
                "reasoning_tokens": 4,
                "tokens": 100,
                "steps": 1,
                "seconds": 5,
            },
            {
                "agentguard.cost.amount": 0.002,
                "agentguard.cost.currency": "USD",
                "gen_ai.usage.input_tokens": 90,
                "gen_ai.usage.output_tokens": 10,
                "gen_ai.usage.cache_read.input_tokens": 80,
                "gen_ai.usage.reasoning.output_tokens": 4,
            },
        ),
        ({"tokens": 7, "emails": 1}, {"agentguard.usage.tokens": 7, "agentguard.usage.emails": 1}),
        ({}, {}),
    ],
    ids=["money and tokens", "no split, a counter", "nothing"],
)
def test_usage_is_written_when_a_step_ends(traced, usage, expected):
    run = traced.run()
    step = run.start_step("ask", "llm", "ask#1", 1)
    step.end(None, usage, 1)
    end_run(run)
    found = traced.spans()["chat"]["attributes"]
    start = {"agentguard.step.kind", "agentguard.step.id", "agentguard.step.attempt", *RUN, *CHAT}
    assert {key: value for key, value in found.items() if key not in start} == {
        "agentguard.decision": "allow",
        **expected,
    }


class OwnError(Exception):
    pass


class GraphBubbleUp(Exception):  # what LangGraph calls the parent of its pauses
    pass


class GraphInterrupt(GraphBubbleUp):
    pass


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (BUDGET_ERROR, "agentguard.budget_exceeded"),
        (KILL_ERROR, "agentguard.killed"),
        (errors.ApprovalDeniedError("k"), "agentguard.denied"),
        (errors.UnknownCostError("ask"), "agentguard.unknown_cost"),
        (errors.StoreUnavailableError(), "agentguard.errors.StoreUnavailableError"),
        (TimeoutError(), "timeout"),
        (asyncio.CancelledError(), "cancelled"),
        (CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (KeyError("k"), "KeyError"),
        (OwnError("a secret"), f"{__name__}.OwnError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failure_is_an_error_with_a_type_and_without_a_message(traced, error, error_type):
    run = traced.run()
    run.start_step("look", "tool", "look#1", 1).end(error, None, 1)
    end_run(run, error=error, state="FAILED")
    for span in traced.spans().values():
        assert span["attributes"]["error.type"] == error_type
        assert span["status"] == ("ERROR", type(error).__name__)
        assert span["events"] == 0


@pytest.mark.parametrize("error", [None, GraphInterrupt(), GeneratorExit()])
def test_control_flow_and_early_closing_are_no_errors(traced, error):
    run = traced.run()
    run.start_step("look", "tool", "look#1", 1).end(error, None, 1)
    end_run(run, error=error, state="PAUSED")
    for span in traced.spans().values():
        assert span["status"] == ("UNSET", None)
        assert "error.type" not in span["attributes"]


@pytest.mark.parametrize(("state", "error_type"), [("KILLED", "agentguard.killed"), ("FAILED", "_OTHER")])
def test_run_that_ended_badly_without_an_exception_is_an_error(traced, state, error_type):
    end_run(traced.run(), state=state, head=None)
    (span,) = traced.spans().values()
    assert span["status"] == ("ERROR", None)
    assert span["attributes"]["error.type"] == error_type
    assert "agentguard.log.head" not in span["attributes"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            BUDGET_ERROR,
            {
                "agentguard.deny.reason": "budget_exceeded",
                "error.type": "agentguard.budget_exceeded",
                "agentguard.budget.scope": "research/web",
                "agentguard.budget.unit": "usd",
                "agentguard.budget.limit": 1.0,
                "agentguard.budget.spent": 0.75,
                "agentguard.budget.reserved": 0.0,
                "agentguard.budget.requested": 0.5,
            },
        ),
        (
            KILL_ERROR,
            {
                "agentguard.deny.reason": "killed",
                "error.type": "agentguard.killed",
                "agentguard.kill.scope": "tenant",
                "agentguard.kill.reason": "runaway",
            },
        ),
        (
            errors.KillSwitchUnavailableError(),
            {
                "agentguard.deny.reason": "kill_switch_unavailable",
                "error.type": "agentguard.errors.KillSwitchUnavailableError",
            },
        ),
        (OwnError(), {"agentguard.deny.reason": "other", "error.type": f"{__name__}.OwnError"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused_step_says_why(traced, error, expected):
    run = traced.run()
    step = run.start_step("look", "step", "look#1", 1)
    step.refused(error)
    end_run(run)
    span = traced.spans()["step look"]
    assert span["status"] == ("ERROR", type(error).__name__)
    assert span["attributes"] == {
        **RUN,
        **expected,
        "agentguard.step.kind": "step",
        "agentguard.step.id": "look#1",
        "agentguard.step.attempt": 1,
        "agentguard.decision": "deny",
    }


def test_ending_twice_does_nothing(traced, caplog):
    run = traced.run()
    step = run.start_step("look", "tool", "look#1", 1)
    for _ in range(2):
        step.refused(KILL_ERROR)
        step.end(None, None, 1)
        end_run(run)
    assert len(traced.exporter.get_finished_spans()) == 2
    assert not caplog.records


def test_ids_are_those_of_the_spans(traced):
    run = traced.run()
    step = run.start_step("look", "tool", "look#1", 1)
    held = trace.get_current_span().get_span_context()
    assert step.span_id == trace.format_span_id(held.span_id)
    assert step.trace_id == run.trace_id == trace.format_trace_id(held.trace_id)
    step.end(None, None, 1)
    end_run(run)


# --- where spans lie -------------------------------------------------------------------------


def test_spans_nest_from_the_caller_down_to_the_users_own(traced):
    with traced.user_span("request"):
        run = traced.run()
        outer = run.start_step("plan", "step", "plan#1", 1)
        inner = run.start_step("look", "tool", "look#1", 1)
        with traced.user_span():
            pass
        inner.end(None, None, 1)
        outer.end(None, None, 1)
        end_run(run)
    assert traced.parents() == {
        "request": None,
        "invoke_agent triage": "request",
        "step plan": "invoke_agent triage",
        "execute_tool look": "step plan",
        "user's": "execute_tool look",
    }
    assert not trace.get_current_span().get_span_context().is_valid


def test_tasks_in_parallel_keep_their_own_steps(traced):
    async def agent():
        run = traced.run()
        both_started = asyncio.Barrier(2)

        async def work(name):
            step = run.start_step(name, "tool", f"{name}#1", 1)
            await both_started.wait()
            with traced.user_span(f"in {name}"):
                await both_started.wait()
            step.end(None, None, 1)

        await asyncio.gather(work("a"), work("b"))
        end_run(run)

    asyncio.run(agent())
    assert traced.parents() == {
        "invoke_agent triage": None,
        "execute_tool a": "invoke_agent triage",
        "execute_tool b": "invoke_agent triage",
        "in a": "execute_tool a",
        "in b": "execute_tool b",
    }


def test_thread_without_a_context_hangs_its_steps_under_the_run(traced):
    run = traced.run()

    def job():
        assert not trace.get_current_span().get_span_context().is_valid
        step = run.start_step("look", "tool", "look#1", 1)
        with traced.user_span():
            step_is = step.span_id
        step.end(None, None, 1)
        assert not trace.get_current_span().get_span_context().is_valid
        return step_is

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(job).result() is not None
    end_run(run)
    assert traced.parents() == {
        "invoke_agent triage": None,
        "execute_tool look": "invoke_agent triage",
        "user's": "execute_tool look",
    }


def ids(span):
    return span.context.trace_id, span.context.span_id


def test_what_lies_in_another_trace_is_linked_to_its_run_and_nothing_else_is(traced):
    run = traced.run()
    run.start_step("near", "tool", "near#1", 1).end(None, None, 1)

    def serve():
        with traced.user_span("GET /"):
            scope = run.start_scope("away", "away")
            run.start_step("far", "tool", "far#1", 1).end(None, None, 1)
            scope.end(None)

    Context().run(serve)
    end_run(run)
    spans = {span.name: span for span in traced.exporter.get_finished_spans()}
    linked = {
        name: [(link.context.trace_id, link.context.span_id) for link in span.links]
        for name, span in spans.items()
    }
    to_run = [ids(spans["invoke_agent triage"])]
    assert linked == {
        "execute_tool near": [],
        "GET /": [],
        "invoke_agent away": to_run,
        "execute_tool far": to_run,
        "invoke_agent triage": [],
    }
    assert traced.parents()["execute_tool far"] == "invoke_agent away"


def test_a_run_that_began_elsewhere_is_linked_to_its_beginning_and_tells_no_totals_when_left(traced):
    run = traced.run(origin=("ab" * 16, "cd" * 8))
    run.end_part(BUDGET_ERROR)
    [span] = traced.exporter.get_finished_spans()
    [link] = span.links
    assert (f"{link.context.trace_id:x}", f"{link.context.span_id:x}") == ("ab" * 16, "cd" * 8)
    assert span.attributes["error.type"] == "agentguard.budget_exceeded"
    assert not any(
        name.startswith("agentguard.run.") for name in span.attributes if name != attributes.RUN_ID
    )
    assert not trace.get_current_span().get_span_context().is_valid


def test_the_span_of_a_step_that_an_observing_limit_had_no_room_for_says_so(traced):
    with Guard.in_memory(telemetry=traced.telemetry) as guard:
        with guard.run("trial", budget=Budget(steps=1, enforce=False)) as run:
            run.call("first", int)
            run.call("second", int)
        said = [event.data for event in guard.history(run.id) if event.type == "step_started"]
    first, second, _ = traced.exporter.get_finished_spans()
    assert ["would_stop" in (data or {}) for data in said] == [False, True]
    assert first.attributes["agentguard.decision"] == "allow"
    assert "agentguard.deny.reason" not in first.attributes
    assert second.attributes["agentguard.decision"] == "shadow_deny"
    assert second.attributes["agentguard.deny.reason"] == "budget_exceeded"
    assert "error.type" not in second.attributes


def test_a_run_that_nobody_owns_has_spans_where_it_is_joined(traced):
    with Guard.in_memory(telemetry=traced.telemetry) as guard:
        with guard.run("job", run_id="job", if_exists="join") as run:
            run.call("work", int)
        guard.end("job")
    created, step, joined = traced.exporter.get_finished_spans()  # in the order of their ends
    assert (created.name, joined.name, step.name) == (
        "invoke_agent job",
        "invoke_agent job",
        "execute_tool work",
    )
    [link] = joined.links
    assert (link.context.trace_id, link.context.span_id) == ids(created)
    assert step.parent.span_id == joined.context.span_id


def test_span_of_a_generator_is_current_only_while_its_body_runs(traced):
    run = traced.run()
    in_run = context.get_current()

    def numbers():
        step = run.start_step("numbers", "step", "numbers#1", 1)
        for _ in range(2):
            with traced.user_span("in the body"):
                pass
            step.suspend()
            yield
            step.resume()
        step.end(None, None, 1)
        step.resume()

    for _ in numbers():
        assert context.get_current() is in_run
        with traced.user_span("in the consumer"):
            pass
    assert context.get_current() is in_run
    end_run(run)
    assert traced.parents() == {
        "invoke_agent triage": None,
        "step numbers": "invoke_agent triage",
        "in the body": "step numbers",
        "in the consumer": "invoke_agent triage",
    }


def test_leaving_in_another_context_is_quiet_and_harmless(traced, caplog):
    elsewhere = copy_context()
    run = elsewhere.run(traced.run)
    step = elsewhere.run(run.start_step, "look", "tool", "look#1", 1)
    here = context.get_current()
    step.suspend()
    step.end(None, None, 1)
    end_run(run)
    assert context.get_current() is here
    assert len(traced.exporter.get_finished_spans()) == 2
    assert not caplog.records


def test_leaving_in_a_copy_of_the_context_leaves_that_copy(traced, caplog):
    before = context.get_current()
    run = traced.run()
    copy = copy_context()
    copy.run(end_run, run)
    assert copy.run(context.get_current) is before
    assert not caplog.records


def test_sampled_out_run_takes_what_is_inside_with_it(traced):
    class DropRuns(StaticSampler):
        def should_sample(self, parent_context, trace_id, name, *rest, **more):
            sampler = ALWAYS_OFF if name.startswith("invoke_agent") else ALWAYS_ON
            return sampler.should_sample(parent_context, trace_id, name, *rest, **more)

    out = Traced(TracerProvider(sampler=ParentBased(DropRuns(Decision.DROP))))
    run = out.run()
    step = run.start_step("look", "tool", "look#1", 1)
    with out.user_span() as inner:
        assert not inner.is_recording()
    assert step.trace_id == run.trace_id is not None
    step.end(OwnError(), {"tokens": 1}, 1)
    end_run(run)
    assert out.spans() == {}


def test_without_an_sdk_nothing_is_entered_and_there_are_no_ids(traced):
    before = context.get_current()
    run = Telemetry(NoOpTracerProvider(), NoOpMeterProvider()).start_run(
        name="triage", run_id="r1", tenant="acme"
    )
    step = run.start_step("look", "tool", "look#1", 1)
    assert context.get_current() is before
    assert (run.trace_id, run.span_id, step.trace_id, step.span_id) == (None,) * 4
    step.suspend()
    step.resume()
    step.refused(KILL_ERROR)
    step.end(None, {}, 1)
    end_run(run)
    assert context.get_current() is before


# --- failures of telemetry -------------------------------------------------------------------


class Broken:
    """Whatever is called of it raises; stands for a provider, a tracer and a span."""

    def __getattr__(self, name):
        raise OwnError(name)


class BrokenTracer:
    def get_tracer(self, *_):
        return Broken()


class BrokenSpan:
    def get_tracer(self, *_):
        return self

    def start_span(self, *_, **__):
        return Broken()


class BrokenEnd(SpanProcessor):
    def on_end(self, span):
        raise OwnError


class BrokenStart(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise OwnError


def broken_processor(processor):
    provider = TracerProvider()
    provider.add_span_processor(processor)
    return provider


@pytest.mark.parametrize(
    "providers",
    [
        (Broken(), Broken()),
        (BrokenTracer(), NoOpMeterProvider()),
        (BrokenSpan(), NoOpMeterProvider()),
        (broken_processor(BrokenEnd()), NoOpMeterProvider()),
        (broken_processor(BrokenStart()), NoOpMeterProvider()),
    ],
    ids=["providers", "tracer", "span", "on_end", "on_start"],
)
def test_broken_telemetry_is_told_once_and_harms_nobody(traced, providers, monkeypatch, caplog):
    monkeypatch.setattr(_harmless, "_first", threading.Lock())
    before = context.get_current()
    for _ in range(2):
        run = Telemetry(*providers).start_run(name="triage", run_id="r1", tenant="acme")
        for end in ("end", "refused"):
            step = run.start_step("look", "tool", "look#1", 1)
            step.suspend()
            step.resume()
            step.end(None, {"tokens": 1}, 1) if end == "end" else step.refused(KILL_ERROR)
        end_run(run)
    assert context.get_current() is before
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("agentguard", logging.WARNING)
    assert "telemetry failed" in record.message


def test_what_is_no_exception_of_telemetrys_own_gets_through():
    with pytest.raises(KeyboardInterrupt), _harmless.harmless:
        raise KeyboardInterrupt


def test_source_tree_that_was_not_installed_has_telemetry_too(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    traced = Traced()
    end_run(traced.run())
    assert list(traced.spans()) == ["invoke_agent triage"]


# --- metrics ---------------------------------------------------------------------------------


class Measured:
    def __init__(self, tracer_provider=None, **options):
        self.reader = InMemoryMetricReader()
        provider = MeterProvider([self.reader])
        self.telemetry = Telemetry(tracer_provider or NoOpTracerProvider(), provider, **options)
        self.run = self.telemetry.start_run(name="triage", run_id="r1", tenant="acme")

    def read(self):
        """Per instrument: its unit, and its points by their attributes."""
        data = self.reader.get_metrics_data()
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "agentguard"
        return {
            metric.name: (
                metric.unit,
                {
                    tuple(sorted(point.attributes.items())): (
                        point.value if hasattr(point, "value") else (point.sum, point.explicit_bounds)
                    )
                    for point in metric.data.data_points
                },
            )
            for metric in scope.metrics
        }


def point(value, **labels):
    return {tuple(sorted((key.replace("__", "."), text) for key, text in labels.items())): value}


def test_metrics_are_those_of_the_table():
    measured = Measured()
    run = measured.run
    run.start_step("ask", "llm", "ask#1", 1, MODEL).end(None, {"nano_usd": 5 * 10**8}, 2 * 10**9)
    run.start_step("look", "tool", "look#1", 1).end(TimeoutError(), None, 10**9)
    run.start_step("look", "tool", "look#2", 1).refused(BUDGET_ERROR)
    shadow = run.start_step("plan", "step", "plan#1", 1)
    shadow.would_refuse(BUDGET_ERROR)
    shadow.end(None, {}, 0)
    seconds = tuple(round(0.01 * 2**n, 2) for n in range(14))
    found = measured.read()
    assert found == {
        "agentguard.spend": (
            "{USD}",
            point(0.5, agentguard__step__kind="llm", gen_ai__request__model="gpt-4o-mini"),
        ),
        "agentguard.decisions": (
            "{decision}",
            point(1, agentguard__decision="allow", agentguard__step__kind="llm")
            | point(1, agentguard__decision="allow", agentguard__step__kind="tool")
            | point(
                1,
                agentguard__decision="deny",
                agentguard__deny__reason="budget_exceeded",
                agentguard__step__kind="tool",
            )
            | point(
                1,
                agentguard__decision="shadow_deny",
                agentguard__deny__reason="budget_exceeded",
                agentguard__step__kind="step",
            ),
        ),
        "agentguard.step.duration": (
            "s",
            point((2.0, seconds), agentguard__step__kind="llm", gen_ai__request__model="gpt-4o-mini")
            | point(
                (1.0, seconds),
                agentguard__step__kind="tool",
                gen_ai__tool__name="look",
                error__type="timeout",
            )
            | point((0.0, seconds), agentguard__step__kind="step"),
        ),
        "agentguard.runs.active": ("{run}", point(1)),
    }


def test_run_that_ended_is_not_active():
    measured = Measured()
    end_run(measured.run)
    assert measured.read()["agentguard.runs.active"] == ("{run}", point(0))


def test_tenant_is_on_spend_only_where_asked_for():
    measured = Measured(tenant_on_metrics=True)
    measured.run.start_step("a", "tool", "a#1", 1).end(None, {"nano_usd": 10**9}, 1)
    found = measured.read()
    assert found["agentguard.spend"][1] == point(
        1.0, agentguard__step__kind="tool", agentguard__tenant__id="acme"
    )
    others = [points for name, (_, points) in found.items() if name != "agentguard.spend"]
    assert "acme" not in str(others)


def test_broken_instruments_do_not_cost_the_span(traced, monkeypatch):
    monkeypatch.setattr(_harmless, "_first", threading.Lock())
    measured = Measured(traced.provider)
    measured.telemetry._instruments._decisions = Broken()
    measured.run.start_step("look", "tool", "look#1", 1).end(None, None, 1)
    end_run(measured.run)
    assert list(traced.spans()) == ["execute_tool look", "invoke_agent triage"]


# --- the examples ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spans", "facts", "_step"])
def test_examples_run(name):
    module = importlib.import_module(f"agentguard.telemetry.{name}")
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


def test_the_span_of_a_run_that_could_not_be_opened_ends_with_the_reason(traced):
    with Guard.in_memory(telemetry=traced.telemetry) as guard:
        with guard.run("first", run_id="taken"):
            pass
        with pytest.raises(RunExistsError), guard.run("second", run_id="taken"):
            pass
    span = traced.spans()["invoke_agent second"]
    assert span["status"][0] == "ERROR"
    assert span["attributes"]["error.type"].endswith("RunExistsError")
