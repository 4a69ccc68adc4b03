"""How long an answer may be: what is reserved for it, and what is sent."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage

from agentguard import Budget, Guard, RunState
from agentguard.cost.prices import ModelPrices
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware

HI = {"messages": [("user", "hi")]}
#: One dollar for a million tokens of input, two for output.
PRICES = ModelPrices({"scripted": {"input": 1, "output": 2}}, fallback=None)


def reserved(guard: Guard, run: Any) -> dict[str, int]:
    [started] = [e for e in guard.history(run.id) if e.type == "step_started"]
    return dict((started.data or {})["reserve"])


def test_a_call_reserves_its_prompt_and_the_bound_of_its_answer(guard: Guard, model: Any) -> None:
    from langchain_core.messages.utils import count_tokens_approximately

    config: Any = {"callbacks": [GuardCallbackHandler(prices=PRICES)]}
    with guard.run("ask") as run:
        model.bind(max_tokens=70).invoke("hi", config)
    given = count_tokens_approximately([HumanMessage("hi")])
    found = reserved(guard, run)
    assert (found["input_tokens"], found["output_tokens"], found["tokens"]) == (given, 70, given + 70)
    assert found["nano_usd"] == given * 1000 + 70 * 2000


def test_the_bound_is_taken_from_the_call_then_the_model_then_its_profile(
    guard: Guard, model: Any, scripted: Any
) -> None:
    class Bounded(scripted):
        max_tokens: int | None = None

    def bound(**settings: Any) -> int:
        one = Bounded(seen=[], settings=[], profile={"max_output_tokens": 900}, **settings)
        agent = create_agent(one, [], middleware=[GuardMiddleware()])
        with guard.run("ask") as run:
            agent.invoke(HI)
        return reserved(guard, run)["output_tokens"]

    assert bound(max_tokens=30) == 30
    assert bound() == 900


@pytest.mark.parametrize(
    "budget",
    [Budget(tokens=200), Budget(output_tokens=190), Budget(usd="0.0004")],
    ids=["tokens", "output_tokens", "usd"],
)
@pytest.mark.parametrize("guarded_by", ["middleware", "both"])
def test_the_middleware_sends_what_the_budget_leaves(
    guard: Guard, model: Any, guarded_by: str, budget: Budget
) -> None:
    agent = create_agent(model, [], middleware=[GuardMiddleware(prices=PRICES)])
    handlers = [GuardCallbackHandler(prices=PRICES)] if guarded_by == "both" else []
    with guard.run("ask", budget=budget) as run:
        for _ in range(2):
            agent.invoke(HI, {"callbacks": handlers})
    first, second = (settings["max_tokens"] for settings in model.settings)
    assert 0 < second < first <= 200
    assert run.state is RunState.COMPLETED


def test_the_middleware_leaves_a_bound_alone_that_the_budget_allows(guard: Guard, model: Any) -> None:
    agent = create_agent(model, [], middleware=[GuardMiddleware()])
    with guard.run("ask"):
        agent.invoke(HI)
    with guard.run("ask", budget=Budget(tokens=1_000_000)):
        agent.invoke(HI)
    # Limited, and nobody knows the longest answer of this model: then it gets a bound.
    assert [settings.get("max_tokens") for settings in model.settings] == [None, 4096]


def test_agents_side_by_side_find_room_for_answers_of_any_length(guard: Guard, scripted: Any) -> None:
    """A model that could use up the whole budget gets a quarter of what is left for one answer."""
    model = scripted(seen=[], settings=[], profile={"max_output_tokens": 64_000})
    agent = create_agent(model, [], middleware=[GuardMiddleware()])

    async def four() -> None:
        await asyncio.gather(*(agent.ainvoke(HI) for _ in range(4)))

    with guard.run("ask", budget=Budget(tokens=50_000)) as run:
        asyncio.run(four())
    sent = [settings["max_tokens"] for settings in model.settings]
    assert run.state is RunState.COMPLETED
    assert sum(sent) < 50_000
    assert min(sent) >= 4096


def test_the_middleware_need_not_clamp(guard: Guard, model: Any) -> None:
    agent = create_agent(model, [], middleware=[GuardMiddleware(clamp=False)])
    with guard.run("ask", budget=Budget(tokens=200)):
        agent.invoke(HI)
    assert "max_tokens" not in model.settings[0]


def test_the_bound_goes_by_the_name_that_the_model_has_for_it(guard: Guard, scripted: Any) -> None:
    class Local(scripted):
        num_predict: int | None = None

    model = Local(seen=[], settings=[])
    agent = create_agent(model, [], middleware=[GuardMiddleware()])
    with guard.run("ask", budget=Budget(tokens=200)):
        agent.invoke(HI)
    assert model.settings[0]["num_predict"] <= 200


def test_the_scope_here_is_clamped_to_as_well(guard: Guard, model: Any) -> None:
    agent = create_agent(model, [], middleware=[GuardMiddleware()])
    with (
        guard.run("ask", budget=Budget(tokens=100_000)) as run,
        run.scope("part", Budget(tokens=300)) as scope,
    ):
        agent.invoke(HI)
        assert scope.spent.tokens == 15
    assert model.settings[0]["max_tokens"] <= 300


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"unpriced": "perhaps"}, ValueError),
        ({"max_output_tokens": 0}, ValueError),
        ({"outside": "maybe"}, ValueError),
    ],
)
@pytest.mark.parametrize("cls", [GuardCallbackHandler, GuardMiddleware])
def test_a_wrong_option_is_an_error_at_once(cls: Any, option: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(option))):
        cls(**option)
