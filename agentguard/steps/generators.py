"""The generator drivers: a generator, sync or async, as one guarded step."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Generator
from typing import Any

from agentguard.errors import RunStopped
from agentguard.steps import aio, phases
from agentguard.steps.current import CURRENT
from agentguard.steps.generator_step import ENDS_PROGRAMS, GeneratorStep
from agentguard.steps.interrupt import SyncBody
from agentguard.steps.live import LiveRun


class GuardedGenerator(GeneratorStep, Generator[object, object, object]):
    """A sync generator as one step."""

    __slots__ = ()

    def send(self, value: object) -> object:
        """The next item, as of a plain generator."""
        return self._advance("send", value)

    def throw(self, typ: Any, val: Any = None, tb: object = None) -> object:
        """Raise inside, as in a plain generator."""
        if self.state == "new":
            self.state = "closed"
        if self.state == "closed":
            raise typ if val is None else val
        return self._advance("throw", typ if val is None else val)

    def close(self) -> None:
        """Close early: the step completes with the items so far."""
        before = CURRENT.get()
        try:
            self._close()
        except BaseException as error:
            self._rescued(before, error)
            raise

    def _close(self) -> None:
        if self._runs():
            self._inner.close()
        if not isinstance(sys.exception(), ENDS_PROGRAMS):
            self.leave_served()
        abandoned = self.state == "abandoned"
        if not self._ended():
            if abandoned:
                self._inner.close()  # its step is settled; what the body holds is given back here
            return
        token = self._enter()
        try:
            self._inner.close()
        except BaseException as error:
            phases.close(self._step, self._failed(error))
            raise
        finally:
            self._exit(token)
        self._complete(early=True)

    def _complete(self, *, early: bool) -> None:
        done = self._completed(early=early)
        phases.close(self._step, done)
        if done.error is not None:
            raise done.error from None

    def _advance(self, how: str, value: object) -> object:
        if self._runs():
            return getattr(self._inner, how)(value)
        self._check_over()
        if self.state == "closed":
            raise StopIteration
        before = CURRENT.get()
        try:
            return self._next(how, value)
        except BaseException as error:
            self._rescued(before, error)
            raise

    def _runs(self) -> bool:
        """Return whether its body runs: then what it is asked for raises, as of a plain generator."""
        return getattr(self._inner, "gi_running", False)

    def _next(self, how: str, value: object) -> object:
        if self.state == "new":
            if value is not None:
                raise TypeError("can't send non-None value to a just-started generator")
            if not self._serve():
                phases.begin(self._step, self._args, self._kwargs)
                self._opened()
        if self.state == "served":
            return self._next_recorded(how, value)
        try:
            self._check()
        except RunStopped as stop:
            self._fail(stop)
            self._close_inner()
            raise
        token = self._feed(how, value)
        try:
            advance = getattr(self._inner, how)
            interrupt = self._step.live_run.interrupt
            item = SyncBody(self._step).run(advance, (value,), {}) if interrupt else advance(value)
        except StopIteration as end:
            self._exit(token)
            self._ended()
            self._items.returned(end.value)
            self._complete(early=False)
            raise
        except BaseException as error:
            self._exit(token)
            self._fail(error)
            raise
        self._exit(token)
        self._items.add(item)
        return item

    def _fail(self, error: BaseException) -> None:
        if self._ended():
            phases.close(self._step, self._is_over(error))

    def _close_inner(self) -> None:
        """Let the body of a stopped generator give back what it holds."""
        token = self._enter()
        try:
            with contextlib.suppress(Exception):  # the stop is what its consumer is told
                self._inner.close()
        finally:
            self._exit(token)


class GuardedAsyncGenerator(GeneratorStep, AsyncGenerator[object, object]):
    """An async generator as one step."""

    __slots__ = ()

    def __aiter__(self) -> GuardedAsyncGenerator:
        return self

    async def __anext__(self) -> object:
        return await self._advance("asend", None)

    async def asend(self, value: object) -> object:
        """The next item, as of a plain async generator."""
        return await self._advance("asend", value)

    async def athrow(self, typ: Any, val: Any = None, tb: object = None) -> object:
        """Raise inside, as in a plain async generator."""
        if self.state == "new":
            self.state = "closed"
        if self.state == "closed":
            raise typ if val is None else val
        return await self._advance("athrow", typ if val is None else val)

    async def aclose(self) -> None:
        """Close early: the step completes with the items so far."""
        before = CURRENT.get()
        try:
            await self._aclose()
        except BaseException as error:
            self._rescued(before, error)
            raise

    async def _aclose(self) -> None:
        if self._runs():
            await self._inner.aclose()
        if not isinstance(sys.exception(), ENDS_PROGRAMS):
            self.leave_served()
        abandoned = self.state == "abandoned"
        if not self._ended():
            if abandoned:
                await self._inner.aclose()
            return
        token = self._enter()
        try:
            await self._inner.aclose()
        except BaseException as error:
            await aio.close(self._step, self._failed(error))
            raise
        finally:
            self._exit(token)
        await self._complete(early=True)

    async def _complete(self, *, early: bool) -> None:
        done = self._completed(early=early)
        await aio.close(self._step, done)
        if done.error is not None:
            raise done.error from None

    def _runs(self) -> bool:
        """Return whether its body runs, or is about to: what it is asked for raises then."""
        if self.state == "starting":
            raise RuntimeError("asynchronous generator is already running")
        return getattr(self._inner, "ag_running", False)

    async def _start(self, value: object) -> None:
        if value is not None:
            raise TypeError("can't send non-None value to a just-started async generator")
        self.state = "starting"
        try:
            if not self._serve():
                await aio.begin(self._step, self._args, self._kwargs)
                self._opened()
        finally:
            if self.state == "starting":
                self.state = "new"

    async def _advance(self, how: str, value: object) -> object:
        if self._runs():
            return await getattr(self._inner, how)(value)
        self._check_over()
        if self.state == "closed":
            raise StopAsyncIteration
        before = CURRENT.get()
        try:
            return await self._next(how, value)
        except BaseException as error:
            self._rescued(before, error)
            raise

    async def _next(self, how: str, value: object) -> object:
        if self.state == "new":
            await self._start(value)
        if self.state == "served":
            await self._cancelled_again()
            try:
                return self._next_recorded(how, value)
            except StopIteration:
                raise StopAsyncIteration from None
        try:
            self._check()
        except RunStopped as stop:
            await self._fail(stop)
            await self._close_inner()
            raise
        token = self._feed(how, value)
        body = aio.Body(self._step)
        try:
            item = await getattr(self._inner, how)(value)
        except StopAsyncIteration:
            body.close()
            self._exit(token)
            self._ended()
            await self._complete(early=False)
            raise
        except asyncio.CancelledError as error:
            cause = await body.close_in_turn()
            self._exit(token)
            await self._fail(cause or error)
            if cause is None:
                raise
            raise cause.with_traceback(None) from None
        except BaseException as error:
            body.close()
            self._exit(token)
            await self._fail(error)
            raise
        body.close()
        self._exit(token)
        self._items.add(item)
        return item

    async def _cancelled_again(self) -> None:
        """Where the program cancelled the next item, wait until it does again."""
        served = self._served
        if served.until_cancelled is None or self._items.count < len(served.items):
            return
        try:
            await served.until_cancelled()
        except BaseException:
            self._ended()
            raise

    async def _fail(self, error: BaseException) -> None:
        if self._ended():
            await aio.close(self._step, self._is_over(error))

    async def _close_inner(self) -> None:
        """Let the body of a stopped generator give back what it holds."""
        token = self._enter()
        try:
            with contextlib.suppress(Exception):  # the stop is what its consumer is told
                await self._inner.aclose()
        finally:
            self._exit(token)


def leave_served(live_run: LiveRun) -> None:
    """The program is done: generators that are served from the log are left where they are.

    Raises:
        ReplayDivergenceError: that is not where they were left live.
    """
    live_run.in_flight.settle_orphans()
    for _, holder in live_run.in_flight.holders():
        if isinstance(holder, GeneratorStep):
            holder.leave_served()
