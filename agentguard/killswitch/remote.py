"""Where the control log of many hosts lies: the record on a server, and what the hosts report there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
from msgspec import structs

from agentguard import _typed
from agentguard.events.codec import Stored
from agentguard.killswitch.acks import Count

#: Seconds for which a host is waited for after its last report.
REPORT_LIFETIME = 10.0
#: Seconds in which every host reports again to a server that has lost the reports.
REPORTED_AGAIN = 0.5
#: Seconds for which the report of a host that has gone silent is kept.
REPORT_KEPT = 3600.0


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay of a host says of it.

    Attributes:
        host: the id of the host's page.
        name: what people call the host.
        generation: the newest control record that its page shows.
        acknowledged: for each live process that takes part, the generation it has acted on.
        gone: the same for processes that have left or died since, where it is a recent one.
        ended: whether its relay ended because nobody took part any more.  A report that is gone says nothing.
        silent: seconds since the report was sent, by the server's clock; set by `RemoteLog.reports`.
    """

    host: str
    name: str
    generation: int
    acknowledged: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()
    ended: bool = False
    silent: float = 0.0

    @property
    def fresh(self) -> bool:
        """Whether the host was heard of late, so that it is waited for."""
        return self.silent <= REPORT_LIFETIME

    def count(self, generation: int) -> Count:
        """Return whom a generation has reached there; complete once the page shows the generation."""
        gone = sum(each >= generation for each in self.gone)
        acted = sum(each >= generation for each in self.acknowledged)
        return Count(len(self.acknowledged) + gone, acted + gone, self.generation >= generation)


def parse_report(host: str, report: str | bytes, silent: float) -> HostReport:
    """Return a report as it lies on the server; one that says nothing is of a host that has heard nothing."""
    try:
        return structs.replace(_typed.decode(report, HostReport), silent=max(0.0, silent))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return HostReport(host=host, name=host, generation=0, silent=max(0.0, silent))


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

    def append(self, stored: Stored, previous: bytes) -> bool:
        """Add a record durably and tell every relay, in one act.

        It is sent once more, on another connection, where the one in use was cut: by a firewall, by the
        server's limit on idle ones or as it began anew.  A kill must not fail for that.

        Returns:
            Whether the server has it.  False, with nothing added, where its sequence is not the next one, or
            where the newest record has another hash than `previous`.
        """
        ...

    def told_with(self, generation: int) -> Sequence[HostReport]:
        """Return the reports of when this process appended a record, where the server may lose them."""
        ...

    def wait(self, seconds: float) -> bool:
        """Wait until it is told that something was appended, at most so many seconds; return whether it was.

        Whoever can connect may tell it, and tell anything: the record says what happened, and nothing else.
        """
        ...

    def report(self, report: HostReport) -> None:
        """Put the report of a host in the place of its last one."""

    def reports(self) -> Sequence[HostReport]:
        """Return the newest report of each host, and how long ago it was sent."""
        ...

    def knows(self, host: str) -> bool:
        """Return whether the server still has the report of a host, whose relay reports again otherwise."""
        ...

    def prune(self) -> None:
        """Remove reports that are older than `REPORT_KEPT`: their relays have ended."""

    def after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone."""

    def close(self) -> None:
        """Give back what was opened; the next use opens it again."""


def holds(log: RemoteLog, stored: Stored) -> bool:
    """Say whether a server has this very record, which was sent again as the answer had been lost."""
    return [found.hash for found in log.read(stored.seq - 1)[:1]] == [stored.hash]
