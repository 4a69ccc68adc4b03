"""Text completions: other callbacks see them, and a batch is charged what it reports."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, LLMResult

from agentguard import Budget, BudgetExceededError, Guard
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware


class Completion(BaseLLM):
    """Reports one usage for all prompts of a call, as providers do."""

    report: bool = True
    fails: bool = False

    @property
    def _llm_type(self) -> str:
        return "completion"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": "c1", "max_tokens": 256}

    def _generate(
        self, prompts: list[str], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> LLMResult:
        if self.fails:
            raise ConnectionError
        usage = {"prompt_tokens": 5 * len(prompts), "completion_tokens": len(prompts)}
        return LLMResult(
            generations=[[Generation(text="ok")] for _ in prompts],
            llm_output={"token_usage": usage} if self.report else None,
        )


class Sync(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("start")

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("end")


class Async(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("start")

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append("end")


class Inline(Sync):
    run_inline = True


# --- who sees them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tracer", [Sync, Async, Inline])
@pytest.mark.parametrize("inside", [False, True], ids=["outside a run", "in a run"])
def test_other_handlers_see_async_completions_once_a_middleware_was_made(
    guard: Guard, tracer: Any, inside: bool
) -> None:
    GuardMiddleware()
    handler = tracer()

    async def main() -> None:
        await Completion().ainvoke("hello", config={"callbacks": [handler]})

    if inside:
        with guard.run("r"):
            asyncio.run(main())
    else:
        asyncio.run(main())
    assert handler.seen == ["start", "end"]


@pytest.mark.parametrize("tracer", [Sync, Async, Inline])
@pytest.mark.parametrize("guard_first", [False, True])
def test_other_handlers_see_what_a_guard_counts(guard: Guard, tracer: Any, guard_first: bool) -> None:
    handler = tracer()
    both = [GuardCallbackHandler(), handler] if guard_first else [handler, GuardCallbackHandler()]
    with guard.run("r") as run:
        asyncio.run(Completion().ainvoke("hello", config={"callbacks": both}))
    assert handler.seen == ["start", "end"]
    assert run.spent.steps == 1
    assert run.spent.tokens == 6


def test_a_guard_beside_an_inline_handler_is_not_passed_by(guard: Guard) -> None:
    """LangChain tells the inline ones alone, if there is one."""
    handlers = [Inline(), GuardCallbackHandler(), Async()]
    with pytest.raises(BudgetExceededError), guard.run("r", budget=Budget(steps=2)) as run:
        for _ in range(3):
            asyncio.run(Completion().ainvoke("hello", config={"callbacks": handlers}))
    assert run.spent.steps == 2


@pytest.mark.parametrize("inside", [False, True], ids=["outside a run", "in a run"])
def test_events_of_an_async_completion_are_streamed(guard: Guard, inside: bool) -> None:
    GuardMiddleware()

    async def main() -> list[str]:
        return [event["event"] async for event in Completion().astream_events("hello", version="v2")]

    if inside:
        with guard.run("r"):
            events = asyncio.run(main())
    else:
        events = asyncio.run(main())
    assert {"on_llm_start", "on_llm_end"} <= set(events)


# --- what a batch is charged -----------------------------------------------------------------------------


def by_batch(model: Completion, prompts: list[str], config: Any) -> None:
    model.batch(prompts, config=config)


def by_abatch(model: Completion, prompts: list[str], config: Any) -> None:
    asyncio.run(model.abatch(prompts, config=config))


def by_generate(model: Completion, prompts: list[str], config: Any) -> None:
    model.generate(prompts, callbacks=config["callbacks"])


def by_agenerate(model: Completion, prompts: list[str], config: Any) -> None:
    asyncio.run(model.agenerate(prompts, callbacks=config["callbacks"]))


every_way = pytest.mark.parametrize("way", [by_batch, by_abatch, by_generate, by_agenerate])


@every_way
@pytest.mark.parametrize("prompts", [1, 2, 5])
def test_a_batch_is_charged_what_it_reports(guard: Guard, way: Any, prompts: int) -> None:
    with guard.run("r", budget=Budget(tokens=100_000)) as run:
        way(Completion(), ["hello"] * prompts, {"callbacks": [GuardCallbackHandler()]})
    assert run.spent.tokens == 6 * prompts
    assert run.spent.steps == prompts
    assert run.summary().open_steps == ()


@every_way
def test_a_batch_that_reports_nothing_is_charged_its_reservations(guard: Guard, way: Any) -> None:
    with guard.run("r", budget=Budget(tokens=100_000)) as run:
        way(Completion(report=False), ["hello"] * 3, {"callbacks": [GuardCallbackHandler()]})
    assert run.spent.tokens == 3 * (2 + 256)


@every_way
def test_a_batch_that_fails_is_charged_its_reservations(guard: Guard, way: Any) -> None:
    with guard.run("r", budget=Budget(tokens=100_000)) as run, pytest.raises(ConnectionError):
        way(Completion(fails=True), ["hello"] * 3, {"callbacks": [GuardCallbackHandler()]})
    assert run.spent.tokens == 3 * (2 + 256)
    assert run.summary().open_steps == ()


def test_two_batches_do_not_answer_for_each_other(guard: Guard) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    with guard.run("r", budget=Budget(tokens=100_000)) as run:
        Completion().batch(["hello"] * 2, config=config)
        Completion(report=False).batch(["hello"] * 2, config=config)
    assert run.spent.tokens == 12 + 2 * (2 + 256)
