"""Run hooks that look for a stop before every model call and tool call, and count what no wrapper sees."""

from __future__ import annotations

from typing import Any

from agents import Agent, ModelResponse, RunContextWrapper, RunHooks, Tool, TResponseInputItem
from agents.exceptions import AgentsException

from agentguard import AgentGuardError, Run
from agentguard_openai_agents._calls import active_run, calls_of
from agentguard_openai_agents.stops import sdk_stops
from agentguard_openai_agents.tools import is_guarded


class UnguardedModelError(AgentGuardError, AgentsException):
    """A model was called past the guard: it came from the run configuration, or from a `Handoff`.

    Wrap it: `RunConfig(model=GuardedModel(...))`, `RunConfig(model_provider=GuardedModelProvider())`.
    """


class GuardHooks(RunHooks[Any]):
    """Looks for a stop before every model call and every local tool call.

    A local tool without a guard of its own (shell, computer, apply_patch, tools of MCP servers) is
    admitted and counted as a step when it starts; its step is over then, and is not replayable.

    Args:
        run: the run; by default the one that is active.
        strict: raise `UnguardedModelError` when an answer came from a model that is not guarded.
    """

    def __init__(self, run: Run | None = None, *, strict: bool = True) -> None:
        self._run = run
        self._strict = strict

    async def on_llm_start(
        self,
        context: RunContextWrapper[Any],
        agent: Agent[Any],
        system_prompt: str | None,
        input_items: list[TResponseInputItem],
    ) -> None:
        """Raise a stop before the model is called."""
        with sdk_stops():
            active_run(self._run).check()

    async def on_llm_end(
        self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse
    ) -> None:
        """See that the answer went through the guard."""
        calls = calls_of(active_run(self._run))
        calls.seen += 1
        if self._strict and calls.seen > calls.guarded:
            calls.seen = calls.guarded
            raise UnguardedModelError(
                f"the model of agent {agent.name!r} was called past the guard: wrap it with GuardedModel, "
                "or give RunConfig(model_provider=GuardedModelProvider()); it was not charged"
            )

    async def on_tool_start(self, context: RunContextWrapper[Any], agent: Any, tool: Tool) -> None:
        """Raise a stop before a local tool runs; admit and count one that has no guard of its own."""
        run = active_run(self._run)
        with sdk_stops():
            run.check()
            if not is_guarded(tool):
                call_id = getattr(context, "tool_call_id", None)
                branch = calls_of(run).branch_of(call_id)
                async with run.step(tool.name, kind="tool", branch=branch):
                    pass  # the runner goes on from here; nothing is told if it fails
