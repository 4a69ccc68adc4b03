"""What the SDK's runner knows and tells no model: which call of the runner this is, and its provider.

A model is not told who asks it, and an agent that names its model leaves it to the run configuration who
serves the name.  So the default runner, which all of `Runner` goes through, is wrapped once.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from agents import ModelProvider, MultiProvider, RunConfig, RunState
from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner

from agentguard import Run, current_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agents import Model


class RunnerCall:
    """One call of `Runner.run`, `run_sync` or `run_streamed`."""

    def __init__(
        self, run_config: RunConfig | dict[str, Any] | None = None, *, resumed: bool = False
    ) -> None:
        self._given = _provider_of(run_config)
        self._made: MultiProvider | None = None
        self._models: dict[str, Model] = {}
        #: Whether it goes on from a `RunState`.
        self.resumed = resumed
        #: The guarded run that it was made in, and its branch there: that of the code that made it, not of
        #: whichever task of the SDK's first asks a model.
        self.run: Run | None = None
        self.branch: Any = None

    def begin(self) -> None:
        """Note where it is made."""
        self.run = current_run()
        if self.run is not None:
            with self.run.branch("agent") as self.branch:
                pass

    def model(self, name: str) -> Model:
        """The model of a name, by the provider of the run configuration; one for the whole call."""
        if name not in self._models:
            self._models[name] = self._provider().get_model(name)
        return self._models[name]

    def _provider(self) -> ModelProvider:
        if self._given is not None:
            return self._given
        if self._made is None:
            self._made = MultiProvider()
        return self._made

    async def close(self) -> None:
        """Close the provider, if nobody gave it."""
        made, self._made = self._made, None
        if made is not None:
            self._models.clear()
            await made.aclose()


#: The call of the runner that is under way here.
RUNNER_CALL: ContextVar[RunnerCall | None] = ContextVar("agentguard_openai_agents_call", default=None)


class _Runner(AgentRunner):
    """The runner that was the default before, its calls told apart."""

    def __init__(self, inner: AgentRunner) -> None:
        self._inner = inner

    async def run(self, starting_agent: Any, input: Any, **options: Any) -> Any:
        with _called(input, options):
            return await self._inner.run(starting_agent, input, **options)

    def run_sync(self, starting_agent: Any, input: Any, **options: Any) -> Any:
        with _called(input, options):
            return self._inner.run_sync(starting_agent, input, **options)

    def run_streamed(self, starting_agent: Any, input: Any, **options: Any) -> Any:
        with _called(input, options):  # its task begins here, with a copy of the context
            return self._inner.run_streamed(starting_agent, input, **options)


def install() -> None:
    """Wrap the SDK's default runner, unless it is wrapped already."""
    runner = get_default_agent_runner()
    if not isinstance(runner, _Runner):
        set_default_agent_runner(_Runner(runner))


@contextmanager
def _called(input: Any, options: dict[str, Any]) -> Iterator[None]:
    call = RunnerCall(options.get("run_config"), resumed=isinstance(input, RunState))
    call.begin()
    token = RUNNER_CALL.set(call)
    try:
        yield
    finally:
        RUNNER_CALL.reset(token)


def _provider_of(run_config: RunConfig | dict[str, Any] | None) -> ModelProvider | None:
    if isinstance(run_config, dict):
        provider: ModelProvider | None = run_config.get("model_provider")
        return provider
    return None if run_config is None else run_config.model_provider
