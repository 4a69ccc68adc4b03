"""The default kill switch: a page of memory shared by all processes of a home.

A check reads memory.  What is read there is a hint; the control log beside it is the truth.  The
page serves the processes of one machine, one PID namespace and one user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard.killswitch.files import KillFiles
from agentguard.killswitch.forking import renew_after_fork
from agentguard.killswitch.layout import announced
from agentguard.killswitch.participants import Participant, Participants
from agentguard.killswitch.waker import wake

if TYPE_CHECKING:
    from agentguard.events.codec import Stored
    from agentguard.events.model import Head
    from agentguard.killswitch.model import Acknowledgements, Kill
    from agentguard.killswitch.processes import Process
    from agentguard.killswitch.remote import HostReport


class PageKillSwitch:
    """Kills that reach every process under one directory, without a server.

    Nothing is touched before it is used.  `signal` stays readable for as long as somebody holds
    it.  If the page's file is deleted, it is made again from the control log, and holders of the
    old one are told within about a second, provided that a process among them has joined.

    Args:
        home: the directory with `control.log`, `control.lock`, `kill.page` and `live/`; it is
            made with mode 0700.
        clock: what stamps the records.
        files: what holds log and page; by default those of a home that depends on no server.

    Example:
        >>> import tempfile
        >>> from agentguard.killswitch.kill_requests import kill_data
        >>> switch = PageKillSwitch(Path(tempfile.mkdtemp()))
        >>> switch.record(*kill_data("bad prompt", tenant="acme", actor="ann"))
        1
        >>> switch.find("acme", "run-1", since=1).reason
        'bad prompt'
        >>> switch.close()
    """

    def __init__(self, home: Path, clock: Clock = SYSTEM_CLOCK, *, files: KillFiles | None = None) -> None:
        self.home = Path(home).absolute()
        self._live = self.home / "live"
        self._clock = clock
        self._files = KillFiles(self.home) if files is None else files
        self._participants = Participants(self._files, self._live)
        renew_after_fork(self)

    @property
    def signal(self) -> memoryview:
        """The page, read-only; index `GENERATION` changes with every control record.

        Raises:
            KillSwitchUnavailableError: it cannot be mapped, or is damaged.
        """
        with self._files.failing_closed():
            signal = self._files.current().signal
            self._participants.register()
            return signal

    def find(self, tenant: str, run_id: str, since: int) -> Kill | None:
        """The kill that stops a run created at generation `since`, by an exact look-up.

        Raises:
            KillSwitchUnavailableError: the page or the log is lost or damaged, and no kill that
                is still known stops the run.
        """
        with self._files.failing_closed():
            kill = self._files.find(tenant, run_id, since)
            if kill is None:
                self._participants.register()
            return kill

    def kills(self) -> list[Kill]:
        """All kills, oldest first, the cleared ones too."""
        with self._files.failing_closed():
            self._files.exact()
            return self._files.log.index.kills()

    def record(self, type: str, data: dict[str, Any], after: int | None = None) -> int:
        """Append to the control log, durably, then signal everybody; gives the generation.

        With `after`, as the record that follows generation `after`, or not at all.

        Raises:
            HeadMovedError: another record follows `after`.
            ValueError: a kill or revive that names no scope, target or reason.
            KillSwitchUnavailableError: it could not be recorded, or could not be shown; the
                message says which.
        """
        with self._files.failing_closed():
            before = self._participants.holders()
            try:
                generation = self._append(type, data, after)
            finally:
                wake(self._live)
            self._participants.note(before, generation)
            return generation

    def _append(self, event_type: str, data: dict[str, Any], after: int | None) -> int:
        return self._files.record(event_type, data, self._clock.wall(), after)

    def read(self, after: int = 0) -> Iterator[Stored]:
        """The control log as it is stored, unchecked; an altered line fits no chain."""
        self._files.check_open()
        return self._read(after)

    def _read(self, after: int) -> Iterator[Stored]:
        with self._files.failing_closed():
            yield from self._files.log.read(after)

    @property
    def announced(self) -> int:
        """The newest control record that the page knows of, for somebody who verifies the log."""
        return announced(self.home)

    def verify(self) -> Head:
        """Check the control log from its start, and give its head.

        Raises:
            LogIntegrityError: the first record that does not fit.
        """
        return self._files.log.verify()

    def repair(self, *, accept_loss: bool = False) -> int:
        """Rebuild the page in place from the control log, and give the generation.

        Processes that saw records which are lost stay refused until they are started again.

        Raises:
            KillSwitchUnavailableError: the log is damaged, or records were lost and `accept_loss`
                was not given.
        """
        with self._files.failing_closed():
            try:
                return self._files.repair(accept_loss=accept_loss)
            finally:
                wake(self._live)

    def join(self, on_change: Callable[[int], None]) -> Participant:
        """Take part: `on_change(generation)` is called in a thread of the switch after a change.

        A process counts as acknowledging when all its `on_change` have returned; where one
        raises, all are called again a second later.  Changes may be told together.  A child made
        by `fork` takes part as a process of its own from its next use on.
        """
        with self._files.failing_closed():
            return self._participants.join(on_change)

    def participants(self) -> list[Process]:
        """The live processes that take part, without those for whom the page had no entry."""
        with self._files.failing_closed():
            return sorted(self._participants.roster())

    def unacknowledged(self, generation: int) -> list[Process]:
        """The live processes that have not acted on `generation`."""
        with self._files.failing_closed():
            roster = self._participants.roster()
            return sorted(self._participants.missing(roster, generation))

    def hosts(self) -> list[HostReport]:
        """Return what is known of each host; nothing, since a page has but one."""
        return []

    def acknowledgements(self, generation: int, timeout: float) -> Acknowledgements:
        """Wait until every process that takes part has acted on `generation`.

        Where this switch recorded it, those that took part then count too, also if they have ended since,
        provided that they had acted on it.
        """
        with self._files.failing_closed():
            return self._participants.collect(generation, timeout)

    def close(self) -> None:
        """Leave, and refuse from now on.  Closing twice does nothing."""
        self._participants.leave_all()
        self._files.close()

    def after_fork(self) -> None:
        """In a forked child: keep the page, and make locks, reader and waker anew."""
        self._files.after_fork()
        self._participants.after_fork()
