"""The kills of a control log, by whom they are meant for, so that a look-up costs no walk."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter

from agentguard.events.data import KillRequest, data_of
from agentguard.events.model import KILL_CLEARED, KILL_SET, Record
from agentguard.killswitch.model import GLOBAL, RUN, TENANT, Kill, covering, fold

_Target = tuple[str, str]
_by_generation = attrgetter("generation")


class KillIndex:
    """What the records added so far say.  Readers need no lock; there is one writer at a time."""

    def __init__(self) -> None:
        self._records: dict[_Target, list[Record]] = {}
        self._kills: dict[_Target, list[Kill]] = {}

    def add(self, record: Record) -> None:
        """Take in the next record of the log; only kills and revives matter here."""
        if record.type not in (KILL_SET, KILL_CLEARED):
            return
        data = data_of(record, KillRequest)
        target = (data["scope"], data.get("target", ""))
        records = self._records.setdefault(target, [])
        records.append(record)
        # A revive touches its own target alone, so folding one target is folding the log.
        self._kills[target] = fold(records)

    def find(self, tenant: str, run_id: str, since: int) -> Kill | None:
        """The first kill that stops a run created at generation `since`."""
        targets = ((GLOBAL, ""), (TENANT, tenant), (RUN, run_id))
        kills = chain.from_iterable(self._kills.get(target, ()) for target in targets)
        return covering(sorted(kills, key=_by_generation), tenant, run_id, since)

    def kills(self) -> list[Kill]:
        """All kills, oldest first, the cleared ones too."""
        return sorted(chain.from_iterable(list(self._kills.values())), key=_by_generation)

    @property
    def everything_stopped(self) -> bool:
        """Whether a global kill is active."""
        return any(not kill.cleared for kill in self._kills.get((GLOBAL, ""), ()))
