"""Tokens and money: what is reserved, what is charged, and calls that nobody can price."""

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from agentguard import Budget, BudgetExceededError, Guard, RunState, UnknownCostError, Usage
from agentguard.cost.prices import ModelPrices
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware

HI = {"messages": [("user", "hi")]}
#: One dollar for a million tokens of input, two for output, half for cached ones.
PRICES = ModelPrices({"scripted": {"input": 1, "output": 2, "cached": "0.5"}}, fallback=None)
#: What the scripted answer uses: 10 in (4 of them cached), 5 out (2 of them reasoning).
CHARGED = Usage(input_tokens=10, output_tokens=5, cached_tokens=4, reasoning_tokens=2, usd="0.000018")


def through_handler(model: Any, **options: Any) -> Callable[[str], Any]:
    config: Any = {"callbacks": [GuardCallbackHandler(**options)]}

    def ask(mode: str) -> Any:
        if mode == "invoke":
            return model.invoke("hi", config)
        if mode == "stream":
            return list(model.stream("hi", config))
        if mode == "ainvoke":
            return asyncio.run(model.ainvoke("hi", config))

        async def whole() -> Any:
            return [chunk async for chunk in model.astream("hi", config)]

        return asyncio.run(whole())

    return ask


def through_agent(model: Any, *, handler: bool, **options: Any) -> Callable[[str], Any]:
    agent = create_agent(model, [], middleware=[GuardMiddleware(**options)])
    config: Any = {"callbacks": [GuardCallbackHandler(**options)] if handler else []}

    def ask(mode: str) -> Any:
        if mode == "invoke":
            return agent.invoke(HI, config)
        if mode == "stream":
            return list(agent.stream(HI, config, stream_mode="messages"))
        if mode == "ainvoke":
            return asyncio.run(agent.ainvoke(HI, config))

        async def whole() -> Any:
            return [chunk async for chunk in agent.astream(HI, config, stream_mode="messages")]

        return asyncio.run(whole())

    return ask


GUARDED: dict[str, Callable[..., Callable[[str], Any]]] = {
    "handler": through_handler,
    "middleware": lambda model, **options: through_agent(model, handler=False, **options),
    "both": lambda model, **options: through_agent(model, handler=True, **options),
}


@pytest.mark.parametrize("guarded_by", GUARDED)
@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
def test_a_call_is_charged_once_what_its_answer_reports(
    guard: Guard, model: Any, guarded_by: str, mode: str
) -> None:
    ask = GUARDED[guarded_by](model, prices=PRICES)
    with guard.run("ask") as run:
        ask(mode)
    assert run.spent == CHARGED + Usage.from_amounts({"steps": 1})
    assert len(model.seen) == 1


def test_two_handlers_and_a_middleware_count_a_call_once(guard: Guard, model: Any) -> None:
    agent = create_agent(model, [], middleware=[GuardMiddleware()])
    with guard.run("ask") as run:
        agent.invoke(HI, {"callbacks": [GuardCallbackHandler(), GuardCallbackHandler()]})
        model.invoke("hi", {"callbacks": [GuardCallbackHandler(), GuardCallbackHandler()]})
    assert run.spent.steps == 2
    assert run.spent.tokens == 30


@pytest.mark.parametrize("guarded_by", GUARDED)
@pytest.mark.parametrize("mode", ["invoke", "astream"])
def test_an_answer_that_reports_no_usage_is_charged_its_reservation(
    guard: Guard, model: Any, says: Any, guarded_by: str, mode: str
) -> None:
    model.script = [says[0]("one two", usage=None)]
    ask = GUARDED[guarded_by](model, prices=PRICES, max_output_tokens=100)
    with guard.run("ask") as run:
        ask(mode)
    assert run.spent.output_tokens == 100
    assert run.spent.usd > Decimal("0.0002")


@pytest.mark.parametrize("guarded_by", GUARDED)
def test_a_call_that_fails_is_charged_its_reservation(guard: Guard, model: Any, guarded_by: str) -> None:
    def script(number: int, messages: Any) -> Any:
        raise OSError("no route to the provider")

    model.script = script
    ask = GUARDED[guarded_by](model, max_output_tokens=100)
    with guard.run("ask", budget=Budget(tokens=1000)) as run:
        with pytest.raises(OSError, match="no route"):
            ask("invoke")
        assert run.spent.output_tokens == 100
    assert run.state is RunState.COMPLETED


@pytest.mark.parametrize("guarded_by", GUARDED)
@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_an_answer_from_langchains_cache_costs_nothing(
    guard: Guard, model: Any, guarded_by: str, mode: str
) -> None:
    model.cache = InMemoryCache()
    ask = GUARDED[guarded_by](model, prices=PRICES)
    with guard.run("first") as first:
        ask(mode)
    with guard.run("again") as again:
        ask(mode)
    assert len(model.seen) == 1
    assert first.spent.tokens == 15
    assert (again.spent.tokens, again.spent.usd, again.spent.steps) == (0, 0, 1)


def test_an_answer_whose_usage_makes_no_sense_is_charged_its_reservation(guard: Guard, model: Any) -> None:
    handler = GuardCallbackHandler(max_output_tokens=100)
    with guard.run("ask") as run:
        for usage in (
            {"input_tokens": -1, "output_tokens": 5},
            {"output_tokens": "many"},
            {"total_tokens": 3},
        ):
            message = AIMessage("hi")
            message.usage_metadata = usage
            model.script = [message]
            model.invoke("hi", {"callbacks": [handler]})
    assert run.spent.output_tokens == 300


def test_an_end_that_nobody_saw_begin_is_charged(guard: Guard) -> None:
    from uuid import uuid4

    handler = GuardCallbackHandler(prices=PRICES)
    usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    message = AIMessage("hi", usage_metadata=usage, response_metadata={"model_name": "scripted"})
    with guard.run("ask") as run:
        call_id = uuid4()
        for _ in range(2):
            handler.on_llm_end(LLMResult(generations=[[ChatGeneration(message=message)]]), run_id=uuid4())
        handler.on_llm_end(LLMResult(generations=[]), run_id=call_id)
    assert (run.spent.tokens, run.spent.usd) == (30, Decimal("0.00004"))
    assert not guard.summary(run.id).bounded


def test_text_completion_is_guarded_too(guard: Guard) -> None:
    llm = FakeListLLM(responses=["fine"])
    config: Any = {"callbacks": [GuardCallbackHandler(max_output_tokens=50)]}
    with pytest.raises(BudgetExceededError), guard.run("complete", budget=Budget(steps=2)) as run:
        llm.invoke("hi", config)
        asyncio.run(llm.ainvoke("hi", config))
        llm.invoke("hi", config)
    assert run.spent.output_tokens == 100
    names = [e.name for e in guard.history(run.id) if e.type == "step_started"]
    assert names == ["text_completion fake-list"] * 2


# --- prices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded_by", GUARDED)
@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
def test_a_model_without_a_price_is_refused_where_money_is_limited(
    guard: Guard, model: Any, guarded_by: str, mode: str
) -> None:
    model.model_name = "gpt-unheard-of"
    ask = GUARDED[guarded_by](model, prices=PRICES)
    with (
        pytest.raises(
            UnknownCostError, match=r"gpt-unheard-of.*prices=ModelPrices.*unpriced='allow'"
        ) as stopped,
        guard.run("ask", budget=Budget(usd=1)) as run,
    ):
        for _ in range(3):
            with pytest.raises(UnknownCostError):
                ask(mode)
    assert model.seen == []
    assert stopped.value.resources == ("usd",)
    assert run.state is RunState.FAILED
    kinds = [e.type for e in guard.history(run.id)]
    assert kinds == ["run_created", "run_started", "step_refused", "run_failed"]


@pytest.mark.parametrize("guarded_by", GUARDED)
def test_a_model_without_a_price_may_be_allowed(guard: Guard, model: Any, guarded_by: str) -> None:
    model.model_name = "gpt-unheard-of"
    ask = GUARDED[guarded_by](model, prices=PRICES, unpriced="allow")
    with guard.run("ask", budget=Budget(usd=1, tokens=50_000)) as run:
        ask("invoke")
    assert (run.spent.usd, run.spent.tokens) == (0, 15)


def test_a_model_without_a_price_needs_none_where_only_tokens_are_limited(guard: Guard, model: Any) -> None:
    with guard.run("ask", budget=Budget(tokens=50_000)) as run:
        model.invoke("hi", {"callbacks": [GuardCallbackHandler()]})
    assert run.spent.tokens == 15
