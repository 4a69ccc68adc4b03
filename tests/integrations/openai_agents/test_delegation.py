"""What the SDK looks up on models and agents is found as without the guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    Model,
    ModelProvider,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    OutputGuardrail,
    RunConfig,
    Runner,
    function_tool,
)
from agents.testing import ScriptedModel, assistant_message, function_call
from openai import AsyncOpenAI

from agentguard import Guard
from agentguard_openai_agents import GuardedModel, GuardedModelProvider, GuardHooks, guard_agent

CONFIG = {"tracing_disabled": True}


class Provider(ModelProvider):
    """Serves a scripted model under every name."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []
        self.closed = 0

    def get_model(self, model_name: str | None) -> Model:
        self.asked.append(model_name)
        return ScriptedModel([[assistant_message("hi")]])

    async def aclose(self) -> None:
        self.closed += 1


def run(agent: Agent[Any], **options: Any) -> Any:
    return asyncio.run(Runner.run(agent, "go", **options))


def run_streamed(agent: Agent[Any], **options: Any) -> Any:
    async def main() -> Any:
        result = Runner.run_streamed(agent, "go", **options)
        async for _ in result.stream_events():
            pass
        return result

    return asyncio.run(main())


# --- providers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drive", [run, run_streamed])
@pytest.mark.parametrize("model", ["gpt-5", "house/model", None])
@pytest.mark.parametrize("as_dict", [False, True])
def test_the_provider_of_the_run_configuration_serves_a_named_model(
    guard: Guard, drive: Any, model: str | None, as_dict: bool
) -> None:
    provider = Provider()
    config: Any = {**CONFIG, "model_provider": provider}
    agent = guard_agent(Agent(name="a", model=model))
    with guard.run("r") as opened:
        result = drive(agent, hooks=GuardHooks(), run_config=config if as_dict else RunConfig(**config))
    assert result.final_output == "hi"
    assert len(provider.asked) == 1
    assert model is None or provider.asked == [model]
    assert opened.spent.steps == 1


def test_an_agent_has_the_provider_of_each_of_its_runs(guard: Guard) -> None:
    agent, first, second = guard_agent(Agent(name="a", model="gpt-5")), Provider(), Provider()

    async def main() -> None:
        configs = [RunConfig(model_provider=provider, **CONFIG) for provider in (first, second, first)]
        await asyncio.gather(*(Runner.run(agent, "go", run_config=config) for config in configs))

    with guard.run("r"):
        asyncio.run(main())
    assert (len(first.asked), len(second.asked)) == (2, 1)
    assert first.closed == second.closed == 0  # whoever gave them closes them, as without the guard


def test_a_given_provider_goes_before_that_of_the_run_configuration(guard: Guard) -> None:
    given, other = Provider(), Provider()
    agent = guard_agent(Agent(name="a", model="gpt-5"), provider=given)
    with guard.run("r"):
        run(agent, run_config=RunConfig(model_provider=other, **CONFIG))
    assert (given.asked, other.asked) == (["gpt-5"], [])


@pytest.mark.parametrize("drive", [run, run_streamed])
def test_a_provider_that_nobody_gave_is_closed_with_the_run(
    guard: Guard, drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Provider] = []

    def make() -> Provider:
        made.append(Provider())
        return made[-1]

    monkeypatch.setattr("agentguard_openai_agents._runner.MultiProvider", make)
    with guard.run("r"):
        drive(guard_agent(Agent(name="a", model="gpt-5")), run_config=CONFIG)
    assert [provider.closed for provider in made] == [1]


# --- attributes and class --------------------------------------------------------------------------------


def client() -> AsyncOpenAI:
    return AsyncOpenAI(api_key="x", base_url="http://127.0.0.1:9")


@pytest.mark.parametrize("inner", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
def test_a_guarded_model_answers_for_all_that_is_not_guarded(inner: Any) -> None:
    model = inner(model="gpt-5", openai_client=client())
    guarded: Any = GuardedModel(model)
    assert isinstance(guarded, GuardedModel)
    assert isinstance(guarded, inner)
    assert guarded.model == "gpt-5"
    assert guarded._client is model._client
    assert guarded._supports_default_prompt_cache_key() == model._supports_default_prompt_cache_key()
    missing = [name for name in dir(model) if not hasattr(guarded, name)]
    assert missing == []
    with pytest.raises(AttributeError):
        guarded.no_such_thing  # noqa: B018 - the look-up is the test


def test_a_guarded_provider_answers_for_all_that_is_not_guarded() -> None:
    provider = Provider()
    assert GuardedModelProvider(provider).asked is provider.asked


def test_chat_completions_with_output_guardrails_and_a_conversation_are_allowed_as_without_the_guard(
    guard: Guard,
) -> None:
    class Chat(OpenAIChatCompletionsModel):
        async def get_response(self, *args: Any, **options: Any) -> Any:
            return await ScriptedModel([[assistant_message("hi")]]).get_response(*args, **options)

    def passes(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(None, tripwire_triggered=False)

    agent = Agent(
        name="a",
        model=Chat(model="gpt-5", openai_client=client()),
        output_guardrails=[OutputGuardrail(passes)],
    )
    with guard.run("r") as opened:
        bare = run(agent, conversation_id="c1", run_config=CONFIG)
        guarded = run(guard_agent(agent), conversation_id="c1", run_config=CONFIG)
    assert bare.final_output == guarded.final_output == "hi"
    assert opened.spent.steps == 1


def test_the_prompt_cache_key_is_sent_as_without_the_guard(guard: Guard) -> None:
    sent: list[ModelSettings] = []

    class Caching(ScriptedModel):
        def _supports_default_prompt_cache_key(self) -> bool:
            return True

        async def get_response(self, *args: Any, **options: Any) -> Any:
            sent.append(options.get("model_settings") or args[2])
            return await super().get_response(*args, **options)

    for guarded in (False, True):
        agent = Agent(name="a", model=Caching([[assistant_message("hi")]]))
        with guard.run("r"):
            run(guard_agent(agent) if guarded else agent, run_config=RunConfig(group_id="g", **CONFIG))
    assert sent[0].extra_args
    assert sent[0].extra_args == sent[1].extra_args


# --- lists of the original -------------------------------------------------------------------------------


@function_tool
def later() -> str:
    """Added later."""
    return "later"


@pytest.mark.parametrize("of", ["original", "copy"])
def test_a_tool_that_is_appended_later_is_found_and_guarded(guard: Guard, of: str) -> None:
    model = ScriptedModel([[function_call("later", {}, call_id="c1")], [assistant_message("done")]])
    agent: Agent[None] = Agent(name="a", model=model, tools=[])
    guarded = guard_agent(agent)
    (agent if of == "original" else guarded).tools.append(later)
    with guard.run("r") as opened:
        assert run(guarded, hooks=GuardHooks(), run_config=CONFIG).final_output == "done"
    assert [event.name for event in guard.history(opened.id) if event.type == "step_started"].count(
        "later"
    ) == 1
    assert guarded.tools is guarded.tools
    assert guarded.tools[0] is not later


def test_a_tool_that_is_removed_later_is_gone() -> None:
    agent: Agent[None] = Agent(name="a", tools=[later])
    guarded = guard_agent(agent)
    assert [tool.name for tool in guarded.tools] == ["later"]
    agent.tools.clear()
    assert guarded.tools == []


def test_an_agent_that_is_appended_to_the_handoffs_later_is_guarded(guard: Guard) -> None:
    second: Agent[None] = Agent(name="second", model=ScriptedModel([[assistant_message("from second")]]))
    hand_over = function_call("transfer_to_second", {}, call_id="c1")
    first: Agent[None] = Agent(name="first", model=ScriptedModel([[hand_over]]))
    guarded = guard_agent(first)
    first.handoffs.append(second)
    with guard.run("r") as opened:
        assert run(guarded, hooks=GuardHooks(), run_config=CONFIG).final_output == "from second"
    assert opened.spent.steps == 2


def test_a_list_that_is_assigned_is_the_agents_own() -> None:
    agent: Agent[None] = Agent(name="a", tools=[])
    guarded = guard_agent(agent)
    own: list[Any] = [later]
    guarded.tools = own
    agent.tools.append(later)
    assert guarded.tools is own
    assert len(own) == 1


def test_a_clone_of_a_guarded_agent_is_guarded(guard: Guard) -> None:
    model = ScriptedModel([[function_call("later", {}, call_id="c1")], [assistant_message("done")]])
    cloned = guard_agent(Agent(name="a", model=model, tools=[later])).clone(name="b")
    with guard.run("r") as opened:
        run(cloned, hooks=GuardHooks(), run_config=CONFIG)
    assert opened.spent.steps == 3


# --- call ids that repeat --------------------------------------------------------------------------------


@function_tool
def note(text: str) -> str:
    """Note something."""
    return text


def keys_of(guard: Guard, run_id: str) -> list[str]:
    return [str(event.key) for event in guard.history(run_id) if event.type == "step_started"]


@pytest.mark.parametrize("drive", [run, run_streamed])
def test_call_ids_that_repeat_between_agents_do_not_mix_their_branches(guard: Guard, drive: Any) -> None:
    """As those of models that number their calls from 1 in each answer."""

    def agents() -> list[Agent[None]]:
        script = [[function_call("note", {"text": "x"}, call_id="call_1")], [assistant_message("done")]]
        return [guard_agent(Agent(name=name, model=ScriptedModel(script), tools=[note])) for name in "abc"]

    def program() -> None:
        for agent in agents():
            drive(agent, hooks=GuardHooks(), run_config=CONFIG)

    with guard.run("r") as opened:
        program()
    keys = keys_of(guard, opened.id)
    agent_runs = [key.split("/")[1] for key in keys]
    assert agent_runs == ["agent#1"] * 3 + ["agent#2"] * 3 + ["agent#3"] * 3
    with guard.replay(opened.id):
        program()


def test_call_ids_that_repeat_in_agents_side_by_side_do_not_mix_their_branches(guard: Guard) -> None:
    async def main() -> None:
        script = [[function_call("note", {"text": "x"}, call_id="call_1")], [assistant_message("done")]]
        agents = [guard_agent(Agent(name=name, model=ScriptedModel(script), tools=[note])) for name in "ab"]
        await asyncio.gather(*(Runner.run(agent, "go", run_config=CONFIG) for agent in agents))

    with guard.run("r") as opened:
        asyncio.run(main())
    branches = [key.rpartition("/")[0] for key in keys_of(guard, opened.id) if "/note" in key]
    assert len(set(branches)) == 2
    with guard.replay(opened.id):
        asyncio.run(main())


# --- events that are dicts -------------------------------------------------------------------------------


class Dicts(Model):
    """Streams its events as dicts, as some models of others do."""

    async def get_response(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    async def stream_response(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
        item = {"type": "function_call", "call_id": "c1", "name": "note", "arguments": "{}"}
        usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
        yield {"type": "response.output_text.delta", "delta": "h"}
        yield {"type": "response.output_item.done", "item": item}
        yield {"type": "response.completed", "response": {"output": [item], "usage": usage}}


def test_events_that_are_dicts_are_passed_on_charged_and_replayed(guard: Guard) -> None:
    async def main() -> list[Any]:
        asked = (None, "go", ModelSettings(), [], None, [], None)
        stream = GuardedModel(Dicts()).stream_response(
            *asked, previous_response_id=None, conversation_id=None, prompt=None
        )
        return [event async for event in stream]

    with guard.run("r") as opened:
        events = asyncio.run(main())
    assert [event["type"].rpartition(".")[2] for event in events] == ["delta", "done", "completed"]
    assert (opened.spent.input_tokens, opened.spent.output_tokens) == (7, 3)
    with guard.replay(opened.id):
        assert asyncio.run(main()) == events[1:]
