"""Where the control log of many hosts lies: the record on a server, and what the hosts report there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from agentguard.events.codec import Stored

#: Seconds for which a host counts as live after its last report.
REPORT_LIFETIME = 3.0


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay of a host says of it.

    Attributes:
        host: the id of the host's page.
        name: what people call the host.
        generation: the newest control record that its page shows.
        acknowledged: for each live process that takes part, the generation it has acted on.
    """

    host: str
    name: str
    generation: int
    acknowledged: tuple[int, ...] = ()

    def count(self, generation: int) -> tuple[int, int]:
        """How many processes take part there, and how many of them have acted on a generation."""
        return len(self.acknowledged), sum(each >= generation for each in self.acknowledged)


class RemoteLog(Protocol):
    """The durable control log on a server.

    Records are chained like those of every log, and are checked by whoever reads them.  Whatever the
    driver raises reaches the caller as `KillSwitchUnavailableError`.  Methods may be called from any
    thread, but for `wait`, which the relay alone calls.
    """

    #: Where it is, to show people; without a password.
    url: str

    def read(self, after: int = 0) -> Sequence[Stored]:
        """The records above `after` in order, unchecked."""
        ...

    def append(self, stored: Stored) -> bool:
        """Add a record durably and tell every relay; False where its sequence is not the next one."""
        ...

    def wait(self, seconds: float) -> Sequence[Stored]:
        """Wait until something is appended, at most so many seconds, and give what was told of it.

        Nothing is given where nothing happened, and nothing can be concluded from that.
        """
        ...

    def report(self, report: HostReport) -> None:
        """Put the report of a host in the place of its last one."""

    def reports(self) -> Sequence[HostReport]:
        """The reports of the hosts that have sent one in the last `REPORT_LIFETIME` seconds."""
        ...

    def forget(self, host: str) -> None:
        """Take back the report of a host whose relay ends."""

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone."""

    def close(self) -> None:
        """Give back what was opened; the next use opens it again."""
