"""Hearing of appends: a connection that listens for what `_postgres_commits` notifies of."""

from __future__ import annotations

import time
from collections.abc import Callable

from psycopg import errors as pg

from agentguard.stores._postgres_link import Link, retry

CHANNEL = "agentguard_events"


class Listener:
    """A connection of its own, opened when something is waited for first."""

    def __init__(self, open_link: Callable[[], Link], timeout: float) -> None:
        self._open_link = open_link
        self._timeout = timeout
        self.reset()

    def reset(self) -> None:
        """Begin anew, also in a forked child, where the connection is the parent's."""
        self._link: Link | None = None

    def wait(self, timeout: float) -> None:
        """Return at the next notice, at most after `timeout` seconds; at once where it begins to listen.

        Raises:
            psycopg.Error: the server cannot be reached, or refuses.
        """
        if self._link is None or self._link.closed:
            self._link = retry(time.monotonic() + self._timeout, self._listen)
            return
        try:
            for _ in self._link.notifies(timeout=timeout, stop_after=1):
                return
        except pg.OperationalError:  # it was cut: the next call listens again
            self._link.close()

    def close(self) -> None:
        """Let go of the connection."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _listen(self) -> Link:
        link = self._open_link()
        try:
            link.execute(f"LISTEN {CHANNEL}".encode())
            return link  # noqa: TRY300 - or a signal handler raises here
        except BaseException:
            link.close()
            raise
