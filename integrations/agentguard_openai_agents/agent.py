"""`guard_agent`: a guarded copy of an agent and of those it hands over to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from agents import Agent, ModelProvider
from agents.models import get_default_model

from agentguard_openai_agents.model import GuardedModel
from agentguard_openai_agents.tools import guard_tools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentguard import Run
    from agentguard.cost.usage import Unpriced
    from agentguard.protocols import PriceBook

C = TypeVar("C")


def guard_agent(
    agent: Agent[C],
    run: Run | None = None,
    *,
    provider: ModelProvider | None = None,
    prices: PriceBook | None = None,
    unpriced: Unpriced = "refuse",
    max_output_tokens: int | None = None,
    clamp: bool = True,
    tool_options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Agent[C]:
    """A copy of an agent, its model and function tools guarded, and so for the agents it hands over to.

    Agents behind `handoff(...)` objects and `as_tool()` are out of reach: guard them before you pass
    them there.

    Args:
        agent: the agent; it stays as it is.
        run: the run that pays; by default the one that is active when the agent is run.
        provider: resolves the names of models; by default the SDK's own.
        prices: what models cost; by default genai-prices.
        unpriced: `"refuse"` (default) or `"allow"` calls of a model without a price where USD are limited.
        max_output_tokens: sent as `max_tokens` with calls that name none; without it, such a call is
            reserved by an estimate and may overshoot.
        clamp: lower `max_tokens` to what the run's budget leaves.
        tool_options: options of `guarded_step` by tool name: `{"send_email": {"usage": Usage(emails=1)}}`.

    Example:
        >>> from agentguard import Budget, Guard
        >>> from agentguard_openai_agents import GuardHooks, guard_agent
        >>> from agents import Agent, RunConfig, Runner
        >>> from agents.testing import ScriptedModel, assistant_message
        >>> agent = guard_agent(Agent(name="greeter", model=ScriptedModel([[assistant_message("Hello!")]])))
        >>> with Guard.in_memory() as guard, guard.run("greet", budget=Budget(tokens=10_000)) as run:
        ...     result = Runner.run_sync(
        ...         agent, "Hi", hooks=GuardHooks(), run_config=RunConfig(tracing_disabled=True)
        ...     )
        >>> result.final_output, run.spent.steps
        ('Hello!', 1)
    """
    models: dict[str, Any] = {
        "provider": provider,
        "prices": prices,
        "unpriced": unpriced,
        "max_output_tokens": max_output_tokens,
        "clamp": clamp,
    }
    return _guard(agent, run, models, tool_options or {}, {})


def _guard(
    agent: Agent[Any],
    run: Run | None,
    models: dict[str, Any],
    tool_options: Mapping[str, Mapping[str, Any]],
    done: dict[int, Agent[Any]],
) -> Agent[Any]:
    if id(agent) in done:
        return done[id(agent)]
    copied = agent.clone(
        model=GuardedModel(agent.model or get_default_model(), run, **models),
        tools=guard_tools(agent.tools, run, tool_options=tool_options),
    )
    # Those that the SDK chose for the model's name; it takes them back where it sees no name.
    copied.model_settings = agent.model_settings
    done[id(agent)] = copied
    copied.handoffs = [
        _guard(other, run, models, tool_options, done) if isinstance(other, Agent) else other
        for other in agent.handoffs
    ]
    return copied
