"""What a kill is, whom it covers, and what the control log says about which are active.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from agentguard.errors import KillSwitchTriggeredError
from agentguard.events.data import KillRequest, data_of
from agentguard.events.model import KILL_CLEARED, KILL_SET, Record

GLOBAL = "global"
TENANT = "tenant"
RUN = "run"

#: Index of the generation in a switch's `signal`, a memoryview of unsigned 64-bit integers.
GENERATION = 1


class Kill(NamedTuple):
    """A stop that somebody ordered.

    `scope` is `"global"`, `"tenant"` or `"run"`; `target` the tenant or run id, empty for a
    global one.  `generation` is its sequence number in the control log.
    """

    scope: str
    target: str
    reason: str
    actor: str
    at_ns: int
    generation: int
    cleared: bool = False

    def covers(self, tenant: str, run_id: str) -> bool:
        """Whether this kill is meant for a run."""
        if self.scope == GLOBAL:
            return True
        return self.target == (tenant if self.scope == TENANT else run_id)

    def error(self, run_id: str | None) -> KillSwitchTriggeredError:
        """The stop that the run raises."""
        at = datetime.fromtimestamp(self.at_ns / 1e9, UTC)
        return KillSwitchTriggeredError(self.scope, self.reason, self.actor, at, run_id)


class Acknowledgements(NamedTuple):
    """Whom a kill reached: live processes attached, how many have seen it, and after how long."""

    live: int
    acknowledged: int
    seconds: float


def fold(records: Iterable[Record]) -> list[Kill]:
    """Every kill in a control log, oldest first, `cleared` where it was revived since.

    A `kill_cleared` clears all earlier kills of the same scope and target, and nothing else.
    """
    kills: list[Kill] = []
    for record in records:
        data = data_of(record, KillRequest)
        if record.type == KILL_SET:
            kills.append(
                Kill(
                    scope=data["scope"],
                    target=data.get("target", ""),
                    reason=data["reason"],
                    actor=data.get("actor", ""),
                    at_ns=record.at_ns,
                    generation=record.seq,
                )
            )
        elif record.type == KILL_CLEARED:
            match = (data["scope"], data.get("target", ""))
            kills = [
                kill._replace(cleared=True) if (kill.scope, kill.target) == match else kill for kill in kills
            ]
    return kills


def covering(kills: Iterable[Kill], tenant: str, run_id: str, since: int) -> Kill | None:
    """The first kill that stops a run: active, or ordered after generation `since`.

    A run is killed if a covering kill is active, or was ordered above the generation that the run
    read when it was created, revived since or not; a revive lets later runs start.
    """
    for kill in kills:
        if kill.covers(tenant, run_id) and (not kill.cleared or kill.generation > since):
            return kill
    return None
