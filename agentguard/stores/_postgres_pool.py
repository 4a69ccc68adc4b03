"""The connections of one store: lent to a thread, kept for a while, opened where there are too few."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import psycopg

from agentguard.stores import _postgres_schema
from agentguard.stores._postgres_link import Link, Translation, connect, retry

_T = TypeVar("_T")

_IDLE = 4


class Pool:
    """A few idle connections, and at most `most` in use.

    A pool that connects in the background cannot say why it could not, and does not live through a fork.
    """

    def __init__(self, url: str, errors: Translation, timeout: float, most: int, *, narrow: bool) -> None:
        self._url = url
        self._errors = errors
        self._timeout = timeout
        self._most = most
        self._narrow = narrow
        self.reset()

    def reset(self) -> None:
        """Begin anew; in a forked child, where the connections are the parent's.

        psycopg closes no connection in another process than the one that opened it.
        """
        self._free = threading.Semaphore(self._most)
        self._idle: list[Link] = []
        self._lent: set[Link] = set()
        self._closed = False
        self._checked = False
        #: Whether the login is a tenant's own, known once somebody has connected.
        self.tenant_login = False

    def open(self) -> Link:
        """A connection of the caller's own, tried once.

        Raises:
            StoreUnavailableError: the store is closed, or its schema is missing, older or newer.
            psycopg.Error: the server cannot be reached, or refuses.
        """
        if self._closed:
            raise self._errors.closed()
        link = connect(self._url, self._timeout)
        try:
            if not self._checked:
                self.tenant_login = _postgres_schema.check(link, self._url, narrow=self._narrow)
                self._checked = True
            return link  # noqa: TRY300 - or a signal handler raises here
        except BaseException:
            link.close()
            raise

    @contextmanager
    def lend(self) -> Iterator[Link]:
        """A connection for the length of the block; one that broke, or is in a transaction, is dropped."""
        link = self._take()
        try:
            yield link
            self.give_back(link)
        except BaseException:
            self.give_back(link)
            raise

    def fresh(self, begin: Callable[[Link], _T]) -> tuple[Link, _T]:
        """A connection on which `begin` has succeeded; the caller gives it back."""

        def attempt() -> tuple[Link, _T]:
            link = self._take()
            try:
                return link, begin(link)
            except BaseException:
                link.close()
                self.give_back(link)
                raise

        return retry(time.monotonic() + self._timeout, attempt)

    def reading(self, read: Callable[[Link], _T]) -> _T:
        """What `read` returns, on another connection where one breaks: reading twice does no harm."""

        def attempt() -> _T:
            with self.lend() as link:
                return read(link)

        return retry(time.monotonic() + self._timeout, attempt)

    def give_back(self, link: Link) -> None:
        """Take back what was lent, once.

        Whatever cuts this short, to call it again is right: at worst a connection is closed for nothing.
        """
        if link not in self._lent:
            return
        usable = not link.closed and link.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        usable = usable and not self._closed and len(self._idle) < _IDLE
        if not usable:
            link.close()
        self._free.release()
        try:
            self._lent.discard(link)
            if usable:
                self._idle.append(link)
        except BaseException:
            link.close()
            raise

    def close(self) -> None:
        """Close what is idle now, and the rest when it is given back."""
        self._closed = True
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()

    def _take(self) -> Link:
        if self._closed:
            raise self._errors.closed()
        if not self._free.acquire(timeout=self._timeout):
            raise psycopg.OperationalError(
                f"all {self._most} connections of this process were in use for {self._timeout:g} s"
            )
        link: Link | None = None
        try:
            with suppress(IndexError):
                link = self._idle.pop()
            link = link or self.open()
            self._lent.add(link)
            return link  # noqa: TRY300 - or a signal handler raises here
        except BaseException:
            self._free.release()
            if link is not None:
                self._lent.discard(link)
                link.close()
            raise
