"""What the parts share about a run: where model calls and tool calls belong in the agent's tree.

A model is not told which agent run asks it.  Its input says so: it ends with the outputs of the tool
calls that an earlier answer asked for, and those calls have a place already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from agentguard import NoActiveRunError, Run, current_run
from agentguard_openai_agents import _mapping as m

if TYPE_CHECKING:
    from collections.abc import Iterable


class AgentRun:
    """One conversation of an agent with its model, and its branch."""

    def __init__(self, branch: Any) -> None:
        self.branch = branch
        self.turns = 0


class Calls:
    """The agent runs in a guarded run, and the tool calls that they have asked for."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[AgentRun, Any]] = {}
        #: Answers that went through a guarded model, and answers that hooks have seen.
        self.guarded = 0
        self.seen = 0

    def agent_run(self, run: Run, input_items: Any) -> AgentRun:
        """The agent run that a model call belongs to: a new one, unless it goes on from tool calls."""
        for call_id in m.answered_calls(input_items):
            if call_id in self._asked:
                return self._asked[call_id][0]
        with run.branch("agent") as branch:
            pass
        return AgentRun(branch)

    def answered(self, agent_run: AgentRun, output: Iterable[Any]) -> None:
        """Give each tool call of an answer a branch by its place in the answer."""
        self.guarded += 1
        agent_run.turns += 1
        for index, call_id in enumerate(m.call_ids(output)):
            branch = agent_run.branch.child(f"turn{agent_run.turns}.{index}")
            self._asked[call_id] = (agent_run, branch)

    def branch_of(self, call_id: str | None) -> Any:
        """The branch of a tool call, or None for one that no guarded answer asked for."""
        return self._asked[call_id][1] if call_id in self._asked else None


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
