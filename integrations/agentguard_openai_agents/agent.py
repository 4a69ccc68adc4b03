"""`guard_agent`: a guarded copy of an agent and of those it hands over to."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from agents import Agent, ModelProvider
from agents.models import get_default_model

from agentguard_openai_agents.model import GuardedModel
from agentguard_openai_agents.tools import guard_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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

    Tools and agents that are appended to the original's lists later are found, and guarded too.  Agents
    behind `handoff(...)` objects and `as_tool()` are out of reach: guard them before you pass them there.

    Args:
        agent: the agent; it stays as it is.
        run: the run that pays; by default the one that is active when the agent is run.
        provider: resolves the names of models; by default the one of the run configuration, as without
            the guard.
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
    guarded: Agent[C] = _Guarding(run, models, tool_options or {}).agent(agent)
    return guarded


class _Guarding:
    """How the agents of one `guard_agent` are guarded; each has one copy."""

    def __init__(
        self, run: Run | None, models: dict[str, Any], tool_options: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._run = run
        self._models = models
        self._tool_options = tool_options
        #: By the original's id; the original is held, so that no other gets its id.
        self._copies: dict[int, tuple[Agent[Any], Agent[Any]]] = {}

    def agent(self, original: Agent[Any]) -> Any:
        """The guarded copy of an agent."""
        if id(original) in self._copies:
            return self._copies[id(original)][1]
        model = GuardedModel(original.model or get_default_model(), self._run, **self._models)
        copied = original.clone(model=model, tools=[], handoffs=[])
        # Those that the SDK chose for the model's name; it takes them back where it sees no name.
        copied.model_settings = original.model_settings
        cls: Any = type(copied)
        copied.__class__ = _guarded_class(cls)
        self._copies[id(original)] = original, copied
        for name, guarded in (("tools", self._tool), ("handoffs", self._handoff)):
            vars(copied)[f"_guarded_{name}"] = _Followed(original, name, guarded)
        return copied

    def _tool(self, tool: Any) -> Any:
        return guard_tools([tool], self._run, tool_options=self._tool_options)[0]

    def _handoff(self, other: Any) -> Any:
        return self.agent(other) if isinstance(other, Agent) else other


class _Followed:
    """A list of an agent, and the guarded form of what is in it."""

    def __init__(self, original: Agent[Any], name: str, guarded: Callable[[Any], Any]) -> None:
        self._original = original
        self._name = name
        self._guarded = guarded
        #: What the original had, by its id, with the guarded form; both are held, so that ids stay theirs.
        self._theirs: dict[int, tuple[Any, Any]] = {}
        #: The guarded forms of what was appended to the copy itself.
        self._own: list[Any] = []

    def update(self, held: list[Any]) -> None:
        """Bring the copy's list in step: what the original has, then what was appended to the copy."""
        theirs = {id(form) for _, form in self._theirs.values()}
        known = {id(form) for form in self._own}
        appended = [item for item in held if id(item) not in theirs]
        self._own = [item if id(item) in known else self._guarded(item) for item in appended]
        wanted = [*map(self._form, getattr(self._original, self._name)), *self._own]
        if [*map(id, held)] != [*map(id, wanted)]:
            held[:] = wanted

    def _form(self, item: Any) -> Any:
        if id(item) not in self._theirs:
            self._theirs[id(item)] = item, self._guarded(item)
        return self._theirs[id(item)][1]


class _FollowedList:
    """An attribute of a guarded agent: brought in step when it is read.  An assigned list is its own."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, agent: Any, owner: type | None = None) -> Any:
        if agent is None:
            raise AttributeError(self._name)  # it has no default on the class
        held = vars(agent)[self._name]
        followed: _Followed | None = vars(agent).get(f"_guarded_{self._name}")
        if followed is not None:
            followed.update(held)
        return held

    def __set__(self, agent: Any, value: Any) -> None:
        vars(agent)[self._name] = value
        vars(agent).pop(f"_guarded_{self._name}", None)


@cache
def _guarded_class(cls: Any) -> Any:
    members = {name: _FollowedList(name) for name in ("tools", "handoffs")}
    return type(cls.__name__, (cls,), {**members, "__module__": cls.__module__, "__doc__": cls.__doc__})
