"""Taking part in a home's kills: who joined in this process, and who is there in others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agentguard.errors import KillSwitchUnavailableError
from agentguard.killswitch.acks import collect
from agentguard.killswitch.waker import Waker, is_alive, live_processes

if TYPE_CHECKING:
    from agentguard.killswitch.files import KillFiles
    from agentguard.killswitch.model import Acknowledgements
    from agentguard.killswitch.processes import Process

_logger = logging.getLogger(__name__)


class Participant:
    """A participant: what `join` gives."""

    __slots__ = ("_participants", "on_change")

    def __init__(self, participants: Participants, on_change: Callable[[int], None]) -> None:
        self._participants = participants
        self.on_change = on_change

    def acknowledge(self, generation: int) -> None:
        """Say that this process has acted on everything up to `generation`."""
        self._participants.acknowledge(generation)

    def leave(self) -> None:
        """Stop taking part.  Leaving twice does nothing."""
        self._participants.leave(self)


class Participants:
    """The participants of one switch in this process, behind one waker.  Safe for threads and fork."""

    def __init__(self, files: KillFiles, live: Path) -> None:
        self._files = files
        self._live = live
        self._lock = threading.Lock()
        self._joined: list[Participant] = []
        self._waker: Waker | None = None
        self._told = 0
        self._complaint = ""

    def join(self, on_change: Callable[[int], None]) -> Participant:
        """Have `on_change` called after every change."""
        participant = Participant(self, on_change)
        with self._lock:
            self._joined.append(participant)
        try:
            self.register()
        except BaseException:
            self.leave(participant)
            raise
        return participant

    def leave(self, participant: Participant) -> None:
        """Call it no more."""
        with self._lock:
            if participant not in self._joined:
                return
            self._joined.remove(participant)
            last = not self._joined
        if last:
            self._stop()

    def leave_all(self) -> None:
        """Call nobody any more."""
        with self._lock:
            self._joined = []
        self._stop()

    def after_fork(self) -> None:
        """In a forked child: the participants are kept, and the waker begins anew at the next use."""
        self._lock = threading.Lock()
        waker, self._waker = self._waker, None
        if waker is not None:
            waker.abandon()

    def register(self) -> None:
        """Start the waker if somebody has joined; does nothing if it runs."""
        if not self._joined or self._waker is not None:
            return
        generation = self._files.exact()
        page = self._files.current()
        with self._lock:
            if not self._joined or self._waker is not None:
                return
            waker = Waker(self._live, self._watch)
            self._told = generation
            try:
                with self._files.locked():
                    waker.claim_entry(page, generation)
                self._waker = waker
                waker.start()
            except BaseException:
                self._waker = None
                waker.give_back()
                raise

    def acknowledge(self, generation: int) -> None:
        """Say that this process has acted on everything up to `generation`."""
        waker = self._waker
        if waker is not None:
            waker.acknowledge(generation)

    def roster(self) -> set[Process]:
        """The live processes that take part."""
        table = self._files.current().table
        roster = {entry.holder for entry in table.taken() if is_alive(self._live, entry.holder)}
        # Where the page was made again, some may not have come to their new table yet.
        return roster if table.full else roster | live_processes(self._live)

    def missing(self, roster: set[Process], generation: int) -> set[Process]:
        """Those among `roster` who have not acted on `generation`."""
        table = [p for p in self._files.current().table.taken() if p.holder in roster]
        late = {entry.holder for entry in table if entry.acknowledged < generation}
        return late | (roster - {entry.holder for entry in table})

    def collect(self, generation: int, timeout: float) -> Acknowledgements:
        """Wait until every live process that takes part has acted on `generation`."""
        roster = self.roster()

        def count() -> tuple[int, int]:
            late = {process: is_alive(self._live, process) for process in self.missing(roster, generation)}
            roster.difference_update(process for process, alive in late.items() if not alive)
            return len(roster), len(roster) - sum(late.values())

        return collect(count, timeout)

    def _stop(self) -> None:
        with self._lock:
            if self._joined:
                return
            waker, self._waker = self._waker, None
        if waker is not None:
            waker.stop()

    def _watch(self) -> float:
        """What the waker's thread does at each wake-up; gives the seconds until the next."""
        generation, usable = self._look()
        if generation != self._told and self._tell(generation):
            self._told = generation
            self.acknowledge(generation)
        elif not usable:
            # Nothing new was announced, but each step has to find for itself that nobody can tell.
            self._tell(generation)
        return self._files.next_look

    def _look(self) -> tuple[int, bool]:
        """See that files and mappings agree.

        Returns:
            The generation as far as it is known, and whether they agree.
        """
        try:
            with self._files.failing_closed():
                generation = self._files.examine()
                self._settle(generation)
                self._files.spread(generation)
        except KillSwitchUnavailableError as error:
            self._files.alarm()
            if str(error) != self._complaint:
                self._complaint = str(error)
                _logger.critical("%s", error)
            return self._files.known(), False
        self._complaint = ""
        return generation, True

    def _settle(self, generation: int) -> None:
        page = self._files.current()
        if page.newest < generation:
            self._files.catch_up()
        waker = self._waker
        if waker is not None and waker.needs_entry(page):
            with self._files.locked():
                waker.claim_entry(page, self._told)

    def _tell(self, generation: int) -> bool:
        """Call everybody who joined; whether all of them returned."""
        returned = True
        for participant in list(self._joined):
            try:
                participant.on_change(generation)
            except BaseException:
                _logger.exception("on_change failed at generation %d; it is tried again", generation)
                returned = False
        return returned
