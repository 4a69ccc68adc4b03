"""The participants' entries in the kill page: who is attached, and what they have acted on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from agentguard.killswitch.processes import Process

WORDS_EACH = 3

#: Set in the first word by a holder that has left; no PID is as large.
_LEFT = 1 << 31


class Entry(NamedTuple):
    """One entry: of a process that takes part, that has died, or that acted on something and has left."""

    number: int
    holder: Process
    acknowledged: int
    left: bool = False


class ParticipantTable:
    """A table of three words for each entry: pid and PID namespace, start time, acknowledged generation.

    A first word of 0 is a free entry.  Entries are claimed under the home's lock; the holder alone writes
    the third word, and leaves the entry.  What a process that has left had acted on stays to be read until
    the entry is claimed again, so that a kill is seen to have reached a process that it ended.
    """

    __slots__ = ("_words",)

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def claim(
        self,
        process: Process,
        generation: int,
        is_alive: Callable[[Process], bool] = lambda process: process.alive,
    ) -> int | None:
        """Return an entry for a process that has acted on `generation`; None if all are taken."""
        entries = {entry.number: entry for entry in self.entries()}
        free = (number for number in range(len(self._words) // WORDS_EACH) if number not in entries)
        oldest = sorted(entries.values(), key=lambda entry: entry.acknowledged)
        left = (entry.number for entry in oldest if entry.left)
        dead = (entry.number for entry in oldest if not entry.left and not is_alive(entry.holder))
        number = next(chain(free, left, dead), None)
        if number is not None:
            first = number * WORDS_EACH
            self._words[first] = 0
            self._words[first + 2] = generation
            self._words[first + 1] = process.start
            self._words[first] = process.word
        return number

    def held(self, number: int, process: Process) -> bool:
        """Whether an entry is still the process's own."""
        first = number * WORDS_EACH
        return (self._words[first], self._words[first + 1]) == (process.word, process.start)

    def acknowledge(self, number: int, generation: int) -> None:
        """Say that the holder of an entry has acted on everything up to `generation`."""
        word = number * WORDS_EACH + 2
        self._words[word] = max(generation, self._words[word])

    def vacate(self, number: int, *, since: int) -> None:
        """Leave an entry that was claimed at generation `since`; what was acted on later stays to be read."""
        first = number * WORDS_EACH
        acted = self._words[first + 2] > since
        self._words[first] = self._words[first] | _LEFT if acted else 0

    def entries(self) -> Iterator[Entry]:
        """Return every entry that is not free, also those of processes that have left."""
        for number, word in enumerate(self._words[::WORDS_EACH].tolist()):
            if word:
                start, acknowledged = self._words[number * WORDS_EACH + 1 : (number + 1) * WORDS_EACH]
                holder = Process.from_word(word & ~_LEFT, start)
                yield Entry(number, holder, acknowledged, left=bool(word & _LEFT))

    def taken(self) -> Iterator[Entry]:
        """Return every entry that is held, if only by a process that has died."""
        return (entry for entry in self.entries() if not entry.left)

    def acknowledged(self) -> dict[Process, int]:
        """Return what each process has acted on; one that has left, and one that died, before it did."""
        left: dict[Process, int] = {}
        held: dict[Process, int] = {}
        for entry in self.entries():
            if entry.left:
                left[entry.holder] = max(entry.acknowledged, left.get(entry.holder, 0))
            else:  # a process has acted when all of its switches have
                held[entry.holder] = min(entry.acknowledged, held.get(entry.holder, entry.acknowledged))
        return left | held

    @property
    def full(self) -> bool:
        """Whether no entry is free, left, or held by a dead process."""
        entries = list(self.taken())
        return len(entries) * WORDS_EACH == len(self._words) and all(entry.holder.alive for entry in entries)
