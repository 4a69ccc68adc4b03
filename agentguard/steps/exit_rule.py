"""The exit rule: what leaves a run's or a scope's block once it is stopped."""

from __future__ import annotations

import asyncio

from agentguard.errors import RunStopped

#: What passes unchanged: the process, the consumer or the caller wants out, stop or no stop.
PASSES = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)


class StopSwallowedError(asyncio.CancelledError):
    """The code went on after its stop, and is cancelled.

    A CancelledError, since frameworks let that pass where they retry or collect errors.  A run's or a
    scope's block turns it into the stop.
    """


def raise_on_exit(stop: RunStopped | None, arrived: BaseException | None) -> None:
    """Raise the stop itself, `from` whatever arrived at the block's end.

    Returns, so that what arrived goes on, where nothing is stopped, where the stop itself arrived,
    and for exceptions that must pass.
    """
    if stop is None or arrived is stop or _passes(arrived) or _wants_out(arrived):
        return
    if arrived is not None:
        _unlink(arrived, stop)
    raise stop.with_traceback(None) from arrived


def _passes(arrived: BaseException | None) -> bool:
    """Whether an exception goes on as itself: the caller's cancellation does, the guard's own does not."""
    return isinstance(arrived, PASSES) and not isinstance(arrived, StopSwallowedError)


def _wants_out(arrived: BaseException | None) -> bool:
    """Whether an exception group holds the end of the process."""
    return (
        isinstance(arrived, BaseExceptionGroup)
        and arrived.subgroup((KeyboardInterrupt, SystemExit)) is not None
    )


def _unlink(arrived: BaseException, stop: RunStopped) -> None:
    """Take the stop out of the causes of what arrived: it becomes their effect, and a ring else."""
    seen: set[int] = set()
    error: BaseException | None = arrived
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if error.__cause__ is stop:
            error.__cause__ = None
        if error.__context__ is stop:
            error.__context__ = None
        error = error.__cause__ or error.__context__
