"""The beginning, the body and the end of an async step, where waiting must not block the event loop.

A stop cancels the task inside the body once; the CancelledError becomes the stop only if nobody
else wanted the task cancelled ("Cancellation" in docs/semantics.md).
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - else the first call that goes to a thread would load it
import contextlib
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context

from agentguard.budget.account import Amounts
from agentguard.errors import EventLoopUnsupportedError, RunStopped
from agentguard.protocols import StoreBusyError
from agentguard.steps import bodies_first, outcome, phases, spinning, withdrawal
from agentguard.steps.current import CURRENT, restore_position
from agentguard.steps.disk import arrival, on_disk
from agentguard.steps.flow import admit, check, confirm_start, prepare
from agentguard.steps.log import WaitingError
from agentguard.steps.model import Step
from agentguard.steps.patience import Patience
from agentguard.steps.refusing import needs_care
from agentguard.steps.spec import Args, AsyncFunction, Kwargs


async def in_body(step: Step, fn: AsyncFunction, args: Args, kwargs: Kwargs) -> object:
    """Await the body, with the step as the current one; a stop that cancels it is raised itself."""
    token = CURRENT.set(step)
    try:
        body = Body(step)
        try:
            step.entered = True
            timeout = step.spec.timeout
            running = fn(*args, **kwargs)
            result = await (running if timeout is None else _with_timeout(timeout, running))
        except asyncio.CancelledError:
            stop = await body.close_in_turn()
            if stop is None:
                raise
            raise stop.with_traceback(None) from None
        except BaseException:
            body.close()
            raise
        body.close()
    finally:
        restore_position(token)
    return result


def require_asyncio(step: Step) -> None:
    """Refuse a step under another library's event loop, before anything of it is on record."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise EventLoopUnsupportedError(step.spec.name) from None


async def _with_timeout(timeout: float, body: Awaitable[object]) -> object:
    async with asyncio.timeout(timeout):
        return await body


async def begin(step: Step, args: Args, kwargs: Kwargs) -> None:
    """Do everything before the body, without blocking the loop."""
    require_asyncio(step)
    prepare(step, args, kwargs)
    if step.live_run.span is not None:
        phases.start_span(step)
    try:
        try:
            await _admit(step)
        except WaitingError:
            await _admit_in_time(step)
    except BaseException as error:
        phases.refuse_span(step, error)
        if isinstance(error, RunStopped):
            await spinning.refused_async(step, error)
        withdrawal.withdraw(step, error)
        raise
    phases.check_before_body(step)


async def _admit_in_time(step: Step) -> None:
    patience = Patience(step)
    with step.live_run.time.waiting(step):
        while True:
            await step.live_run.changed()
            patience.check()
            with contextlib.suppress(WaitingError):
                return await _admit(step)


async def _admit(step: Step) -> None:
    try:
        try:
            admit(step, wait=False)
        except StoreBusyError:
            await _in_thread(admit, step)
        else:
            if _is_on_the_way(step):
                await _on_record(step, step.request.reserve, confirm_start, step)
    except asyncio.CancelledError as error:  # admitted all the same: its body will not run
        await close(step, outcome.unentered(error))
        raise


def _is_on_the_way(step: Step) -> bool:
    """Return whether what was just accepted is yet to be committed, or to reach the disk."""
    return step.commit is not None or step.live_run.log.shares_disk(step.spec.durability)


async def _on_record(step: Step, amounts: Amounts, confirm: Callable[..., None], *args: object) -> None:
    """Wait until what was accepted is committed, or on disk; `confirm`, which may block, sees to the rest."""
    log = step.live_run.log
    commit, group = step.commit, log.group
    if commit is None or group is None:
        await on_disk(log.store)
        return
    if asyncio.current_task() is None:  # driven by hand: there is nothing that would wake it
        confirm(*args)
        return
    if not commit.future.done():
        await arrival(group, commit)
    if commit.error is not None or needs_care(step.live_run, amounts, commit.future.result()):
        await _in_thread(confirm, *args)
    else:
        step.commit = None


async def _outcome_on_record(step: Step, done: outcome.Outcome) -> None:
    """Wait likewise for an outcome, to its end even if the task is cancelled meanwhile."""
    try:
        await _on_record(step, done.usage or {}, outcome.confirm_outcome, step, done)
    except asyncio.CancelledError:
        if step.commit is not None:
            await _in_thread(outcome.confirm_outcome, step, done)
        raise


async def close(step: Step, done: outcome.Outcome) -> None:
    """Put an outcome on record, without blocking the loop, end the span, and wait for its turn."""
    live_run = step.live_run
    try:
        try:
            outcome.leave(step, done, wait=False)
        except StoreBusyError:
            await _in_thread(outcome.leave, step, done)
        else:
            if _is_on_the_way(step):
                await _outcome_on_record(step, done)
    finally:
        if step.span is not None:
            phases.end_span(step, done)
    in_flight = live_run.in_flight
    if in_flight.pending_warnings:
        in_flight.tell_warnings()
    if in_flight.concurrent and not done.cancelled:
        gate = in_flight.gate(asyncio.get_running_loop())
        if gate is not None:
            await gate.turn(step.seq)


async def _in_thread(function: Callable[..., None], *args: object) -> None:
    """Run a wait for the store in a thread, to its end even if the task is cancelled meanwhile.

    What it writes is written; a cancelled caller must know it before it goes on.
    """
    here = copy_context()  # where in the run this is, should the wait end in a drain
    future = asyncio.get_running_loop().run_in_executor(None, lambda: here.run(function, *args))
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001, S110 - raised below, from the future itself
            pass
    try:
        future.result()
    except WaitingError:  # nothing has happened yet: it waits no longer
        if cancelled is None:
            raise
    if cancelled is not None:
        raise cancelled


class _TaskBodies:
    """The bodies that are open in a task, of whatever run, the outermost first."""

    __slots__ = ("open", "task")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.task = weakref.ref(task)  # contexts are copied to other tasks, which may live longer
        self.open: list[Body] = []


#: Those of the task that set it: in a task that got its context by copy, they are another's.  Nothing
#: global holds them, so an exception at any line leaves none behind.
_BODIES: ContextVar[_TaskBodies | None] = ContextVar("agentguard_bodies", default=None)


def _bodies_of(task: asyncio.Task[object]) -> list[Body]:
    bodies = _BODIES.get()
    if bodies is None or bodies.task() is not task:
        bodies = _TaskBodies(task)
        _BODIES.set(bodies)
    return bodies.open


class Body:
    """An async body in flight, so that a stop or a deadline can cancel it."""

    __slots__ = ("_cancelling", "_live_run", "_loop", "_nested", "_stop", "_task", "_timer", "scope")

    def __init__(self, step: Step) -> None:
        live_run = step.live_run
        self.scope = step.scope_key
        self._live_run = live_run
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(self._loop)
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        self._stop: RunStopped | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._nested = [] if self._task is None else _bodies_of(self._task)
        self._nested.append(self)
        live_run.in_flight.bodies.add(self)
        if live_run.levels.has_deadline:
            self._watch_deadline()
        stop = live_run.stops.stop
        if stop is not None and stop.cancels:  # it came between the last look and this line
            self.stop(stop)

    def _watch_deadline(self) -> None:
        nearest = self._live_run.levels.deadline(self.scope)
        if nearest is not None:
            self._timer = self._loop.call_later(max(nearest[0] / 1e9, 0), self._deadline)

    def _deadline(self) -> None:
        try:
            check(self._live_run, self.scope)  # a kill wins over a deadline
        except RunStopped as stop:
            self.stop(stop)  # after the bodies around this one, which have been told
        else:
            self._watch_deadline()  # the run was paused meanwhile

    def stop(self, stop: RunStopped) -> None:
        """Cancel the task, from any thread."""
        bodies_first.cancel(self._loop, lambda: self._cancel(stop))

    def _cancel(self, stop: RunStopped) -> None:
        task = self._task
        if task is None or self not in self._live_run.in_flight.bodies:
            return
        # A task is cancelled once, however many bodies are nested in it, and the outermost that is
        # stopped turns that into the stop: what is inside it cannot swallow a CancelledError by accident.
        for depth, body in enumerate(self._nested):
            if body._stop is not None:
                if depth > self._nested.index(self):
                    body._stop, self._stop = None, stop
                return
        self._stop = stop
        task.cancel()

    async def close_in_turn(self) -> RunStopped | None:
        """Close a body that may have been stopped, once others that were stopped with it have ended."""
        try:
            if self._stop is not None:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            pass  # `close` finds it counted
        finally:
            stop = self.close()
        return stop

    def close(self) -> RunStopped | None:
        """End the body; return the stop that cancelled it, if nothing else cancelled the task."""
        self._live_run.in_flight.bodies.discard(self)
        if self in self._nested:
            self._nested.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        stop = self._stop
        if stop is None or self._task is None:
            return None
        return stop if self._task.uncancel() <= self._cancelling else None
