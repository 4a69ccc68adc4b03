"""Group commit: what the threads and tasks of a process append is committed together.

An act is accepted in memory, in the order of its run, while that run's lock is held (`put`), and its
outcome is awaited after the lock was let go.  One connection, the writer, takes whatever has been accepted
and commits it: acts that only append in one round trip, the others in two.  While it waits for
the disk, the next acts gather, and where that takes long, it waits a little for more of them (`Pace`).  So
a process has one commit under way, with as many acts in it as there were threads and tasks waiting;
PostgreSQL in turn gathers the commits of several processes.

Who commits: a thread that waits commits itself if nobody else does at that moment, which saves it a change
of threads; else, and for event loops, a background thread does.

What goes wrong is told to the act alone that it happens to:

* Another writer was first, or an account has no room: that act fails, nothing of it is written, and every
  act of its run that was decided after it (`after`) fails with `HeadMovedError`.  The run reads its log
  again and decides anew.  Acts of other runs are committed.
* The server does not answer, or the connection breaks in the middle: nobody knows whether the commit was
  carried out.  The writer connects again, looks whether the logs hold the very events (their hashes tell),
  and carries out what is missing, until `store_timeout` has passed since the act was accepted.
* Another writer holds the run: it is waited for a moment, and then the act fails with `StoreBusyError`,
  after which the run decides again in `exclusive`, which waits as long as it takes.  So one held run does
  not hold up the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import psycopg

from agentguard._reentry import is_begun, standing
from agentguard.budget.account import Account
from agentguard.errors import StoreUnavailableError
from agentguard.protocols import CommitFuture, HeadMovedError, StoreBusyError
from agentguard.stores import _postgres_acts as acts_
from agentguard.stores._postgres_acts import SHORTLY, Act
from agentguard.stores._postgres_charges import charge, note
from agentguard.stores._postgres_link import Link, Translation, is_passing, retry, rollback
from agentguard.stores._postgres_listener import CHANNEL
from agentguard.stores._postgres_pace import Pace

#: How many acts one commit takes.
_MOST = 500
#: The least time that an act is tried for, in seconds, however long it has waited.
_ONE_TRY = 0.5
#: How often, in seconds, other processes are told that there is something new.
_NOTICE = 0.05


class Commits:
    """The acts that are accepted and not committed yet, and the connection that commits them."""

    def __init__(
        self, open_link: Callable[[], Link], errors: Translation, timeout: float, narrow: str | None
    ) -> None:
        self._open_link = open_link
        self._errors = errors
        self._timeout = timeout
        self._narrow = narrow
        self.reset()

    def reset(self) -> None:
        """Begin anew, also in a forked child, where the connection is the parent's."""
        self._mutex = threading.RLock()  # a signal handler may come back to it
        self._writing = threading.Lock()
        self._queue: list[Act] = []
        #: What is being committed, and the runs of it that nobody waits for any more.
        self._under_way: Sequence[Act] = ()
        self._recalled: set[int] = set()
        self._link: Link | None = None
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        #: When others were told of something new, and whether there is something that they were not told of.
        self._told = 0.0
        self._untold = False
        self._pace = Pace()
        #: What accounts held when they were last seen.
        self._accounts: dict[str, Account] = {}

    # --- accepting and waiting -----------------------------------------------------------------

    def put(self, act: Act) -> None:
        """Accept an act.  The caller holds its run's lock."""
        act.since = time.monotonic()
        with self._mutex:
            if self._closed:
                raise self._errors.closed()
            self._queue.append(act)

    def start(self) -> None:
        """Have what was accepted committed, without waiting for it."""
        if not is_begun(self._thread):
            with self._mutex:
                if not is_begun(self._thread) and not self._closed:
                    self._thread = threading.Thread(target=self._work, name="agentguard-commit", daemon=True)
                    self._thread.start()
        if not self._wake.is_set():
            self._wake.set()

    def wait(self, future: CommitFuture) -> dict[str, Account]:
        """Return the outcome of an act that was accepted, and commit it if nobody else does."""
        if future.done():
            return future.result()
        if not self._writing.locked():
            self._commit_here()
        elif standing(lambda frame: frame.f_code is _COMMIT_HERE) != "left":
            raise StoreUnavailableError(
                "this was called by a signal handler that interrupted a commit of the same thread, and would "
                "wait for itself; let the handler set a flag, and call from the program"
            )
        return future.result()

    def _commit_here(self) -> None:
        with self._writing:  # which no exception can leave held
            self._commit()
        if self._queue:
            self.start()

    def recall(self, number: int) -> None:
        """Return when no act of a run is under way; those that have not been sent fail.

        For a thread that holds locks on the server, which what is under way may be waiting for.
        """
        with self._mutex:
            mine = [act for act in self._queue if act.number == number]
            self._queue = [act for act in self._queue if act.number != number]
            under_way = [act for act in self._under_way if act.number == number]
            self._recalled.add(number)
        for act in mine:
            act.error = acts_.busy_error(act)
            act.resolve()
        for act in under_way:
            act.future.wait()
        self._recalled.discard(number)

    def close(self) -> None:
        """Commit what was accepted, and let go of the connection."""
        with self._mutex:
            self._closed = True
            thread, self._thread = self._thread, None
        self._wake.set()
        if thread is not None and is_begun(thread) and thread is not threading.current_thread():
            thread.join(self._timeout)
        with self._writing:
            while self._queue:
                self._commit()
            link, self._link = self._link, None
        if link is not None:
            link.close()

    # --- committing ----------------------------------------------------------------------------

    def _work(self) -> None:
        while self._thread is threading.current_thread():
            due = self._told + _NOTICE - time.monotonic()
            self._wake.wait(max(due, 0.0) if self._untold else None)
            self._wake.clear()
            if self._untold and time.monotonic() - self._told >= _NOTICE:
                with self._writing:
                    self._tell()
            # Last, since who found the writer at work leaves what it has accepted to it.
            while self._queue:
                with self._writing:
                    while not self._closed and (pause := self._pace.pause(len(self._queue))):
                        time.sleep(pause)
                    self._commit()

    def _commit(self) -> None:
        batch: list[Act] = []
        began = time.monotonic()
        try:
            with self._mutex:
                batch = self._queue[:_MOST]
                self._under_way = batch
                del self._queue[:_MOST]
            self._try_together(batch)
        except BaseException:
            # A signal handler raised, here or in the driver.  Others wait for these acts: they are tried
            # again, and those that were committed are found in the logs.
            self._drop_link()
            for act in batch:
                act.in_doubt = True
                act.future.tell()
            with self._mutex:
                queued = set(map(id, self._queue))
                self._queue[:0] = [act for act in batch if not act.future.done() and id(act) not in queued]
            self.start()
            raise
        finally:
            self._under_way = ()
        self._pace.committed(len(batch), len(self._queue), time.monotonic() - began)

    def _try_together(self, batch: Sequence[Act]) -> None:
        try:
            self._try(batch)
        except StoreUnavailableError as error:
            self._fail(batch, error)
        except psycopg.Error as error:
            if len(batch) == 1 or is_passing(error):
                self._fail(batch, self._errors.of(error))
            else:
                self._try_apart(batch)
        except Exception as error:
            if threading.current_thread() is threading.main_thread():  # of a signal handler, perhaps
                raise
            self._drop_link()
            for act in batch:
                act.in_doubt = True
            if len(batch) == 1:
                self._fail(batch, self._errors.unforeseen(error))
            else:
                self._try_apart(batch)

    def _try_apart(self, batch: Sequence[Act]) -> None:
        """Try the runs of a batch, or the acts of one run, by themselves: one may be at fault."""
        runs: dict[int, list[Act]] = {}
        for act in batch:
            runs.setdefault(act.number, []).append(act)
        for part in runs.values() if len(runs) > 1 else [[act] for act in batch]:
            self._try_together(part)

    def _fail(self, batch: Sequence[Act], error: BaseException) -> None:
        for act in batch:
            if not act.future.done():
                act.error = error
                act.resolve()

    def _try(self, batch: Sequence[Act]) -> None:
        left = list(batch)
        in_doubt = any(act.in_doubt for act in batch)
        deadline = max(left[0].since + self._timeout, time.monotonic() + _ONE_TRY) if left else 0.0

        def attempt() -> None:
            nonlocal left, in_doubt
            left = [act for act in left if not self._is_recalled(act)]
            link = self._writer()
            try:
                if in_doubt:
                    left = self._look(link, left)
                for act in left:
                    act.in_doubt = in_doubt
                    act.error = None  # of an earlier try, which was undone
                in_doubt = True
                self._carry_out(link, left)
                self._look_again(link, [act for act in left if not act.future.done()])
            except psycopg.Error:
                self._drop_link()
                raise

        retry(deadline, attempt)

    def _is_recalled(self, act: Act) -> bool:
        if act.future.done():
            return True
        if act.number in self._recalled:
            act.error = acts_.busy_error(act)
            act.resolve()
            return True
        return False

    def _look(self, link: Link, batch: list[Act]) -> list[Act]:
        """Tell the outcome of acts whose commit was carried out though its answer was lost."""
        for act in acts_.already_done(link, batch):
            act.error = None
            act.resolve()
        for act in batch:
            if not act.events and act.movements and not act.future.done():  # nothing tells
                act.error = self._errors.of(psycopg.OperationalError("the connection broke during a commit"))
                act.resolve()
        return [act for act in batch if not act.future.done()]

    def _look_again(self, link: Link, batch: list[Act]) -> None:
        """Tell acts in doubt that others were first, unless that was the earlier try of their own.

        The server may carry out a commit whose connection is gone, and holds the run until it has.
        """
        for act in self._look(link, batch) if batch else ():
            if isinstance(act.error, StoreBusyError):
                raise psycopg.errors.LockNotAvailable("another writer holds the run, or an earlier try does")
            act.resolve()

    def _carry_out(self, link: Link, batch: list[Act]) -> None:
        mixed = {act.number for act in batch if not act.plain}
        plain = [act for act in batch if act.number not in mixed]
        other = [act for act in batch if act.number in mixed]
        self._append(link, plain)
        self._transact(link, self._charge(link, other))
        if not self._untold:
            self._untold = True
            self.start()

    def _append(self, link: Link, batch: list[Act]) -> None:
        if not batch:
            return
        busy = acts_.append(link, batch, 0, self._narrow)
        self._resolve(batch, busy)
        if busy:
            try:
                still = acts_.append(link, busy, SHORTLY, self._narrow)
            except psycopg.errors.LockNotAvailable:
                still = busy
            self._give_up(busy, still)

    def _charge(self, link: Link, batch: list[Act]) -> list[Act]:
        left = charge(link, batch, self._narrow, self._accounts) if self._accounts else batch
        self._resolve(batch, left)
        return left

    def _transact(self, link: Link, batch: list[Act]) -> None:
        if not batch:
            return
        busy = self._in_transaction(link, batch, 0)
        self._resolve(batch, busy)
        if busy:
            try:
                still = self._in_transaction(link, busy, SHORTLY)
            except psycopg.errors.LockNotAvailable:
                still = busy
            self._give_up(busy, still)

    def _in_transaction(self, link: Link, batch: list[Act], patience: int) -> list[Act]:
        try:
            link.placed = 0
            busy = acts_.transact(link, batch, patience, self._narrow, whole=True)
        except psycopg.errors.LockNotAvailable:
            rollback(link)
            raise
        for act in batch:
            note(act.accounts, self._accounts)
        return busy

    def _give_up(self, batch: list[Act], busy: list[Act]) -> None:
        for act in busy:
            act.error = acts_.busy_error(act)
        self._resolve(batch, [])

    def _resolve(self, batch: list[Act], busy: list[Act]) -> None:
        waiting = set(map(id, busy))
        for act in batch:
            refused = act.in_doubt and isinstance(act.error, (HeadMovedError, StoreBusyError))
            if id(act) not in waiting and not refused:
                act.resolve()

    # --- the connection ------------------------------------------------------------------------

    def _writer(self) -> Link:
        if self._link is None or self._link.closed:
            self._link = self._open_link()
        return self._link

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _tell(self) -> None:
        """Tell those who listen that there is something new; nothing depends on it.

        Not with every commit, and not by who waits for one: a commit that tells takes a lock of the whole
        server, so that they would queue up.
        """
        self._told, self._untold = time.monotonic(), False
        try:
            self._writer().execute(_TELL)
        except (psycopg.Error, StoreUnavailableError):
            self._drop_link()


_COMMIT_HERE = Commits._commit_here.__code__
_TELL = f"BEGIN; SET LOCAL synchronous_commit = off; NOTIFY {CHANNEL}; COMMIT".encode()
