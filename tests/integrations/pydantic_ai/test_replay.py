"""A replay gives the agent what it had: results of every type, errors, counts, agents side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ImageUrl, ToolReturn
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agentguard import Guard
from agentguard_pydantic_ai import GuardCapability

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

IMAGE = BinaryContent(data=b"\x89PNG", media_type="image/png")


class Weather(BaseModel):
    sky: str
    degrees: int | None = None


RESULTS = [
    Weather(sky="blue"),
    [Weather(sky="grey", degrees=9)],
    ToolReturn(return_value="seen", content=["look:", IMAGE], metadata={"at": Fraction(1, 3)}),
    IMAGE,
    ["a picture", ImageUrl("https://example.org/a.png")],
    {"sky": ("blue", b"\x00")},
    None,
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda value: type(value).__name__)
def test_a_tools_result_of_any_type_comes_back(
    guard: Guard, script: Any, go: Callable[..., Any], result: Any
) -> None:
    def parts() -> list[Any]:
        script.turns, script.parallel = 1, 1
        script.requests.clear()
        agent = Agent(script.model, capabilities=[GuardCapability()])

        @agent.tool_plain
        def add(a: int, b: int) -> Any:
            script.ran.append((a, b))
            return result

        answered = go(agent)
        assert answered.usage.tool_calls == 1
        found = [part for message in answered.all_messages() for part in message.parts]
        return [getattr(part, "content", None) for part in found]

    with guard.run("agent") as run:
        live = parts()
    with guard.replay(run.id):
        assert parts() == live
    assert len(script.ran) == 1


@pytest.mark.parametrize("words", [(), ("one ", "two ")], ids=["at once", "in the middle"])
def test_a_stream_that_fails_fails_again(guard: Guard, words: tuple[str, ...]) -> None:
    asked = []

    async def broken(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        asked.append(messages)
        for word in words:
            yield word
        raise ModelHTTPError(503, "house")

    async def main() -> list[str]:
        agent = Agent(FunctionModel(stream_function=broken), capabilities=[GuardCapability()])
        seen = []
        with pytest.raises(ModelHTTPError) as caught:
            async with agent.run_stream("go") as stream:
                seen += [text async for text in stream.stream_text(debounce_by=None)]
        assert caught.value.status_code == 503
        return seen

    with guard.run("agent") as run:
        asyncio.run(main())
    with guard.replay(run.id):
        asyncio.run(main())
    assert len(asked) == 1


def test_a_fallback_of_a_stream_is_taken_again(guard: Guard) -> None:
    async def down(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        raise ModelHTTPError(503, "down")
        yield ""

    async def up(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield "from the second"

    async def main() -> str:
        model = FallbackModel(FunctionModel(stream_function=down), FunctionModel(stream_function=up))
        async with Agent(model, capabilities=[GuardCapability()]).run_stream("go") as stream:
            return await stream.get_output()

    with guard.run("agent") as run:
        assert asyncio.run(main()) == "from the second"
    with guard.replay(run.id):
        assert asyncio.run(main()) == "from the second"


def test_agents_side_by_side_are_replayed_where_the_run_is_opened_outside_the_loop(
    guard: Guard, script: Any
) -> None:
    async def main() -> list[str]:
        script.turns = 0
        agent = script.agent()
        return [done.output for done in await asyncio.gather(*(agent.run(str(n)) for n in range(5)))]

    with guard.run("agents") as run:
        live = asyncio.run(main())
    with guard.replay(run.id):
        assert asyncio.run(main()) == live
    assert len(script.requests) == 5
