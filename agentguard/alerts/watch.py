"""Looks at a store again and again, and tells of each alert once: when it begins, and when it is over."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, TypeVar

from agentguard.alerts.rules import (
    RELAY_STALE,
    TENANT_BUDGET,
    UNAVAILABLE,
    WAITING,
    Alert,
    Present,
    Thresholds,
    alerts,
)
from agentguard.errors import AgentGuardError, RunNotFoundError
from agentguard.guard import Guard
from agentguard.killswitch.network import NetworkKillSwitch
from agentguard.monitoring import LiveRuns, RunStatus
from agentguard.sessions.alerting import FIRING as FIRING  # noqa: PLC0414 - sinks take it from here
from agentguard.sessions.alerting import RESOLVED as RESOLVED  # noqa: PLC0414
from agentguard.tenancy import UNSET

logger = logging.getLogger("agentguard.alerts")

#: Those that say that nothing can be put on record, or that what asks is on record, are told alone.
_NOT_ON_RECORD: Final = (RELAY_STALE, UNAVAILABLE, WAITING)

T = TypeVar("T")


class Notice(NamedTuple):
    """An alert that began, goes on or is over: since when, and when it is told (wall clock, nanoseconds)."""

    alert: Alert
    state: str
    since_ns: int
    at_ns: int


Sink = Callable[[Notice], None]


class Reader:
    """Reads the present of a guard; what cannot be read is part of it.  Not for several threads at once."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._clock = guard.components.clock
        self._live = LiveRuns(guard.components.store, self._clock)

    def live(self) -> list[RunStatus]:
        """Return the live runs alone.

        Raises:
            StoreUnavailableError: the store cannot be read.
        """
        return self._live.read()

    def read(self) -> Present:
        """Return the present."""
        guard = self._guard
        trouble: dict[str, str] = {}

        def read(component: str, ask: Callable[[], list[T]]) -> list[T]:
            try:
                return ask()
            except AgentGuardError as error:
                trouble[component] = str(error)
                return []

        live = read("store", self._live.read)
        return Present(
            live=live,
            waiting=[asked for status in live for asked in status.waiting],
            kills=read("kill switch", guard.kills),
            tenants=read("store", guard.tenants),
            relay_silent=relay_is_silent(guard),
            trouble=trouble,
            now_ns=self._clock.wall(),
        )


def relay_is_silent(guard: Guard) -> bool:
    """Return whether steps of this host are refused for want of a relay."""
    with suppress(AgentGuardError):
        switch = guard.components.switch
        return isinstance(switch, NetworkKillSwitch) and switch.relay_is_missed
    return False


class Watch:
    """Tells of the alerts of a guard, in a thread of its own: each to a log record and to every sink.

    An alert that goes on is told again after `repeat` seconds.  A sink that fails is logged and harms no
    other.  When it begins and when it is over is on record too, in the run's log or in the control log, once
    however many watch.

    Args:
        guard: whose store and kill switch are looked at; it stays open meanwhile.
        thresholds: from where on an alert is given.
        sinks: called with each notice, in the thread of the watch.
        interval: seconds between two looks.
        repeat: seconds after which what goes on is told again.

    Example:
        >>> from agentguard import Guard
        >>> with Guard.in_memory() as guard:
        ...     Watch(guard, Thresholds()).look()
        []
    """

    def __init__(
        self,
        guard: Guard,
        thresholds: Thresholds,
        sinks: Sequence[Sink] = (),
        *,
        interval: float = 5.0,
        repeat: float = 3600.0,
    ) -> None:
        self._guard = guard
        self._reader = Reader(guard)
        self._clock = guard.components.clock
        self._thresholds = thresholds.check()
        self._sinks = tuple(sinks)
        self._interval = interval
        self._repeat_ns = int(repeat * 1e9)
        #: What is firing, since when, and when it was told last.
        self._firing: dict[tuple[str, str], tuple[Alert, int, int]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> list[Notice]:
        """Look once; return, log and send what is new."""
        now = self._clock.wall()
        present = self._reader.read()
        found = {alert.key: alert for alert in alerts(present, self._thresholds)}
        notices = []
        for key, alert in found.items():
            _, since, told = self._firing.get(key, (alert, now, None))
            if told is None or now - told >= self._repeat_ns:
                notices.append(Notice(alert, FIRING, since, now))
                told = now
            self._firing[key] = (alert, since, told)
        for key in [*self._firing.keys() - found.keys()]:
            if not present.trouble or key[0] == UNAVAILABLE:  # else it may only not be seen
                alert, since, _ = self._firing.pop(key)
                notices.append(Notice(alert, RESOLVED, since, now))
        for notice in notices:
            self._tell(notice)
        for notice in notices:  # last: a store that does not answer must hold up nobody who is told
            self._put_on_record(notice)
        return notices

    @property
    def firing(self) -> list[Alert]:
        """What was firing at the last look."""
        return [alert for alert, _, _ in list(self._firing.values())]

    def start(self) -> None:
        """Look every `interval` seconds, in a daemon thread, until `stop`."""
        self._thread = threading.Thread(target=self.run, name="agentguard-alerts", daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Look every `interval` seconds until `stop` is called, from a signal handler too."""
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # whatever it is, the next look may do
                logger.exception("looking for alerts failed")
            self._stop.wait(self._interval)

    def stop(self) -> None:
        """End, and wait for the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _tell(self, notice: Notice) -> None:
        alert = notice.alert
        level = logging.WARNING if notice.state == FIRING else logging.INFO
        extra = {"alert": alert.kind, "subject": alert.subject, "tenant": alert.tenant, "state": notice.state}
        logger.log(level, "%s: %s", notice.state, alert.message, extra=extra)
        for sink in self._sinks:
            try:
                sink(notice)
            except Exception:
                logger.exception("an alert could not be handed on")

    def _put_on_record(self, notice: Notice) -> None:
        alert = notice.alert
        if alert.kind in _NOT_ON_RECORD:
            return
        of_tenant = alert.kind == TENANT_BUDGET
        try:
            self._guard.record_alert(
                alert.kind,
                alert.message,
                run=UNSET if of_tenant else alert.subject,
                subject=alert.subject if of_tenant else "",
                firing=notice.state == FIRING,
                facts=alert.facts,
            )
        except RunNotFoundError:
            pass  # it was pruned
        except AgentGuardError as error:
            logger.warning("an alert is not on record: %s", error)
        except Exception:
            logger.exception("an alert is not on record")
