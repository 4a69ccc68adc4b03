"""A budget worth 3 calls and 20 tries, and a kill at the second call: by every way to call a model or a tool."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain_core.tools import BaseTool
from langchain_core.tools import tool as make_tool

from agentguard import Budget, BudgetExceededError, Guard, KillSwitchTriggeredError, RunState
from agentguard_langchain import GuardCallbackHandler

TRIES = 20


def quietly(call: Callable[[], Any]) -> None:
    """As an agent that survives everything."""
    with contextlib.suppress(Exception):
        call()


def invoke(model: Any, config: Any) -> None:
    for n in range(TRIES):
        quietly(lambda n=n: model.invoke(f"try {n}", config))


def stream(model: Any, config: Any) -> None:
    for n in range(TRIES):
        quietly(lambda n=n: list(model.stream(f"try {n}", config)))


def batch(model: Any, config: Any) -> None:
    quietly(lambda: model.batch([f"try {n}" for n in range(TRIES)], config))


def batch_exceptions(model: Any, config: Any) -> None:
    answers = model.batch([f"try {n}" for n in range(TRIES)], config, return_exceptions=True)
    assert len(answers) == TRIES


def generate(model: Any, config: Any) -> None:
    from langchain_core.messages import HumanMessage

    for n in range(TRIES):
        quietly(lambda n=n: model.generate([[HumanMessage(f"try {n}")]], callbacks=config["callbacks"]))


def with_retry(model: Any, config: Any) -> None:
    tried = model.with_retry(stop_after_attempt=TRIES, wait_exponential_jitter=False)
    invoke(tried, config)


def with_fallbacks(model: Any, config: Any) -> None:
    invoke(model.with_fallbacks([model, model]), config)


async def quietly_async(call: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        await call()


async def ainvoke(model: Any, config: Any) -> None:
    for n in range(TRIES):
        await quietly_async(lambda n=n: model.ainvoke(f"try {n}", config))


async def astream(model: Any, config: Any) -> None:
    async def whole(n: int) -> None:
        async for _ in model.astream(f"try {n}", config):
            pass

    for n in range(TRIES):
        await quietly_async(lambda n=n: whole(n))


async def abatch(model: Any, config: Any) -> None:
    await quietly_async(lambda: model.abatch([f"try {n}" for n in range(TRIES)], config))
    # It raises with the first refusal, while the calls that were let in are still on their way.
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


async def abatch_exceptions(model: Any, config: Any) -> None:
    await model.abatch([f"try {n}" for n in range(TRIES)], config, return_exceptions=True)


async def astream_events(model: Any, config: Any) -> None:
    async def whole(n: int) -> None:
        async for _ in model.astream_events(f"try {n}", config, version="v2"):
            pass

    for n in range(TRIES):
        await quietly_async(lambda n=n: whole(n))


async def awith_retry(model: Any, config: Any) -> None:
    await ainvoke(model.with_retry(stop_after_attempt=TRIES, wait_exponential_jitter=False), config)


async def awith_fallbacks(model: Any, config: Any) -> None:
    await ainvoke(model.with_fallbacks([model, model]), config)


SYNC = [invoke, stream, batch, batch_exceptions, generate, with_retry, with_fallbacks]
ASYNC = [
    ainvoke,
    astream,
    abatch,
    abatch_exceptions,
    astream_events,
    awith_retry,
    awith_fallbacks,
]
WAYS = pytest.mark.parametrize("way", [*SYNC, *ASYNC], ids=lambda way: way.__name__)
OTHERS = pytest.mark.parametrize("beside", ["alone", "inline", "not inline"])


def call(way: Callable[..., Any], model: Any, config: Any) -> None:
    if asyncio.iscoroutinefunction(way):
        asyncio.run(way(model, config))
    else:
        way(model, config)


@OTHERS
@WAYS
def test_three_calls_of_a_model_are_made(
    guard: Guard, model: Any, others: Any, way: Callable[..., Any], beside: str
) -> None:
    config = {"callbacks": [GuardCallbackHandler(), *others]}
    with (
        pytest.raises(BudgetExceededError) as stopped,
        guard.run("agent", budget=Budget(calls={"kind:llm": 3})) as run,
    ):
        call(way, model, config)
    assert len(model.seen) == 3
    assert stopped.value is run.stop
    assert run.state is RunState.FAILED
    termination = guard.summary(run.id).termination
    assert termination is not None
    assert (termination["type"], termination["resource"]) == ("BudgetExceededError", "calls:kind:llm")
    assert run.summary().open_steps == ()
    assert guard.verify(run.id)


@OTHERS
@WAYS
def test_a_kill_at_the_second_call_is_the_end(
    guard: Guard, model: Any, others: Any, way: Callable[..., Any], beside: str
) -> None:
    config = {"callbacks": [GuardCallbackHandler(), *others], "max_concurrency": 1}
    with pytest.raises(KillSwitchTriggeredError, match="enough"), guard.run("agent") as run:
        model.during = lambda number: number == 2 and run.kill("enough")
        call(way, model, config)
    assert len(model.seen) == 2
    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


def tool_invoke(tool: BaseTool, config: Any) -> None:
    for n in range(TRIES):
        quietly(lambda n=n: tool.invoke({"query": f"try {n}"}, config))


def tool_batch(tool: BaseTool, config: Any) -> None:
    tool.batch([{"query": f"try {n}"} for n in range(TRIES)], config, return_exceptions=True)


async def tool_ainvoke(tool: BaseTool, config: Any) -> None:
    for n in range(TRIES):
        await quietly_async(lambda n=n: tool.ainvoke({"query": f"try {n}"}, config))


TOOL_WAYS = pytest.mark.parametrize(
    "way", [tool_invoke, tool_batch, tool_ainvoke], ids=lambda way: way.__name__
)


@OTHERS
@TOOL_WAYS
def test_a_kill_at_the_second_call_of_a_tool_is_the_end(
    guard: Guard, others: Any, way: Callable[..., Any], beside: str
) -> None:
    called: list[str] = []

    @make_tool
    def search(query: str) -> str:
        """Search."""
        called.append(query)
        if len(called) == 2:
            run.kill("enough")
        return "found"

    config = {"callbacks": [GuardCallbackHandler(), *others], "max_concurrency": 1}
    with pytest.raises(KillSwitchTriggeredError, match="enough"), guard.run("agent") as run:
        call(way, search, config)
    assert len(called) == 2
    assert run.state is RunState.KILLED
    assert run.summary().open_steps == ()


@OTHERS
@TOOL_WAYS
def test_three_calls_of_a_tool_are_made(
    guard: Guard, search: Any, others: Any, way: Callable[..., Any], beside: str
) -> None:
    tool, called = search
    config = {"callbacks": [GuardCallbackHandler(), *others]}
    with (
        pytest.raises(BudgetExceededError),
        guard.run("agent", budget=Budget(calls={"search": 3})) as run,
    ):
        call(way, tool, config)
    assert len(called) == 3
    assert run.state is RunState.FAILED
    termination = guard.summary(run.id).termination
    assert termination is not None
    assert (termination["type"], termination["resource"]) == ("BudgetExceededError", "calls:search")
    assert run.summary().open_steps == ()


def test_calls_that_are_reserved_exactly_fit_a_budget_exactly(guard: Guard, model: Any) -> None:
    """Tokens reserved by a bound, in threads: three times the reservation is three calls."""
    from langchain_core.messages import HumanMessage

    from agentguard_langchain._prompt import prompt

    given = prompt([HumanMessage("try")]).tokens
    bound = model.bind(max_tokens=5)
    config = {"callbacks": [GuardCallbackHandler()]}
    with (
        pytest.raises(BudgetExceededError) as stopped,
        guard.run("agent", budget=Budget(output_tokens=15)) as run,
    ):
        bound.batch(["try"] * TRIES, config, return_exceptions=True)
    assert len(model.seen) == 3
    assert run.spent.output_tokens == 15
    assert (stopped.value.resource, stopped.value.requested) == ("output_tokens", 5)
    assert given > 0
