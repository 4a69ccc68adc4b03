"""What the parts share about a run: where model calls and tool calls belong in the agent's tree.

A call of the runner is one agent run, handoffs included.  One that resumes a `RunState`, and a model that is
called without the runner, go on where the tool calls were asked for whose outputs their input ends with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from agentguard import NoActiveRunError, Run, current_run
from agentguard_openai_agents import _mapping as m
from agentguard_openai_agents._runner import RUNNER_CALL, RunnerCall

if TYPE_CHECKING:
    from collections.abc import Iterable


class AgentRun:
    """One conversation of an agent with its model, and its branch."""

    def __init__(self, branch: Any) -> None:
        self.branch = branch
        self.turns = 0
        #: The tool calls that it has asked for, by id, and their branches.
        self.asked: dict[str, Any] = {}


class Calls:
    """The agent runs in a guarded run, the newest last."""

    def __init__(self) -> None:
        self._agent_runs: list[AgentRun] = []
        self._by_runner: WeakKeyDictionary[RunnerCall, AgentRun] = WeakKeyDictionary()
        #: Answers that went through a guarded model, and answers that hooks have seen.
        self.guarded = 0
        self.seen = 0

    def agent_run(self, run: Run, input_items: Any) -> AgentRun:
        """The agent run that a model call belongs to."""
        call = RUNNER_CALL.get()
        known = None if call is None else self._by_runner.get(call)
        if known is not None:
            return known
        if call is None or call.resumed:
            known = self._asker(m.answered_calls(input_items))
        if known is None:
            known = AgentRun(_new_branch(run, call))
            self._agent_runs.append(known)
        if call is not None:
            self._by_runner[call] = known
        return known

    def answered(self, agent_run: AgentRun, output: Iterable[Any]) -> None:
        """Give each tool call of an answer a branch by its place in the answer."""
        self.guarded += 1
        agent_run.turns += 1
        for index, call_id in enumerate(m.call_ids(output)):
            agent_run.asked[call_id] = agent_run.branch.child(f"turn{agent_run.turns}.{index}")

    def branch_of(self, call_id: str | None) -> Any:
        """The branch of a tool call, or None for one that no guarded answer asked for."""
        if call_id is None:
            return None
        call = RUNNER_CALL.get()
        known = None if call is None else self._by_runner.get(call)
        if known is None or call_id not in known.asked:
            known = self._asker([call_id])
        return None if known is None else known.asked[call_id]

    def _asker(self, call_ids: Iterable[str]) -> AgentRun | None:
        """The newest agent run that asked for one of some tool calls."""
        wanted = set(call_ids)
        return next((one for one in reversed(self._agent_runs) if not wanted.isdisjoint(one.asked)), None)


def _new_branch(run: Run, call: RunnerCall | None) -> Any:
    if call is not None and call.run is run:
        return call.branch
    with run.branch("agent") as branch:
        return branch


_CALLS: WeakKeyDictionary[Run, Calls] = WeakKeyDictionary()


def calls_of(run: Run) -> Calls:
    """What is shared about a run."""
    return _CALLS.setdefault(run, Calls())


def active_run(run: Run | None) -> Run:
    """The run given, or the one that is active here."""
    run = run or current_run()
    if run is None:
        raise NoActiveRunError(
            "the agent is guarded and no run is active here: call the Runner inside "
            "`with guard.run(...)`, or give the run: guard_agent(agent, run=run)"
        )
    return run
