"""Signal handlers, which run between any two lines of the main thread.

What one raises may leave a lock held by a block that is no longer there; what it calls may enter a block
that is under way.  The frames of the thread tell these cases apart.  What must be done to its end goes on
in a thread of its own, where no handler runs.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from opcode import opmap
from types import FrameType
from typing import Any, Literal, TypeVar, cast

from agentguard.errors import AgentGuardError

#: `left`: no frame of this thread is in the block; `own`: the guard calls itself; `handler`: a stranger's
#: function does, which can only have been called between two lines.
Standing = Literal["left", "own", "handler"]

#: Packages through which the guard calls itself.
_OURS = ("agentguard", "contextlib", "threading", "asyncio")


def standing(inside: Callable[[FrameType], bool], depth: int = 0) -> Standing:
    """Return how the code `depth` frames above the caller stands to a block, whose frames `inside` knows."""
    frame: FrameType | None = sys._getframe(depth + 1)
    found: Standing = "own"
    while frame is not None:
        if inside(frame):
            return found
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _OURS:
            found = "handler"
        frame = frame.f_back
    return "left"


F = TypeVar("F", bound=Callable[..., object])
#: The versions of CPython whose tables of what is handled where are known:
#: Objects/exception_handling_notes.txt.
_TABLES_KNOWN = {(3, 11), (3, 12), (3, 13)}
#: How many numbers an entry in a table of what is handled has.
_IN_ENTRY = 4
#: How long, in seconds, is waited for the thread of `finish`: it may need a lock that a caller holds.
_PATIENCE = 10.0


def finish(act: Callable[[], object], owned: Callable[[], bool] = lambda: False) -> None:
    """Call `act`, again where a signal handler cuts it short; then raise what that handler raised.

    `act` finds out by itself what has been done.  `owned` says whether this thread holds a lock that `act`
    needs: then it is called here again, else in a thread of its own.

    Raises:
        AgentGuardError: of `act`.
        BaseException: what a signal handler raised meanwhile.
    """
    try:
        act()
    except AgentGuardError:
        raise
    except BaseException:
        if owned():
            act()
        else:
            _InThread(act).wait()
        raise


def covered(fn: F) -> F:
    """Have the first `try` of a function begin with its call.

    Python looks for signals as it enters a function, before its first line: what a handler raises there no
    `try` catches, and the block that `__exit__` was to leave would stay open.  So the table of what is
    handled where is changed, in interpreters on which this was tried; in others the function stays as it is.
    """
    function: Any = fn
    code = function.__code__
    if sys.implementation.name == "cpython" and sys.version_info[:2] in _TABLES_KNOWN:
        entered = (
            next(at for at in range(0, len(code.co_code), 2) if code.co_code[at] == opmap["RESUME"]) // 2
        )
        handled = [entry for entry in _read_table(code.co_exceptiontable) if entry[0] + entry[1] > entered]
        first = next(number for number, entry in enumerate(handled) if entry[0] > entered)
        start, length, *handler = handled[first]
        ranges = [(entered, start + length - entered, *handler), *handled[first + 1 :]]
        function.__code__ = code.replace(co_exceptiontable=b"".join(map(_written, ranges)))
    return fn


def at_its_call(cut: Callable[..., object]) -> Callable[[F], F]:
    """Have `cut(self, ...)` called where a signal handler raises as an async `__aexit__` is called.

    An `async def` is not begun before it is awaited.
    """

    def of(fn: F) -> F:
        covered(fn)

        @covered
        @functools.wraps(fn)
        def wrapper(self: object, *exc: object) -> object:
            try:
                return fn(self, *exc)
            except BaseException:
                cut(self, *exc)
                raise

        return cast("F", wrapper)

    return of


def _read_table(table: bytes) -> Iterator[tuple[int, ...]]:
    """Yield the entries: where the range begins, its length, its handler, and how deep that is."""
    numbers: list[int] = []
    value = 0
    for byte in table:
        value = value << 6 | byte & 63
        if not byte & 64:
            numbers.append(value)
            value = 0
        if len(numbers) == _IN_ENTRY:
            yield tuple(numbers)
            numbers = []


def _written(entry: tuple[int, ...]) -> bytes:
    written = bytearray()
    for number in entry:
        digits = [number & 63]
        while number := number >> 6:
            digits.append(number & 63 | 64)
        written += bytes(reversed(digits))
    written[0] |= 128
    return bytes(written)


def is_begun(thread: threading.Thread | None) -> bool:
    """Return whether there is a thread, and it was started: a signal handler may have come before that."""
    return thread is not None and thread.ident is not None


class _InThread:
    """A call in a thread of its own, awaited whatever signal handlers raise meanwhile."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._context = copy_context()
        self._begun = threading.Lock()
        self._done = threading.Event()

    def wait(self) -> None:
        """Return when the call is done; what it raises says that it cannot be done."""
        raised: BaseException | None = None
        for _ in range(_MOST_ATTEMPTS):
            try:
                if not self._begun.locked():
                    threading.Thread(target=self._call, daemon=True).start()
                self._done.wait(_PATIENCE)
                break
            except BaseException as error:  # noqa: BLE001 - raised below
                raised = error
        if raised is not None:
            raise raised

    def _call(self) -> None:
        if self._begun.acquire(blocking=False):
            try:
                self._context.run(self._act)
            except BaseException:  # noqa: BLE001, S110 - who waits has an error to raise already
                pass
            finally:
                self._done.set()


#: How often signal handlers may cut the wait for it short.
_MOST_ATTEMPTS = 10_000
