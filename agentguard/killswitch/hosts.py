"""Whom a kill has reached on which host, by what the relays report to the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from msgspec import structs

from agentguard.killswitch.acks import Count
from agentguard.killswitch.remote import REPORTED_AGAIN, HostReport, RemoteLog

if TYPE_CHECKING:
    from agentguard.killswitch.participants import Participants

#: For so many of the newest records a report tells who acted on them and has gone since.
_RECENT = 8


def host_report(host: str, name: str, generation: int, participants: Participants) -> HostReport:
    """Return the report of this host, whose page shows `generation`."""
    roster = participants.roster()
    acknowledged = participants.acknowledged()
    gone = (acted for process, acted in acknowledged.items() if process not in roster)
    return HostReport(
        host=host,
        name=name,
        generation=generation,
        acknowledged=tuple(sorted(acknowledged.get(process, 0) for process in roster)),
        gone=tuple(sorted(acted for acted in gone if acted > max(generation - _RECENT, 0))),
    )


class OtherHosts:
    """The other hosts that a generation was meant for.

    Those are the hosts that are heard while it is waited for.  One that goes silent is still waited for:
    nobody can say whether its processes have acted.  One whose relay ended has nobody left who could act.
    Where none is heard at all, the server may have been flushed a moment ago: they get time to report.

    Args:
        remote: where the hosts report.
        here: the id of the host that waits, which counts by itself.
        generation: what they have to act on.
        give_back: called where the server has lost what it was told: the kill may be gone with it.
    """

    def __init__(
        self, remote: RemoteLog, here: str, generation: int, give_back: Callable[[], object]
    ) -> None:
        self._remote = remote
        self._here = here
        self._generation = generation
        self._give_back = give_back
        self._until = time.monotonic() + REPORTED_AGAIN
        self._seen: dict[str, HostReport] = {}
        self._note(remote.told_with(generation))

    def count(self) -> list[Count]:
        """Ask the server, and return whom the generation has reached on each host."""
        told = self._remote.reports()
        reports = {report.host: report for report in told if report.host != self._here}
        for host, known in self._seen.items():
            report = reports.get(host, known)  # which a server that was flushed has lost
            self._seen[host] = self._ended(known) if report.ended else report
        if not self._seen.keys() <= reports.keys():
            self._give_back()
        self._note(reports.values())
        heard = self._seen or any(report.fresh for report in told) or time.monotonic() >= self._until
        counts = [report.count(self._generation) for report in self._seen.values()]
        return counts if heard else [*counts, Count(0, 0, complete=False)]

    def _note(self, reports: Iterable[HostReport]) -> None:
        """Note the hosts that are waited for from now on."""
        for report in reports:
            if report.fresh and not report.ended and report.host != self._here:
                self._seen[report.host] = report

    def _ended(self, last: HostReport) -> HostReport:
        """The last report of a host whose relay has ended, without who had not acted until then."""
        acted = tuple(each for each in last.acknowledged if each >= self._generation)
        return structs.replace(last, generation=self._generation, acknowledged=acted)
