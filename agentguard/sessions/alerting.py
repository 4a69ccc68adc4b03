"""Alerts on record: of a run in its log, of anything else in the control log; each once, whoever tells it."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.data import AlertTold, data_of
from agentguard.events.model import Record
from agentguard.protocols import HeadMovedError, KillSwitch
from agentguard.steps.live import LiveRun

FIRING: Final = "firing"
RESOLVED: Final = "resolved"

_MARK = b'"type":"%s"' % ev.ALERT.encode()


def record_alert(live_run: LiveRun, data: AlertTold) -> bool:
    """Put an alert of a run on record, unless it is already; an ended run takes none.  Return whether it was.

    Two that tell the same at once are told apart by the log: the first one is on record.
    """

    def put() -> bool:
        fold = live_run.fold
        if fold.state.final or fold.alerts.get(data["kind"], RESOLVED) == data["state"]:
            return False
        live_run.log.act([Record(0, ev.ALERT, live_run.clock.wall(), data=data)])
        return True

    return live_run.log.decide(put)


def record_alert_of_others(switch: KillSwitch, data: AlertTold) -> bool:
    """Put an alert that is about no run alone on record in the control log, unless it is already.

    Two that tell the same at once are told apart by the log: the first one is on record.
    """
    while True:
        newest, state = 0, RESOLVED
        for stored in switch.read():
            newest = stored.seq
            if _MARK in stored.body[:64]:
                told = data_of(codec.decode(stored.body), AlertTold)
                if (told["kind"], told.get("subject")) == (data["kind"], data.get("subject")):
                    state = told["state"]
        if state == data["state"]:
            return False
        with suppress(HeadMovedError):  # another record came first, perhaps the same
            switch.record(ev.ALERT, dict(data), after=newest)
            return True
