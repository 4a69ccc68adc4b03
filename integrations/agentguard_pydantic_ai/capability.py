"""`GuardCapability`: what makes a Pydantic AI agent a guarded one."""

from __future__ import annotations

import copy
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering

from agentguard.cost.prices import ModelPrices
from agentguard.cost.usage import ModelCosts, Unpriced
from agentguard.values import ExactCodec
from agentguard_pydantic_ai import _mapping as m
from agentguard_pydantic_ai._request import Guarding, active_run
from agentguard_pydantic_ai.model import guarded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic_ai import RunContext
    from pydantic_ai.capabilities.abstract import WrapRunHandler, WrapToolExecuteHandler
    from pydantic_ai.messages import ToolCallPart
    from pydantic_ai.models import Model
    from pydantic_ai.run import AgentRunResult
    from pydantic_ai.tools import ToolDefinition

    from agentguard import Run
    from agentguard.protocols import PriceBook

_RESULTS = ExactCodec()


@dataclass
class GuardCapability(AbstractCapability[Any]):
    """Every model request and every tool call of an agent is a guarded step of the active run.

    Each attempt at a request counts, retries and fallbacks too; streams are looked at event by event.
    A stop is raised as it is and ends the agent.

    Args:
        run: the run that pays; by default the one that is active when the agent is run.
        prices: what models cost; by default genai-prices.
        unpriced: `"refuse"` (default) or `"allow"` requests to a model without a price where USD are
            limited.
        max_output_tokens: sent as `max_tokens` with requests that name none; without it, a request that
            names none is reserved by an estimate and may overshoot.
        clamp: lower `max_tokens` to what the run's budget leaves.
        tool_options: options of `guarded_step` by tool name: `{"send_email": {"usage": Usage(emails=1)}}`.

    Example:
        >>> from agentguard import Budget, Guard
        >>> from agentguard_pydantic_ai import GuardCapability
        >>> from pydantic_ai import Agent
        >>> from pydantic_ai.models.test import TestModel
        >>> agent = Agent(TestModel(), capabilities=[GuardCapability()])
        >>> with Guard.in_memory() as guard, guard.run("greet", budget=Budget(tokens=10_000)) as run:
        ...     answer = agent.run_sync("Hello!").output
        >>> answer, run.spent.steps
        ('success (no tool calls)', 1)
    """

    run: Run | None = None
    _: KW_ONLY
    prices: PriceBook | None = None
    unpriced: Unpriced = "refuse"
    max_output_tokens: int | None = None
    clamp: bool = True
    tool_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: One for each agent: where it is given twice, the one closer to the run is used.
    id: str | None = "agentguard"
    _guarding: Guarding | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._costs = ModelCosts(
            self.prices or ModelPrices(),
            unpriced=self.unpriced,
            max_output_tokens=self.max_output_tokens,
            clamp=self.clamp,
        )

    @classmethod
    def combine(cls, capabilities: Sequence[AbstractCapability[Any]]) -> AbstractCapability[Any]:
        """The last one is used."""
        return capabilities[-1]

    @classmethod
    def get_serialization_name(cls) -> str | None:
        """None: a guard is given in code."""
        return None

    def get_ordering(self) -> CapabilityOrdering:
        """Innermost: what other capabilities repeat is counted each time."""
        return CapabilityOrdering(position="innermost")

    async def for_run(self, ctx: RunContext[Any]) -> GuardCapability:
        """The capability for one run of the agent, with a branch of its own."""
        run = active_run(self.run)
        name = getattr(ctx.agent, "name", None) or "agent"
        with run.branch(name) as branch:
            pass
        bound = copy.copy(self)
        bound._guarding = Guarding(self._costs, run, branch)  # noqa: SLF001 - a copy of this
        return bound

    def _bound(self) -> Guarding:
        return self._guarding or Guarding(self._costs, active_run(self.run))

    async def wrap_run(self, ctx: RunContext[Any], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """A stop that something in the agent has swallowed ends it all the same."""
        run = active_run(self._bound().run)
        run.check()
        result = await handler()
        run.check()
        return result

    def get_wrapper_model(self, model: Model) -> Model | None:
        """Called for every attempt at a request."""
        return guarded(model, self._bound())

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """One tool call as one step, at its place in the answer that asked for it."""
        guarding = self._bound()
        run = active_run(guarding.run)

        carried_out = False

        async def tool(**arguments: Any) -> Any:
            nonlocal carried_out
            carried_out = True
            return await run.shield(handler(arguments))

        options = {
            "kind": "tool",
            "codec": _RESULTS,
            "free_on": m.DEFERRALS,
            "attributes": {"gen_ai.tool.name": call.tool_name, "gen_ai.tool.call.id": call.tool_call_id},
            **self.tool_options.get(call.tool_name, {}),
        }
        if guarding.branch is not None:
            place = f"turn{ctx.run_step}.{m.place_of(ctx.messages, call)}"
            options["branch"] = guarding.branch.child(place)
        result = await run.apply(call.tool_name, tool, (), args, **options)
        if not carried_out:  # the framework counts those that it carries out itself
            ctx.usage.tool_calls += 1
        return result
