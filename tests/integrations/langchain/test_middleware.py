"""What only the middleware can do: options of tools, soft refusals, a soft landing, calls outside a run."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.tools import tool

from agentguard import Budget, BudgetExceededError, Guard, NoActiveRunError, RunState, Usage, current_step
from agentguard_langchain import GuardCallbackHandler, GuardMiddleware

HI = {"messages": [("user", "hi")]}
MODES = pytest.mark.parametrize("mode", ["sync", "async"])


def go(agent: Any, mode: str, config: Any = None) -> Any:
    return asyncio.run(agent.ainvoke(HI, config)) if mode == "async" else agent.invoke(HI, config)


def mailer() -> tuple[Any, list[str]]:
    sent: list[str] = []

    @tool
    def send_email(to: str, body: str) -> str:
        """Send."""
        step = current_step()
        assert step is not None
        sent.append(step.idempotency_key)
        return f"sent to {to}"

    return send_email, sent


def mails(says: Any, number: int) -> Any:
    """A script: this many mails in one message, then the end."""
    answer, wants = says

    def script(n: int, messages: Any) -> Any:
        if n > 1:
            return answer("done")
        return answer("", *(wants("send_email", f"c{i}", to=f"ann{i}", body="hello") for i in range(number)))

    return script


@MODES
def test_a_tool_has_the_options_of_a_guarded_step(guard: Guard, model: Any, says: Any, mode: str) -> None:
    send_email, sent = mailer()
    model.script = mails(says, 1)
    options: dict[str, Any] = {
        "name": "mail",
        "effect": "idempotent",
        "key": lambda to, body: f"mail-{to}",
        "usage": Usage(emails=1, usd="0.01"),
        "ignore": ("body",),
    }
    agent = create_agent(
        model, [send_email], middleware=[GuardMiddleware(tool_options={"send_email": options})]
    )
    with guard.run("agent") as run:
        go(agent, mode)
    [started] = [e for e in guard.history(run.id) if e.name == "mail" and e.type == "step_started"]
    assert started.key == "key:mail-ann0"
    assert (started.data or {})["effect"] == "idempotent"
    assert (run.spent["emails"], str(run.spent.usd)) == (1, "0.01")
    assert len(sent) == 1


def test_what_a_tool_used_may_be_known_afterwards(guard: Guard, model: Any, says: Any) -> None:
    send_email, _ = mailer()
    model.script = mails(says, 1)
    options = {
        "reserve": lambda to, body: Usage(letters=100),
        "usage": lambda result, to, body: Usage(letters=len(body)),
    }
    agent = create_agent(
        model, [send_email], middleware=[GuardMiddleware(tool_options={"send_email": options})]
    )
    with guard.run("agent") as run:
        agent.invoke(HI)
    assert run.spent["letters"] == 5


@pytest.mark.parametrize(
    "options",
    [{"kindd": "tool"}, {"codec": object()}, {"outside": "allow"}, {"usage": lambda result: Usage()}],
    ids=lambda options: next(iter(options)),
)
def test_a_wrong_tool_option_is_an_error_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="send_email"):
        GuardMiddleware(tool_options={"send_email": options})


@MODES
@pytest.mark.parametrize("soft", [True, ["send_email"]], ids=["all", "by name"])
@pytest.mark.parametrize(
    "budget", [Budget(calls={"send_email": 2}), Budget(emails=2)], ids=["calls", "own counter"]
)
def test_a_soft_tool_is_refused_with_a_word_to_the_model(
    guard: Guard, model: Any, says: Any, mode: str, soft: Any, budget: Budget
) -> None:
    """Side by side too: of five calls exactly two are made, and the agent goes on."""
    send_email, sent = mailer()
    model.script = mails(says, 5)
    options = {"send_email": {"usage": Usage(emails=1)}}
    agent = create_agent(model, [send_email], middleware=[GuardMiddleware(tool_options=options, soft=soft)])
    with guard.run("agent", budget=budget) as run:
        result = go(agent, mode)
    assert run.state is RunState.COMPLETED
    assert len(sent) == 2
    told = [m for m in result["messages"] if m.type == "tool" and m.status == "error"]
    assert len(told) == 3
    assert "refused: its limit of" in told[0].content
    assert result["messages"][-1].content == "done"


def test_a_tool_that_is_not_soft_ends_the_run(guard: Guard, model: Any, says: Any) -> None:
    send_email, sent = mailer()
    model.script = mails(says, 5)
    agent = create_agent(model, [send_email], middleware=[GuardMiddleware(soft=["search"])])
    with pytest.raises(BudgetExceededError), guard.run("agent", budget=Budget(calls={"send_email": 2})):
        agent.invoke(HI)
    assert len(sent) == 2


@MODES
def test_an_operators_no_is_told_to_the_model_if_the_tool_is_soft(
    guard: Guard, model: Any, says: Any, mode: str, eventually: Any
) -> None:
    import threading

    send_email, sent = mailer()
    model.script = mails(says, 1)
    options = {"send_email": {"approval": True}}
    agent = create_agent(model, [send_email], middleware=[GuardMiddleware(tool_options=options, soft=True)])
    results: list[Any] = []
    with guard.run("agent") as run:

        def agents_thread() -> None:
            results.append(go(agent, mode))

        thread = threading.Thread(target=run.bind(agents_thread))
        thread.start()
        eventually(guard.approvals)
        guard.deny(run.id, guard.approvals()[0].key, reason="not today")
        thread.join()
    assert sent == []
    assert "denied it (not today)" in results[0]["messages"][-2].content
    assert run.state is RunState.COMPLETED


# --- the soft landing ----------------------------------------------------------------------------


def for_ever(says: Any) -> Any:
    """A script that asks for tools as long as it is given any."""
    answer, wants = says

    def script(number: int, messages: Any) -> Any:
        if messages[-1].type == "human" and len(messages) > 1:
            return answer(f"an answer after {number} calls")
        return answer("", wants("search", f"c{number}", query=f"q{number}"))

    return script


@MODES
@pytest.mark.parametrize("guarded_by", ["middleware", "both"])
@pytest.mark.parametrize(
    "budget",
    [
        Budget(steps=9),
        Budget(steps=100, warn_at=0.05),
        Budget(tokens=2000, warn_at=0.02),
        Budget(calls={"kind:llm": 4}),
        Budget(calls={"chat scripted": 4}),
        Budget(searches=10, warn_at=0.3),
    ],
    ids=["last steps", "steps", "tokens", "llm calls", "calls by name", "own counter"],
)
def test_an_agent_ends_with_an_answer_before_the_hard_stop(
    guard: Guard, model: Any, search: Any, says: Any, mode: str, guarded_by: str, budget: Budget
) -> None:
    model.script = for_ever(says)
    options = {"search": {"usage": Usage(searches=1)}}
    agent = create_agent(model, [search[0]], middleware=[GuardMiddleware(wrap_up=True, tool_options=options)])
    config: Any = {"callbacks": [GuardCallbackHandler()] if guarded_by == "both" else []}
    with guard.run("agent", budget=budget) as run:
        result = go(agent, mode, config)
    assert run.state is RunState.COMPLETED
    assert result["messages"][-1].content.startswith("an answer after")
    assert "final answer now" in model.seen[-1][-1].content
    assert "tools" not in model.settings[-1]
    assert "tools" in model.settings[0]
    # The word was for the model alone: the conversation does not hold it.
    assert not any("final answer now" in str(m.content) for m in result["messages"])


def test_the_word_to_finish_may_be_ones_own(guard: Guard, model: Any, search: Any, says: Any) -> None:
    model.script = for_ever(says)
    agent = create_agent(model, [search[0]], middleware=[GuardMiddleware(wrap_up="Schluss jetzt.")])
    with guard.run("agent", budget=Budget(steps=5)):
        agent.invoke(HI)
    assert model.seen[-1][-1].content == "Schluss jetzt."


def test_the_budget_of_the_scope_here_lands_softly_too(
    guard: Guard, model: Any, search: Any, says: Any
) -> None:
    model.script = for_ever(says)
    agent = create_agent(model, [search[0]], middleware=[GuardMiddleware(wrap_up=True)])
    with guard.run("agent") as run, run.scope("part", Budget(steps=6)):
        result = agent.invoke(HI)
    assert result["messages"][-1].content.startswith("an answer after")


# --- outside a run -------------------------------------------------------------------------------


@MODES
def test_an_agent_outside_a_run_is_refused(model: Any, search: Any, mode: str) -> None:
    agent = create_agent(model, [search[0]], middleware=[GuardMiddleware()])
    with pytest.raises(NoActiveRunError, match=r"model call of an agent.*guard\.run"):
        go(agent, mode)
    assert model.seen == []


@MODES
def test_calls_outside_a_run_are_refused(model: Any, search: Any, mode: str) -> None:
    config: Any = {"callbacks": [GuardCallbackHandler()]}
    with pytest.raises(NoActiveRunError, match=r"chat scripted.*run\.bind"):
        asyncio.run(model.ainvoke("hi", config)) if mode == "async" else model.invoke("hi", config)
    with pytest.raises(NoActiveRunError, match="search is guarded"):
        search[0].invoke({"query": "q"}, config)
    assert (model.seen, search[1]) == ([], [])


@MODES
def test_calls_outside_a_run_may_be_allowed(model: Any, search: Any, says: Any, mode: str) -> None:
    answer, wants = says
    model.script = lambda n, m: answer("", wants("search", "c1", query="q")) if n == 1 else answer("done")
    agent = create_agent(model, [search[0]], middleware=[GuardMiddleware(outside="allow")])
    result = go(agent, mode, {"callbacks": [GuardCallbackHandler(outside="allow")]})
    assert result["messages"][-1].content == "done"
    assert search[1] == ["q"]


def test_a_test_may_allow_calls_outside(model: Any) -> None:
    from agentguard.testing import allow_outside

    agent = create_agent(model, [], middleware=[GuardMiddleware()])
    with allow_outside():
        agent.invoke(HI, {"callbacks": [GuardCallbackHandler()]})
    assert len(model.seen) == 1


def test_a_run_may_be_given(guard: Guard, model: Any, search: Any, says: Any) -> None:
    """Then the calls are that run's in any thread; what they are asked tells threads apart."""
    import threading

    answer, wants = says
    model.script = lambda n, m: answer("", wants("search", "c1", query="q")) if n == 1 else answer("done")
    with guard.run("agent") as run:
        agent = create_agent(model, [search[0]], middleware=[GuardMiddleware(run)])
        thread = threading.Thread(target=agent.invoke, args=(HI, {"callbacks": [GuardCallbackHandler(run)]}))
        thread.start()
        thread.join()
    assert run.spent.steps == 3
    keys = [str(e.key).split("/", 2) for e in guard.history(run.id) if e.type == "step_started"]
    assert {(main, asked[0]) for main, asked, _ in keys} == {("main", "~")}
    assert [key for _, _, key in keys] == [
        "model@1/chat scripted#1",
        "tools@2.0/search#1",
        "model@3/chat scripted#1",
    ]
