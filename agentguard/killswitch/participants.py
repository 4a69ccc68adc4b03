"""Taking part in a home's kills: who joined in this process, and who is there in others."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agentguard.errors import AgentGuardError, KillSwitchUnavailableError
from agentguard.killswitch.acks import Count, collect
from agentguard.killswitch.processes import current
from agentguard.killswitch.telling import Telling, returned
from agentguard.killswitch.waker import ENDING, Waker, is_alive, live_processes

if TYPE_CHECKING:
    from agentguard.killswitch.files import KillFiles
    from agentguard.killswitch.model import Acknowledgements
    from agentguard.killswitch.processes import Process

_logger = logging.getLogger(__name__)

#: For how many generations it is known who took part when they were recorded.
_REMEMBERED = 64


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
        self._telling = Telling()
        self._complaint = ""
        #: Who took part when this switch recorded the newest generations.
        self._meant: dict[int, set[Process]] = {}

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
        self._telling.reset(self._telling.told)
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
            self._telling.reset(generation)
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

    def note(self, before: set[Process], generation: int) -> None:
        """Keep who took part before a generation was recorded, for who asks whom it has reached."""
        self._meant[generation] = before
        while len(self._meant) > _REMEMBERED:
            self._meant.pop(next(iter(self._meant)))

    def holders(self) -> set[Process]:
        """Return the processes that have an entry, also dead ones; nobody where there is no page."""
        try:
            return {entry.holder for entry in self._files.current().table.taken()}
        except (AgentGuardError, OSError):
            return set()

    def roster(self) -> set[Process]:
        """The live processes that take part."""
        table = self._files.current().table
        roster = {entry.holder for entry in table.taken() if is_alive(self._live, entry.holder)}
        # Where the page was made again, some may not have come to their new table yet.
        return roster if table.full else roster | live_processes(self._live)

    def missing(self, roster: set[Process], generation: int) -> set[Process]:
        """Those among `roster` who have not acted on `generation`."""
        acknowledged = self.acknowledged()
        return {process for process in roster if acknowledged.get(process, -1) < generation}

    def acknowledged(self) -> dict[Process, int]:
        """Return what each process has acted on, also of those that have left or died since."""
        return self._files.current().table.acknowledged()

    def reached(self, generation: int) -> Callable[[], Count]:
        """Return what counts, each time, whom a generation has reached of those it was meant for.

        Those are the processes that take part now, and those that took part when it was recorded here and
        have acted on it; one that left or died without acting counts no more.
        """
        roster = self.roster()
        before = self._meant.get(generation, set()) - roster
        if not self._joined:
            before.discard(current())
        roster |= before - self.missing(before, generation)

        def count() -> Count:
            late = self.missing(roster, generation)
            if late:
                # In this order, for a process acknowledges before it leaves.
                present = self.roster()
                late = self.missing(late, generation)
                roster.difference_update(late - present)
                late &= present
            return Count(len(roster), len(roster) - len(late))

        return count

    def collect(self, generation: int, timeout: float) -> Acknowledgements:
        """Wait until every process that a generation was meant for has acted on it."""
        return collect(self.reached(generation), timeout)

    def _stop(self) -> None:
        with self._lock:
            if self._joined:
                return
            waker, self._waker = self._waker, None
        if waker is not None:
            # Nothing here can be stopped any more, and a record is in the log before the page shows it.
            waker.acknowledge(self._files.log.generation)
            waker.stop()
            self._telling.wait(ENDING)

    def _watch(self) -> float:
        """What the waker's thread does at each wake-up; gives the seconds until the next."""
        generation, usable = self._look()
        calls = [participant.on_change for participant in list(self._joined)]
        if generation != self._telling.told:
            self._telling.tell(generation, calls, self.acknowledge)
        elif not usable:
            # Nothing new was announced, but each step has to find for itself that nobody can tell.
            for call in calls:
                returned(call, generation)
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
            # Said once, and not again as it lasts longer.
            complaint = re.sub(r"\d+\.\d+ s", "", str(error))
            if complaint != self._complaint:
                self._complaint = complaint
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
                waker.claim_entry(page, self._telling.told)
