"""The participants' entries in the kill page: who is attached, and what they have acted on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from agentguard.killswitch.processes import Process

WORDS_EACH = 3


class Entry(NamedTuple):
    """One entry that is taken, if only by a process that has died."""

    number: int
    holder: Process
    acknowledged: int


class ParticipantTable:
    """A table of three words for each entry: pid and PID namespace, start time, acknowledged generation.

    A first word of 0 is a free entry.  Entries are claimed under the home's lock; the holder alone writes
    the third word, and frees the entry.
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
        taken = {entry.number: entry for entry in self.taken()}
        free = (number for number in range(len(self._words) // WORDS_EACH) if number not in taken)
        dead = (entry.number for entry in taken.values() if not is_alive(entry.holder))
        number = next(free, next(dead, None))
        if number is not None:
            first = number * WORDS_EACH
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

    def vacate(self, number: int) -> None:
        """Free an entry."""
        self._words[number * WORDS_EACH] = 0

    def taken(self) -> Iterator[Entry]:
        """Every entry that is taken."""
        words = iter(self._words.tolist())
        for number, (word, start, acknowledged) in enumerate(zip(words, words, words, strict=True)):
            if word:
                yield Entry(number, Process.from_word(word, start), acknowledged)

    @property
    def full(self) -> bool:
        """Whether no entry is free or held by a dead process."""
        entries = list(self.taken())
        return len(entries) * WORDS_EACH == len(self._words) and all(entry.holder.alive for entry in entries)
