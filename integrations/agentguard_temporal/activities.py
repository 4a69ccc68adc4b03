"""The interceptor: each activity of a worker is a guarded step of its workflow execution's run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

from agentguard import AgentGuardError, Budget, Guard, Run, StepOutcomeUnknownError, current_step
from agentguard.errors import ThreadCancellation
from agentguard_temporal._mapping import failure_of, key_of
from agentguard_temporal.options import options_of
from agentguard_temporal.runs import Runs, RunSettings

ThreadCancellation.register(CancelledError)


class GuardedActivities(Interceptor):
    """An interceptor that makes every activity of a worker a guarded step: `Worker(..., interceptors=[...])`.

    A workflow execution is one run, which each worker joins at its first activity of it.  An activity is a
    step of that run, and its attempts are attempts of that step.  An attempt after one whose outcome is
    unknown, since its worker died or was silent, does not repeat what is on record.  A limit, a kill or a
    denied approval fails the activity for good; Temporal does not try it again.

    `GuardPlugin` adds what ends the runs of workflows that have ended.

    Args:
        guard: the Guard; its store must be one that all workers share.
        budget: the limits of each run, or a callable that gives them for an `activity.Info`.
        tenant: whose run it is: a name, or a callable that gives it for an `activity.Info`.
        account: an account that the runs of several executions share, likewise: those of a workflow that
            continues as new, or of child workflows.
        account_budget: what they may use together.
        effect: what a repeat of an activity does that does not say so itself (`step_options`).
        interrupt_threads: on a stop, interrupt activities in threads too, at their next line of Python.

    Raises:
        TypeError: an argument is of the wrong type; the message names it.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        budget: Budget | Callable[[activity.Info], Budget] | None = None,
        tenant: str | Callable[[activity.Info], str] | None = None,
        account: str | Callable[[activity.Info], str] | None = None,
        account_budget: Budget | None = None,
        effect: str | None = None,
        interrupt_threads: bool = False,
    ) -> None:
        if effect not in (None, "read", "idempotent", "once"):
            raise ValueError(f"effect must be 'read', 'idempotent' or 'once', not {effect!r}")
        self.runs = Runs(
            RunSettings(
                guard=guard,
                budget=budget,
                tenant=tenant,
                account=account,
                account_budget=account_budget,
                interrupt_threads=interrupt_threads,
            )
        )
        self._effect = effect

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """See Temporal's `Interceptor`."""
        return _Inbound(next, self.runs, self._effect)


class _Inbound(ActivityInboundInterceptor):
    """One attempt at an activity."""

    def __init__(self, next: ActivityInboundInterceptor, runs: Runs, effect: str | None) -> None:
        super().__init__(next)
        self._runs = runs
        self._effect = effect
        self._beat: Callable[..., None] | None = None
        #: The run, while the attempt is in it.
        self.run: Run | None = None
        #: Whether the activity's function has begun, and says itself that it lives.
        self.begun = False

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        """See Temporal's `ActivityInboundInterceptor`."""
        self._beat = outbound.heartbeat
        super().init(_Outbound(outbound, self))

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        """See Temporal's `ActivityInboundInterceptor`."""
        info = activity.info()
        if not info.in_workflow:
            raise ApplicationError(
                "agentguard guards the activities of workflows; this one was started without a workflow",
                type="NotGuardedError",
                non_retryable=True,
            )
        try:
            with self._alive_while_waiting(info):
                return await self._in_the_run(info, input)
        except AgentGuardError as error:
            if isinstance(error.__cause__, _CANCELLED):
                raise error.__cause__ from None  # as Temporal expects it
            failure = failure_of(error)
            if failure is None:
                raise
            raise failure from error

    async def _in_the_run(self, info: activity.Info, input: ExecuteActivityInput) -> Any:
        self.run = run = await asyncio.to_thread(self._runs.join, info)
        try:
            result = await self._step(run, input)
            run.check()  # a stop that the function has swallowed is raised all the same
        finally:
            self.run = None
            self._runs.leave(info)
        return result

    async def _step(self, run: Run, input: ExecuteActivityInput) -> Any:
        """Carry the attempt out as a step of the run."""
        options = {"effect": self._effect} | options_of(input.fn)
        attempt = _Attempt(self, run, options, functools.partial(self.next.execute_activity, input))
        token = _ATTEMPT.set(attempt)
        try:
            if inspect.iscoroutinefunction(_called(input.fn)):
                input.fn = _async_step(input.fn)
            elif isinstance(input.executor, concurrent.futures.ThreadPoolExecutor):
                input.fn = _sync_step(input.fn)
            else:  # in a process of its own, where the run is not
                return await attempt.apply(_elsewhere(input.fn), input.args)
            return await self.next.execute_activity(input)
        finally:
            _ATTEMPT.reset(token)

    @contextlib.contextmanager
    def _alive_while_waiting(self, info: activity.Info) -> Iterator[None]:
        """Tell Temporal that the worker lives while the step waits to begin: for an approval, or a resume."""
        if info.heartbeat_timeout is None or info.is_local or self._beat is None:
            yield
            return
        beating = asyncio.create_task(self._keep_beating(info, info.heartbeat_timeout.total_seconds() / 3))
        try:
            yield
        finally:
            beating.cancel()

    async def _keep_beating(self, info: activity.Info, seconds: float) -> None:
        while not self.begun and self._beat is not None:
            self._beat(*info.heartbeat_details)  # those of the last attempt, which stay
            await asyncio.sleep(seconds)


class _Outbound(ActivityOutboundInterceptor):
    """What an activity says to Temporal: a heartbeat is where a thread learns of a kill."""

    def __init__(self, next: ActivityOutboundInterceptor, inbound: _Inbound) -> None:
        super().__init__(next)
        self._inbound = inbound

    def heartbeat(self, *details: Any) -> None:
        """Raise the run's stop, if it has one; else send the heartbeat."""
        run = self._inbound.run
        if run is not None:
            run.check()
        super().heartbeat(*details)


class _Attempt:
    """What the functions below, which are made once for each activity, need of the attempt at hand."""

    def __init__(
        self, inbound: _Inbound, run: Run, options: dict[str, Any], execute: Callable[[], Awaitable[Any]]
    ) -> None:
        self.inbound = inbound
        self.run = run
        self.options = options
        #: Carries the function out where Temporal would.
        self.execute = execute

    def apply(self, fn: Callable[..., Any], args: Any) -> Any:
        """Call the function as the activity's step; awaitable if it is async."""
        info = activity.info()
        attributes = {"temporal.activity_id": info.activity_id, "temporal.attempt": info.attempt}
        return self.run.apply(info.activity_type, fn, args, key=_key, attributes=attributes, **self.options)

    def cut_off(self, error: BaseException) -> BaseException:
        """Return what a body ends with that was cancelled in its middle.

        Where Temporal has cancelled it (a time-out, a worker that ends), nobody knows what it has done: the
        step gets no outcome, and another attempt goes on where this one was.
        """
        if self.run.stop is not None or not activity.is_cancelled():
            return error
        step = current_step()
        return StepOutcomeUnknownError(self.run.id, "" if step is None else step.key)


_CANCELLED = (asyncio.CancelledError, CancelledError)
_ATTEMPT: ContextVar[_Attempt] = ContextVar("agentguard_temporal_attempt")


def _key(*_args: Any, **_kwargs: Any) -> str:
    return key_of(activity.info())


def _called(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that a callable object is called by."""
    return fn if inspect.isroutine(fn) else fn.__call__  # type: ignore[operator]


# Functions are made once for each activity: what agentguard finds out about a function, it finds out once.


@functools.lru_cache(maxsize=1024)
def _async_step(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def body(*args: Any) -> Any:
        attempt = _ATTEMPT.get()
        attempt.inbound.begun = True
        try:
            return await fn(*args)
        except asyncio.CancelledError as error:
            raise attempt.cut_off(error) from error

    @functools.wraps(fn)
    async def step(*args: Any) -> Any:
        return await _ATTEMPT.get().apply(body, args)

    return step


@functools.lru_cache(maxsize=1024)
def _sync_step(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def body(*args: Any) -> Any:
        attempt = _ATTEMPT.get()
        attempt.inbound.begun = True
        try:
            return fn(*args)
        except CancelledError as error:
            raise attempt.cut_off(error) from error

    @functools.wraps(fn)
    def step(*args: Any) -> Any:
        return _ATTEMPT.get().apply(body, args)

    return step


@functools.lru_cache(maxsize=1024)
def _elsewhere(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def body(*args: Any) -> Any:
        attempt = _ATTEMPT.get()
        attempt.inbound.begun = True
        try:
            return await attempt.execute()
        except asyncio.CancelledError as error:
            raise attempt.cut_off(error) from error

    return body
