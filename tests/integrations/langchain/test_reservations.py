"""No reservation is left, however a call ends."""

import asyncio
import contextlib
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from agentguard import Budget, Guard, RunState
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware

HI = {"messages": [("user", "hi")]}
GUARDS = pytest.mark.parametrize("guarded_by", ["handler", "middleware", "both"])
MODES = pytest.mark.parametrize("mode", ["sync", "async"])


def guards(guarded_by: str, **options: Any) -> tuple[list[Any], Any]:
    middleware = [] if guarded_by == "handler" else [GuardMiddleware(**options)]
    handlers = [] if guarded_by == "middleware" else [GuardCallbackHandler()]
    return middleware, {"callbacks": handlers, "configurable": {"thread_id": "t"}}


def waiting(scripted: Any) -> Any:
    """A model whose provider never answers, and what says that it was asked."""

    class Waiting(scripted):
        asked: Any = None

        async def _agenerate(
            self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any
        ) -> Any:
            self.asked.set()
            await asyncio.Event().wait()

    return Waiting(seen=[], settings=[], asked=asyncio.Event())


def outcomes(guard: Guard, run_id: str) -> list[tuple[str, Any]]:
    return [
        (event.type, (event.data or {}).get("outcome"))
        for event in guard.history(run_id)
        if event.type in {"step_completed", "step_failed"}
    ]


@pytest.mark.parametrize("guarded_by", ["handler", "middleware", "both"])
def test_a_cancelled_agent_holds_nothing(guard: Guard, scripted: Any, guarded_by: str) -> None:
    middleware, config = guards(guarded_by)
    left = []

    async def main() -> None:
        model = waiting(scripted)
        agent = create_agent(model, [], middleware=middleware)
        task = asyncio.create_task(agent.ainvoke(HI, config))
        await model.asked.wait()
        assert len(run.summary().open_steps) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        left.append(run.summary().open_steps)

    with guard.run("agent") as run:
        asyncio.run(main())
    assert left == [()]
    assert run.state is RunState.COMPLETED
    assert [kind for kind, _ in outcomes(guard, run.id)] == ["step_failed"]


@GUARDS
def test_an_agent_that_times_out_holds_nothing(guard: Guard, scripted: Any, guarded_by: str) -> None:
    middleware, config = guards(guarded_by)
    left = []

    async def main() -> None:
        model = waiting(scripted)
        agent = create_agent(model, [], middleware=middleware)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                asked = asyncio.create_task(agent.ainvoke(HI, config))
                await model.asked.wait()
                limit.reschedule(asyncio.get_running_loop().time())
                await asked
        await asyncio.sleep(0)
        left.append(run.summary().open_steps)

    with guard.run("agent") as run:
        asyncio.run(main())
    assert left == [()]
    assert [kind for kind, _ in outcomes(guard, run.id)] == ["step_failed"]


@GUARDS
def test_an_agent_cancelled_in_its_tools_holds_nothing(
    guard: Guard, model: Any, says: Any, guarded_by: str
) -> None:
    answer, wants = says
    model.script = [answer("", wants("wait", "c1"), wants("wait", "c2"))]
    middleware, config = guards(guarded_by)
    left = []

    async def main() -> None:
        called: asyncio.Queue[None] = asyncio.Queue()

        @tool
        async def wait() -> str:
            """Wait for ever."""
            called.put_nowait(None)
            await asyncio.Event().wait()
            return "never"

        agent = create_agent(model, [wait], middleware=middleware)
        task = asyncio.create_task(agent.ainvoke(HI, config))
        for _ in range(2):
            await called.get()
        assert len(run.summary().open_steps) == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        left.append(run.summary().open_steps)

    with guard.run("agent", budget=Budget(calls={"wait": 2})) as run:
        asyncio.run(main())
    assert left == [()]
    assert run.spent.steps == 3


@MODES
@GUARDS
def test_an_agents_stream_that_is_closed_early_holds_nothing(
    guard: Guard, model: Any, mode: str, guarded_by: str
) -> None:
    middleware, config = guards(guarded_by)
    agent = create_agent(model, [], middleware=middleware)
    left = []

    async def some() -> None:
        stream = agent.astream(HI, config, stream_mode="messages")
        async for _ in stream:
            break
        await stream.aclose()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*rest, return_exceptions=True)
        left.append(run.summary().open_steps)

    with guard.run("stream") as run:
        if mode == "async":
            asyncio.run(some())
        else:
            stream = agent.stream(HI, config, stream_mode="messages")
            next(stream)
            stream.close()
            left.append(run.summary().open_steps)
    assert left == [()]
    assert run.spent.steps == 1
    assert run.spent.tokens > 0


def test_a_cancelled_model_call_holds_nothing(guard: Guard, scripted: Any) -> None:
    """LangChain tells a handler neither of an end nor of an error then."""
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    left = []

    async def main() -> None:
        model = waiting(scripted)
        task = asyncio.create_task(model.ainvoke("hi", config))
        await model.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left.append(run.summary().open_steps)

    with guard.run("call") as run:
        asyncio.run(main())
    assert left == [()]


def test_a_model_call_that_times_out_holds_nothing(guard: Guard, scripted: Any) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    left = []

    async def main() -> None:
        model = waiting(scripted)
        with pytest.raises(TimeoutError):
            # A task of its own, as `wait_for` makes one by itself in Python 3.11 alone.
            await asyncio.wait_for(asyncio.create_task(model.ainvoke("hi", config)), 0.01)
        # From Python 3.12 on this task hears of the other's end first, and agentguard right behind it.
        await asyncio.sleep(0)
        left.append(run.summary().open_steps)

    with guard.run("call") as run:
        asyncio.run(main())
    assert left == [()]


def test_a_timeout_in_the_callers_own_task_is_settled_by_the_end_of_the_run(
    guard: Guard, scripted: Any
) -> None:
    """Nothing tells of it: no event, no end of a task, no end of a run around it."""
    config: Any = {"callbacks": [GuardCallbackHandler()]}

    async def main() -> None:
        model = waiting(scripted)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await model.ainvoke("hi", config)
        run.check()

    with guard.run("call") as run:
        asyncio.run(main())
    assert run.summary().open_steps == ()
    assert outcomes(guard, run.id) == [("step_failed", "abandoned")]
    assert run.spent.steps == 1


@MODES
def test_a_stream_that_is_closed_early_is_charged_its_reservation(
    guard: Guard, model: Any, mode: str
) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    bound = model.bind(max_tokens=40)

    async def some() -> None:
        stream = bound.astream("hi", config)
        async for _ in stream:
            break
        await stream.aclose()

    with guard.run("stream") as run:
        if mode == "async":
            asyncio.run(some())
        else:
            stream = bound.stream("hi", config)
            next(stream)
            stream.close()
        assert run.summary().open_steps == ()
    assert run.spent.output_tokens == 40


class Broken(BaseCallbackHandler):
    """Somebody else's handler that raises at one event."""

    raise_error = True
    run_inline = True

    def __init__(self, event: str) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError(event)

        setattr(self, event, fail)


@MODES
@GUARDS
@pytest.mark.parametrize(
    "event",
    ["on_chat_model_start", "on_llm_end", "on_llm_error", "on_tool_start", "on_tool_end", "on_chain_start"],
)
@pytest.mark.parametrize("first", [True, False], ids=["guard first", "guard last"])
def test_a_callback_of_somebody_else_that_raises_leaves_nothing(
    guard: Guard, model: Any, search: Any, says: Any, mode: str, guarded_by: str, event: str, first: bool
) -> None:
    answer, wants = says

    def script(number: int, messages: Any) -> Any:
        if event == "on_llm_error":
            raise OSError("no route to the provider")
        return answer("", wants("search", "c1", query="q")) if number == 1 else answer()

    model.script = script
    middleware, config = guards(guarded_by)
    broken = [Broken(event)]
    config["callbacks"] = [*config["callbacks"], *broken] if first else [*broken, *config["callbacks"]]
    agent = create_agent(model, [search[0]], middleware=middleware)
    left = []
    with contextlib.suppress(ZeroDivisionError, OSError), guard.run("agent") as run:
        try:
            asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)
        finally:
            left.append(run.summary().open_steps)
    assert left == [()]
    assert run.summary().open_steps == ()


@MODES
def test_a_call_that_never_got_to_the_provider_is_settled_at_the_end(
    guard: Guard, model: Any, mode: str
) -> None:
    """Without a chain around it, nothing says that somebody else's callback kept it from being made."""
    config: Any = {"callbacks": [GuardCallbackHandler(), Broken("on_chat_model_start")]}
    with pytest.raises(ZeroDivisionError), guard.run("call") as run:
        asyncio.run(model.ainvoke("hi", config)) if mode == "async" else model.invoke("hi", config)
    assert model.seen == []
    assert run.summary().open_steps == ()


@MODES
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_of_several_prompts_that_fails_leaves_nothing(
    guard: Guard, model: Any, mode: str, failing: int
) -> None:
    """`generate` with several prompts reports the failure of one, and in sync nothing of the others."""

    def script(number: int, messages: Any) -> Any:
        if messages[0].content == f"{failing}":
            raise OSError("no route to the provider")
        from langchain_core.messages import AIMessage

        return AIMessage("fine")

    model.script = script
    handler = GuardCallbackHandler()
    prompts: Any = [[HumanMessage(f"{n}")] for n in range(3)]
    with guard.run("calls") as run:
        with pytest.raises(OSError, match="no route"):
            if mode == "async":
                asyncio.run(model.agenerate(prompts, callbacks=[handler]))
            else:
                model.generate(prompts, callbacks=[handler])
        assert run.summary().open_steps == ()
        assert run.spent.steps == 3


@MODES
def test_several_prompts_of_which_one_is_refused_give_back_what_they_hold(
    guard: Guard, model: Any, mode: str
) -> None:
    handler = GuardCallbackHandler()
    prompts: Any = [[HumanMessage(f"{n}")] for n in range(5)]
    left = []
    with contextlib.suppress(Exception), guard.run("calls", budget=Budget(steps=3)) as run:
        try:
            if mode == "async":
                asyncio.run(model.agenerate(prompts, callbacks=[handler]))
            else:
                model.generate(prompts, callbacks=[handler])
        finally:
            left.append(run.summary().open_steps)
    assert left == [()]
    assert model.seen == []
    assert run.spent.steps == 0
    assert run.state is RunState.FAILED
