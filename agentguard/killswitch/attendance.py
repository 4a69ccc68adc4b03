"""Taking part in a home's kills: who joined in this process, and who is there in others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agentguard.errors import KillSwitchUnavailableError
from agentguard.killswitch.acks import collect
from agentguard.killswitch.presence import Presence, present

if TYPE_CHECKING:
    from agentguard.killswitch.files import KillFiles
    from agentguard.killswitch.model import Acknowledgements
    from agentguard.killswitch.processes import Process

_logger = logging.getLogger(__name__)


class Seat:
    """A participant: what `join` gives."""

    __slots__ = ("_attendance", "on_change")

    def __init__(self, attendance: Attendance, on_change: Callable[[int], None]) -> None:
        self._attendance = attendance
        self.on_change = on_change

    def acknowledge(self, generation: int) -> None:
        """Say that this process has acted on everything up to `generation`."""
        self._attendance.acknowledge(generation)

    def leave(self) -> None:
        """Give the place back.  Leaving twice does nothing."""
        self._attendance.leave(self)


class Attendance:
    """The seats of one switch in this process, behind one presence.  Safe for threads and fork."""

    def __init__(self, files: KillFiles, live: Path) -> None:
        self._files = files
        self._live = live
        self._lock = threading.Lock()
        self._seats: list[Seat] = []
        self._presence: Presence | None = None
        self._told = 0
        self._complaint = ""

    def join(self, on_change: Callable[[int], None]) -> Seat:
        """Have `on_change` called after every change."""
        seat = Seat(self, on_change)
        with self._lock:
            self._seats.append(seat)
        try:
            self.attend()
        except BaseException:
            self.leave(seat)
            raise
        return seat

    def leave(self, seat: Seat) -> None:
        """Call it no more."""
        with self._lock:
            if seat not in self._seats:
                return
            self._seats.remove(seat)
            last = not self._seats
        if last:
            self._stop()

    def leave_all(self) -> None:
        """Call nobody any more."""
        with self._lock:
            self._seats = []
        self._stop()

    def after_fork(self) -> None:
        """In a forked child: the seats are kept, and the presence begins anew at the next use."""
        self._lock = threading.Lock()
        presence, self._presence = self._presence, None
        if presence is not None:
            presence.abandon()

    def attend(self) -> None:
        """Be present if there is a seat; does nothing if we are."""
        if not self._seats or self._presence is not None:
            return
        generation = self._files.exact()
        page = self._files.current()
        with self._lock:
            if not self._seats or self._presence is not None:
                return
            presence = Presence(self._live, self._watch)
            self._told = generation
            try:
                with self._files.locked():
                    presence.take_place(page, generation)
                self._presence = presence
                presence.start()
            except BaseException:
                self._presence = None
                presence.give_back()
                raise

    def acknowledge(self, generation: int) -> None:
        """Say that this process has acted on everything up to `generation`."""
        presence = self._presence
        if presence is not None:
            presence.acknowledge(generation)

    def roster(self) -> set[Process]:
        """The live processes that take part."""
        places = self._files.current().places
        roster = {place.holder for place in places.taken() if place.holder.alive}
        # Where the page was made again, some may not have come to their new places yet.
        return roster if places.full else roster | present(self._live)

    def missing(self, roster: set[Process], generation: int) -> set[Process]:
        """Those among `roster` who have not acted on `generation`."""
        places = [p for p in self._files.current().places.taken() if p.holder in roster]
        late = {place.holder for place in places if place.acknowledged < generation}
        return late | (roster - {place.holder for place in places})

    def collect(self, generation: int, timeout: float) -> Acknowledgements:
        """Wait until every live process that takes part has acted on `generation`."""
        roster = self.roster()

        def count() -> tuple[int, int]:
            late = {process: process.alive for process in self.missing(roster, generation)}
            roster.difference_update(process for process, alive in late.items() if not alive)
            return len(roster), len(roster) - sum(late.values())

        return collect(count, timeout)

    def _stop(self) -> None:
        with self._lock:
            if self._seats:
                return
            presence, self._presence = self._presence, None
        if presence is not None:
            presence.stop()

    def _watch(self) -> None:
        """What the presence's thread does at each wake-up."""
        generation = self._look()
        if generation != self._told and self._tell(generation):
            self._told = generation
            self.acknowledge(generation)

    def _look(self) -> int:
        """See that files and mappings agree, and give the generation as far as it is known."""
        try:
            with self._files.failing_closed():
                generation = self._files.exact()
                self._settle(generation)
                self._files.spread(generation)
        except KillSwitchUnavailableError as error:
            self._files.alarm()
            if str(error) != self._complaint:
                self._complaint = str(error)
                _logger.critical("%s", error)
            return self._files.known()
        self._complaint = ""
        return generation

    def _settle(self, generation: int) -> None:
        page = self._files.current()
        if page.generation < generation:
            self._files.catch_up()
        presence = self._presence
        if presence is not None and presence.needs_place(page):
            with self._files.locked():
                presence.take_place(page, self._told)

    def _tell(self, generation: int) -> bool:
        """Call everybody who joined; whether all of them returned."""
        returned = True
        for seat in list(self._seats):
            try:
                seat.on_change(generation)
            except BaseException:
                _logger.exception("on_change failed at generation %d; it is tried again", generation)
                returned = False
        return returned
