"""Model and tool calls that callbacks have seen begin, until they are seen to end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from agentguard import AgentGuardError, Run, Usage
from agentguard_langchain._costs import Model
from agentguard_langchain.stops import core_error, is_control_flow

_log = logging.getLogger("agentguard")
_MANY = 1024
#: What a model call used that used nothing: money and tokens are named, else its reservation is charged.
FREE = Usage(usd=0, tokens=0)


class CallAbandonedError(AgentGuardError):
    """LangChain never said how the call ended: it was cancelled, or a callback of somebody else failed."""


class Cover:
    """A call that the middleware has made a step of already; the first that begins inside it is that one.

    Among the calls under way it stands for that one, of which there is nothing to put on record.
    """

    __slots__ = ("call_id", "kind", "name", "run", "taken")

    block: Any = None
    group: Any = None

    def __init__(self, run: Run, kind: str, name: str, call_id: str | None = None) -> None:
        self.run = run
        self.kind = kind
        self.name = name
        self.call_id = call_id
        self.taken = False

    def covers(self, kind: str, name: str, call_id: str | None) -> bool:
        """Whether this is the covered call, and none that it makes."""
        if self.taken or kind != self.kind:
            return False
        return kind != "tool" or (name, call_id) == (self.name, self.call_id)

    def takes(self, kind: str, name: str, call_id: str | None) -> bool:
        """The same, where the call begins: what begins after it is not the covered call."""
        if not self.covers(kind, name, call_id):
            return False
        self.taken = True
        return True

    def finish(
        self, error: BaseException | None = None, usage: Usage | None = None, result: Any = None
    ) -> None:
        """Nothing to do: its step is the middleware's."""


#: The innermost call that the middleware, or a guarded tool, covers here.
COVER: ContextVar[Cover | None] = ContextVar("agentguard_langchain_cover", default=None)


class Call:
    """One call under way, and its step."""

    __slots__ = ("block", "group", "model", "reported", "run", "task")

    def __init__(self, run: Run, block: Any, model: Model | None = None, group: Any = None) -> None:
        self.run = run
        self.block = block
        self.model = model
        #: What the calls of one `generate([...])` share.
        self.group = group
        #: Whether the usage of this call is in that of another of its group.
        self.reported = False
        self.task: tuple[asyncio.Task[Any], Callable[[Any], None]] | None = None

    def finish(
        self, error: BaseException | None = None, usage: Usage | None = None, result: Any = None
    ) -> None:
        """Put the outcome on record.  Raises nothing: what is over cannot be refused any more."""
        if self.task is not None:
            self.task[0].remove_done_callback(self.task[1])
        if error is not None and is_control_flow(error):
            error, usage = None, FREE  # paused, to be called again: no error, and nothing used yet
        if usage is not None:
            self.block.step.settle(usage)
        try:
            self.block.finish(None if error is None else core_error(error), result)
        except AgentGuardError:
            _log.exception("the outcome of %s could not be recorded", self.block.step.key)


class Calls:
    """The calls under way in this process, by LangChain's id.  All handlers share one."""

    def __init__(self) -> None:
        self._open: dict[UUID, Call | Cover] = {}
        #: Calls that are over: what a second handler, or a late event, says of them is old news.
        self._over: dict[UUID, None] = {}
        self._sweep_at = _MANY

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._open or run_id in self._over

    def covered(self, run_id: UUID, kind: str, name: str = "", call_id: str | None = None) -> Cover | None:
        """The cover of a call that begins here, where the middleware has made a step of it already."""
        cover = COVER.get()
        if cover is None or not cover.takes(kind, name, call_id):
            return None
        if len(self._open) > self._sweep_at:
            self._sweep()
        self._open[run_id] = cover
        return cover

    def add(self, run_id: UUID, call: Call) -> None:
        """A call has begun.  The end of its task is its own end, should LangChain not tell."""
        if len(self._open) > self._sweep_at:
            self._sweep()
        self._open[run_id] = call
        if (task := _task()) is not None:

            def done(task: asyncio.Task[Any]) -> None:
                # A task that returned may have handed a stream on; then the call goes on elsewhere.
                if run_id in self._open and (task.cancelled() or task.exception() is not None):
                    self.abandon(run_id)

            task.add_done_callback(done)
            call.task = task, done

    def pop(self, run_id: UUID) -> Call | Cover | None:
        """The call, which is over now; None for one that nobody saw begin."""
        call = self._open.pop(run_id, None)
        if call is not None:
            if len(self._over) > _MANY:
                self._over.pop(next(iter(self._over)), None)
            self._over[run_id] = None
        return call

    def abandon(self, run_id: UUID) -> None:
        """Whatever was around the call is over, and so is the call."""
        call = self.pop(run_id)
        if call is not None:
            call.finish(CallAbandonedError("it ended without a word from LangChain"))

    def revoke(self, group: Any, error: BaseException) -> None:
        """Give back what the other calls of a group hold: none of them will be made."""
        for run_id, call in self._grouped(group):
            self.pop(run_id)
            call.block.revoke(core_error(error))

    def fail(self, group: Any, error: BaseException) -> None:
        """One call of a group failed: of the others, LangChain says no more."""
        for run_id, call in self._grouped(group):
            self.pop(run_id)
            call.finish(error)

    def report(self, group: Any) -> None:
        """One call of a group has told what all of them used: the others used nothing more."""
        for _, call in self._grouped(group):
            call.reported = True

    def _grouped(self, group: Any) -> list[tuple[UUID, Call]]:
        if group is None:
            return []
        found = list(self._open.items())
        return [(i, call) for i, call in found if isinstance(call, Call) and call.group is group]

    def _sweep(self) -> None:
        for run_id, call in list(self._open.items()):
            if call.run.state.final:
                self._open.pop(run_id, None)
        self._sweep_at = max(_MANY, 2 * len(self._open))


def _task() -> asyncio.Task[Any] | None:
    if asyncio._get_running_loop() is None:  # noqa: SLF001 - the public one raises
        return None
    return asyncio.current_task()


CALLS = Calls()
