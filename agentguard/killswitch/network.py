"""The kill switch of many hosts: the truth on a server, a page on each host, a relay between them."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from msgspec import structs

from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard._loading import LOADING
from agentguard._secrets.urls import public_url, url_parts, with_options
from agentguard.killswitch import relay_process
from agentguard.killswitch.acks import collect, total
from agentguard.killswitch.hosts import OtherHosts, host_report
from agentguard.killswitch.mirror import Mirror, MirrorFiles
from agentguard.killswitch.page import PageKillSwitch
from agentguard.killswitch.participants import Participant
from agentguard.killswitch.remote import HostReport, RemoteLog

if TYPE_CHECKING:
    from agentguard.events.codec import Stored
    from agentguard.events.model import Head
    from agentguard.killswitch.model import Acknowledgements, Kill

#: Seconds for which a silent relay is believed; in the URL, `max_staleness`.
MAX_STALENESS = 2.0
#: Seconds that a relay is given to start, the first time that a process needs it.
STARTING = 30.0
#: Seconds between two looks at the reports of other hosts.
_PAUSE = 0.002

SCHEMES = ("redis", "rediss", "unix", "postgresql", "postgres")


class NetworkKillSwitch(PageKillSwitch):
    """Kills that reach every process on every host, by a server that all of them can reach.

    A check reads this host's page and nothing else.  A relay process follows the server and writes
    the page; the first `join` starts it where none runs.  Once it has been silent for longer than
    `max_staleness`, `find` refuses: fail closed.

    Args:
        url: `redis://…`, `rediss://…`, `unix://…` or `postgresql://…`, with the options `prefix`
            (Redis: what the keys begin with) and `max_staleness` (seconds, 2 by default).
        home: the state directory, under which the page of this URL gets a folder of its own.
        clock: what stamps the records.

    Raises:
        MissingExtraError: the driver of the server is not installed.
        ValueError: the URL is none, or an option cannot be meant.

    Example:
        >>> from agentguard import Guard
        >>> guard = Guard.open(kill_switch="redis://kills.internal:6379/0")  # doctest: +SKIP
    """

    def __init__(self, url: str, home: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        server, max_staleness = split_url(url)
        remote = open_log(server)
        folder = folder_of(server, home)
        self._mirrored = MirrorFiles(folder, remote.url, max_staleness, server)
        super().__init__(folder, clock, files=self._mirrored)
        self.url = remote.url
        self._mirror = Mirror(self._mirrored, remote)
        self._started = False
        self._starting = threading.Lock()

    @property
    def signal(self) -> memoryview:
        """This host's page, read-only.

        Raises:
            KillSwitchUnavailableError: it cannot be mapped, or nothing is known of the server yet.
        """
        self._catch_up()
        return super().signal

    def find(self, tenant: str, run_id: str, since: int) -> Kill | None:
        """The kill that stops a run created at generation `since`.

        Raises:
            KillSwitchUnavailableError: no kill that is known stops the run, and the relay has been
                silent for longer than `max_staleness`.
        """
        with self._files.failing_closed():
            self._start_relay()
        return super().find(tenant, run_id, since)

    def kills(self) -> list[Kill]:
        """All kills of every host, oldest first, the cleared ones too."""
        self._catch_up()
        return super().kills()

    def read(self, after: int = 0) -> Iterator[Stored]:
        """The control log as this host has it."""
        self._catch_up()
        return super().read(after)

    def record(self, type: str, data: dict[str, Any], after: int | None = None) -> int:
        """Append to the server's log, durably, then signal every host; gives the generation.

        With `after`, as the record that follows generation `after`, or not at all.

        Raises:
            HeadMovedError: another record follows `after`.
            ValueError: a kill or revive that names no scope, target or reason.
            KillSwitchUnavailableError: the server cannot be reached; after a kill, every step of this
                host is refused until it is recorded.
        """
        self._files.check_open()
        return super().record(type, data, after)

    def _append(self, event_type: str, data: dict[str, Any], after: int | None) -> int:
        return self._mirror.record(event_type, data, self._clock.wall(), after)

    def verify(self) -> Head:
        """Check the control log on the server and this host's copy, and give the head."""
        return self._mirror.verify()

    def repair(self, *, accept_loss: bool = False) -> int:
        """Rebuild the page from this host's copy; with `accept_loss`, the copy from the server."""
        if accept_loss:
            with self._files.locked(), suppress(FileNotFoundError):
                self._files.log.path.replace(self._files.log.path.with_suffix(f".{time.time_ns()}.lost"))
            super().repair(accept_loss=True)
            with self._files.failing_closed():
                return self._mirror.sync()
        return super().repair()

    def join(self, on_change: Callable[[int], None]) -> Participant:
        """Take part, and see that this host has a relay."""
        with self._files.failing_closed():
            self._start_relay()
        return super().join(on_change)

    @property
    def relay_is_missed(self) -> bool:
        """Whether processes of this host take part and their steps are refused, as its relay is not heard.

        Where none takes part, as on the host of a console, none is needed.
        """
        return not self._mirrored.fresh and bool(self.participants())

    def hosts(self) -> list[HostReport]:
        """Return what is known of each host, by name; `silent` says how long ago the host was heard."""
        self._files.check_open()
        here = relay_process.host_id(self.home)
        reports = [report for report in self._mirror.remote.reports() if not report.ended]
        return sorted(
            (self._own(report) if report.host == here else report for report in reports),
            key=lambda report: report.name,
        )

    def _own(self, report: HostReport) -> HostReport:
        """The report of this host, as it is now and not when its relay last looked."""
        now = host_report(report.host, report.name, self._files.log.refresh(), self._participants)
        return structs.replace(now, silent=report.silent)

    def acknowledgements(self, generation: int, timeout: float) -> Acknowledgements:
        """Wait until every process that takes part, on every host that was heard of late, has acted.

        Processes that have acted on `generation` and ended since count as on this host.  A host that goes
        silent meanwhile is waited for, and its processes count as it last reported them.
        """
        with self._files.failing_closed():
            self._files.check_open()
            here = self._participants.reached(generation)
            remote, give_back = self._mirror.remote, self._mirror.sync
            others = OtherHosts(remote, relay_process.host_id(self.home), generation, give_back)
            return collect(lambda: total([here(), *others.count()]), timeout)

    def close(self) -> None:
        """Leave, and refuse from now on.  Closing twice does nothing."""
        super().close()
        self._mirror.remote.close()

    def after_fork(self) -> None:
        """In a forked child: keep the page, and make locks, connections and waker anew."""
        super().after_fork()
        self._starting = threading.Lock()
        self._mirror.remote.after_fork()

    def _catch_up(self) -> None:
        """Ask the server itself, where the relay does not keep this host's copy up to date."""
        self._files.check_open()
        if not self._mirrored.fresh:
            with self._files.failing_closed():
                self._mirror.sync()

    def _start_relay(self) -> None:
        """See that a relay runs; the first time, wait until it is heard, or says why it cannot be."""
        if self._mirrored.fresh or not self._starting.acquire(blocking=not self._started):
            return
        try:
            self._mirrored.keep_relay()
            deadline = time.monotonic() + STARTING
            while not self._started and not self._mirrored.fresh and time.monotonic() < deadline:
                if (self.home / relay_process.COMPLAINT_NAME).exists():
                    break
                time.sleep(_PAUSE)
            self._started = True
        finally:
            self._starting.release()


def split_url(url: str) -> tuple[str, float]:
    """The server's own URL, and for how many seconds a silent relay is believed.

    Raises:
        ValueError: the scheme is unknown, or `max_staleness` is no positive number.
    """
    parts = url_parts(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"no kill switch for {public_url(url)!r}; known are {', '.join(SCHEMES)}")
    options = parse_qsl(parts.query, keep_blank_values=True)
    text = dict(options).get("max_staleness", str(MAX_STALENESS))
    try:
        max_staleness = float(text)
    except ValueError:
        max_staleness = math.nan
    if not 0 < max_staleness < math.inf:
        raise ValueError(f"{public_url(url)}: max_staleness must be seconds above 0, not {text!r}")
    rest = (option for option in options if option[0] != "max_staleness")
    return with_options(parts, rest), max_staleness


def open_log(server: str) -> RemoteLog:
    """The control log on a server; nothing is opened before it is used."""
    log: RemoteLog
    if url_parts(server).scheme in ("postgresql", "postgres"):
        with LOADING:
            from agentguard.killswitch.postgres import PostgresLog  # noqa: PLC0415 - a driver of its own

        log = PostgresLog(server)
    else:
        with LOADING:
            from agentguard.killswitch.redis import RedisLog  # noqa: PLC0415 - a driver of its own

        log = RedisLog(server)
    return log


def folder_of(server: str, home: Path) -> Path:
    """Where the page of a server lies, whatever user and password reach it."""
    digest = hashlib.sha256(public_url(server).encode()).hexdigest()[:16]
    return Path(os.path.abspath(home)) / "relay" / digest  # noqa: PTH100 - without following links
