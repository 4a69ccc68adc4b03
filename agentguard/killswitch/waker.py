"""A process that takes part: its entry in the page, and the thread that a killer can wake.

A killer wakes participants through FIFOs, since nothing else that lives in a directory can be
waited for without polling.  A FIFO is named `<pid>.<start>.<number>.fifo`, and, by a process of another
PID namespace than the machine's first, `<pid>.<start>.<number>.<namespace>.fifo`.  It is open for as long
as its process lives: that is how processes of other namespaces are told to be alive.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakMethod

from agentguard._home import make_private
from agentguard._reentry import is_begun
from agentguard.killswitch.processes import Process, current

if TYPE_CHECKING:
    from agentguard.killswitch.layout import Page

#: Seconds that a thread is given to end.
ENDING = 2.0

#: How long, in seconds, a FIFO may be there before its process opens it.
_BEING_MADE = 10.0

_numbers = count(1)


class Waker:
    """This process's attendance at one switch, from the first `join` to the last `leave`.

    `watch` is held weakly and called in the thread, at once and after every wake-up or time-out; it
    returns the seconds until the next time-out.  The thread ends by itself when its owner has gone.
    `watch` must not raise.
    """

    def __init__(self, live: Path, watch: Callable[[], float]) -> None:
        self.process = current()
        self.page: Page | None = None
        self._entry: int | None = None
        self._claimed_at = 0
        self._watch = WeakMethod(watch)
        self._lock = threading.Lock()
        self._stopping = False
        make_private(live)
        if live.is_symlink():
            raise OSError(errno.ELOOP, "is a link, and processes would be woken elsewhere", str(live))
        _sweep(live)
        self._live = live
        self.fifo = live / _name(self.process, next(_numbers))
        self.fifo.unlink(missing_ok=True)
        os.mkfifo(self.fifo, 0o600)
        # Open for writing as well, so that it never comes to an end.
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor: int | None = os.open(self.fifo, flags)
        self._thread = threading.Thread(target=self._run, name="agentguard-kill", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and give everything back; from inside `watch`, soon after it returns."""
        with self._lock:
            self._stopping = True
            if self._descriptor is not None:
                with suppress(BlockingIOError):
                    os.write(self._descriptor, b"\0")
        if is_begun(self._thread) and self._thread is not threading.current_thread():
            # Not for ever: `watch` may be waiting for a lock that our caller holds.
            self._thread.join(ENDING)

    def abandon(self) -> None:
        """In a forked child: let go of the copies of what is the parent's."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def needs_entry(self, page: Page) -> bool:
        """Whether this process has no entry in this page, or has lost it."""
        if self.page is not page or self._entry is None:
            return True
        return not page.table.held(self._entry, self.process)

    def claim_entry(self, page: Page, generation: int) -> None:
        """Claim an entry; with the table full, take part uncounted.  The home's lock is held."""
        self._entry = page.table.claim(
            self.process, generation, lambda process: is_alive(self._live, process)
        )
        self.page = page
        self._claimed_at = generation

    def acknowledge(self, generation: int) -> None:
        """Say that this process has acted on everything up to `generation`."""
        page, entry = self.page, self._entry
        if page is None or entry is None or not page.whole:
            return
        if page.table.held(entry, self.process):
            page.table.acknowledge(entry, generation)

    def _run(self) -> None:
        poller = select.poll()
        descriptor = self._descriptor
        if descriptor is None:
            return
        poller.register(descriptor, select.POLLIN)
        # A fork inside `watch` leaves a child with this thread alone, which has to go.
        while not self._stopping and os.getpid() == self.process.pid:
            watch = self._watch()
            if watch is None:
                break
            seconds = watch()
            # Not held while waiting, so that an owner that nobody closed can go.
            del watch
            if self._stopping:
                break
            if poller.poll(seconds * 1000):
                with suppress(BlockingIOError):
                    os.read(descriptor, 4096)
        if os.getpid() == self.process.pid:
            self.give_back()

    def give_back(self) -> None:
        """Leave the entry and remove the FIFO; the thread's last act.

        In this order: who counts whom a kill has reached must not find a process that is neither there nor
        has acted.
        """
        page, entry = self.page, self._entry
        if page is not None and entry is not None and page.whole and page.table.held(entry, self.process):
            # Nothing here can be stopped any more, so that everything has been acted on.
            page.table.acknowledge(entry, page.newest)
            page.table.vacate(entry, since=self._claimed_at)
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
        self.fifo.unlink(missing_ok=True)


def wake(live: Path) -> None:
    """Wake every participant."""
    for fifo, process in _fifos(live):
        try:
            descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            # Nobody has it open.  One that is being made belongs to a process that is alive.
            _remove_if_dead(fifo, process)
            continue
        try:
            # A full FIFO is as good as a wake-up.
            with suppress(OSError):
                if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                    os.write(descriptor, b"\0")
        finally:
            os.close(descriptor)


def live_processes(live: Path) -> set[Process]:
    """Return the live processes that can be woken."""
    return {
        process for fifo, process in _fifos(live) if (process.alive if process.is_local else _is_open(fifo))
    }


def is_alive(live: Path, process: Process) -> bool:
    """Say whether a participant lives; one of another PID namespace does while it has a FIFO open."""
    if process.is_local:
        return process.alive
    return any(_is_open(fifo) for fifo, holder in _fifos(live) if holder == process)


def _is_open(fifo: Path) -> bool:
    """Whether some process has a FIFO open, or is about to."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.ENXIO and time.time() - _made_at(fifo) < _BEING_MADE
    return True


def _made_at(fifo: Path) -> float:
    try:
        return fifo.lstat().st_mtime
    except OSError:
        return 0.0


def _sweep(live: Path) -> None:
    """Remove what the dead have left."""
    for fifo, process in _fifos(live):
        _remove_if_dead(fifo, process)


def _remove_if_dead(fifo: Path, process: Process) -> None:
    if not (process.alive if process.is_local else _is_open(fifo)):
        with suppress(OSError):
            fifo.unlink()


def _fifos(live: Path) -> Iterator[tuple[Path, Process]]:
    try:
        if live.is_symlink():
            return
        names = os.listdir(live)  # noqa: PTH208 - iterdir gives the same, ten times slower
    except OSError:
        return
    for name in names:
        *numbers, kind = name.split(".")
        if kind == "fifo" and len(numbers) in (3, 4) and all(number.isdigit() for number in numbers):
            pid, start, _, *namespace = map(int, numbers)
            yield live / name, Process(pid, start, *namespace)


def _name(process: Process, number: int) -> str:
    numbers = [process.pid, process.start, number, *([process.namespace] if process.namespace else [])]
    return ".".join(map(str, numbers)) + ".fifo"
