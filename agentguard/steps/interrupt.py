"""Interrupting sync bodies: opt-in, since an exception in the middle of any line is a rough stop.

The guard's own code is out of its reach.  Before the exception is sent, the frames of the thread are looked
at: it goes to code of the body alone, at an instruction at which Python raises it there and then, while no
code of the guard's is under way above the body, nor the start of a thread.  Until that is so, it is tried
again.  The last look and the sending are one call into C, during which the other thread cannot move on.

Where a C function ends by an error of its own, as a `recv` that times out, the exception is raised as the
next function is called.  If that is the `__exit__` of one of the guard's blocks, it does not begin: so the
block around it, or the end of the body, leaves what was left open.  What arrives in a destructor or the
callback of a weak reference is reported there by the interpreter and lost, as is every exception: that body
meets the stop at its next check.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
from functools import partial
from itertools import starmap
from opcode import opname
from operator import attrgetter, call, eq, is_, itemgetter
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Protocol

from agentguard.errors import RunStopped
from agentguard.steps.spec import Args, Function, Kwargs

if TYPE_CHECKING:
    from agentguard.steps.model import Step

#: How long, in seconds, is waited before a body that could not be reached is tried again.
_AGAIN = 0.005
#: The instructions at which the interpreter raises what was sent to a thread.
_RAISES = frozenset(
    {
        "RESUME",
        "PRECALL",
        "CALL",
        "CALL_KW",
        "CALL_FUNCTION_EX",
        "JUMP_BACKWARD",
        "POP_JUMP_BACKWARD_IF_TRUE",
        "POP_JUMP_BACKWARD_IF_FALSE",
        "POP_JUMP_BACKWARD_IF_NONE",
        "POP_JUMP_BACKWARD_IF_NOT_NONE",
    }
)
#: Until a new thread runs, Python 3.11 takes it for the one that starts it, and would raise in it.
_STARTS_THREAD = threading.Thread.start.__code__

_set_async_exc = ctypes.PyDLL(None)["PyThreadState_SetAsyncExc"]
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)


class _InterruptedError(BaseException):
    """Internal: raised in the thread of a body.  A BaseException, so that the body cannot eat it."""


class Block(Protocol):
    """A block that is entered in a body."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> object:
        """Leave it."""


#: The innermost body of each thread.
_threads = threading.local()


def entered(block: Block) -> None:
    """Note that a block has been entered."""
    body: SyncBody | None = getattr(_threads, "body", None)
    if body is not None:
        body.blocks.append(block)


def leaving(block: Block) -> None:
    """Note that a block is being left; blocks inside it that an interruption left open go first."""
    body: SyncBody | None = getattr(_threads, "body", None)
    if body is not None and block in body.blocks:
        body.leave_inside(block)
        body.blocks.remove(block)


class SyncBody:
    """A sync body in flight in a thread."""

    __slots__ = ("_around", "_frame", "_live_run", "_thread", "_told", "blocks", "interrupted", "scope")

    def __init__(self, step: Step) -> None:
        self.scope = step.scope_key
        self.interrupted: RunStopped | None = None
        #: The guard's blocks that are open in it, the outermost first.
        self.blocks: list[Block] = []
        self._live_run = step.live_run
        self._thread = threading.get_ident()
        self._told = threading.Lock()
        self._around: SyncBody | None = None
        #: The frame of `run`, as long as the body lasts.
        self._frame: FrameType | None = None

    def stop(self, stop: RunStopped) -> None:
        """Interrupt the thread, as soon as it is in code of the body; called from any thread."""
        if self._told.acquire(blocking=False):
            self.interrupted = stop
            if not self._interrupt():
                threading.Thread(target=self._keep_trying, name="agentguard-interrupt", daemon=True).start()

    def _keep_trying(self) -> None:
        while not self._interrupt():
            time.sleep(_AGAIN)

    def _interrupt(self) -> bool:
        """Raise in the body, if it can be reached now; return whether nothing is left to do."""
        body, frame = self._frame, sys._current_frames().get(self._thread)
        if body is None or frame is None:
            return True  # it is over
        seen = frame.f_lasti, frame.f_back
        return _is_reachable(frame, body) and _raise_in(self._thread, frame, seen)

    def run(self, fn: Function, args: Args, kwargs: Kwargs) -> object:
        """Run the body; raises the stop that interrupted it."""
        try:
            self._enter(sys._getframe())
            result = fn(*args, **kwargs)
            self._leave()
        except BaseException as error:
            self._leave()
            if isinstance(error, _InterruptedError) and self.interrupted is not None:
                raise self.interrupted.with_traceback(None) from None
            raise
        return result

    def _enter(self, frame: FrameType) -> None:
        self._around = getattr(_threads, "body", None)
        self._frame = frame
        _threads.body = self
        self._live_run.in_flight.bodies.add(self)
        stop = self._live_run.stops.stop
        if stop is not None and stop.cancels:  # it came between the last look and this line
            raise stop.with_traceback(None)

    def _leave(self) -> None:
        self._frame = None
        self._live_run.in_flight.bodies.discard(self)
        if getattr(_threads, "body", None) is self:
            self.leave_inside(None)
            _threads.body = self._around

    def leave_inside(self, block: Block | None) -> None:
        """Leave the blocks that an interruption left open inside `block`, or in the whole body."""
        stop = self.interrupted
        while stop is not None and self.blocks and self.blocks[-1] is not block:
            with contextlib.suppress(Exception):  # the stop is raised already
                self.blocks.pop().__exit__(type(stop), stop, None)


def _is_reachable(frame: FrameType, body: FrameType) -> bool:
    """Whether what is raised at `frame`, on top of its thread, is raised there, in code of the body's own."""
    if frame is body or opname[frame.f_code.co_code[frame.f_lasti]] not in _RAISES:
        return False
    each: FrameType | None = frame
    while each is not None and each is not body:
        code = each.f_code
        package = str(each.f_globals.get("__name__", "")).partition(".")[0]
        ours = package == "agentguard" or package.startswith("agentguard_")
        if ours or code is _STARTS_THREAD or code.co_name == "__del__":
            return False
        each = each.f_back
    return each is body


def _raise_in(thread: int, frame: FrameType, seen: tuple[int, FrameType | None]) -> bool:
    """Raise in a thread, if `frame` is still on top of it, as it was seen; return whether it was.

    The chain of iterators asks and sends within one call: no instruction of this thread comes in between, at
    which it could lose the interpreter's lock to the other.
    """
    on_top = map(itemgetter(thread), map(call, (sys._current_frames,)))
    same = map(attrgetter("f_lasti", "f_back"), filter(partial(is_, frame), on_top))
    sending = starmap(_set_async_exc, ((thread, _InterruptedError),))
    try:
        return next(zip(filter(partial(eq, seen), same), sending, strict=False), None) is not None
    except KeyError:  # the thread is gone
        return True
