"""The kill page: which word means what, and what may be concluded from it.

The page is a file of unsigned 64-bit words that every process of a home maps into its memory:

    0           magic, with the version of this layout
    1           generation: the sequence of the newest control record
    2           1 while a global kill is active, for people who look
    3           size of the control log at that generation
    4           the newest generation, also while word 1 is an alarm
    5           hash of whom a kill was meant for that could not be recorded; 0 without one
    6           when the relay last agreed with the durable record, in monotonic ns; 0 without a relay
    7           spare
    8 to 511    hints: whom the newest generations were meant for, hashed
    512 to 2047 the table of participants

A word is stored whole.  All but the table are written under the home's lock alone.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from agentguard.errors import KillSwitchUnavailableError
from agentguard.events.model import KILL_CLEARED, KILL_SET
from agentguard.killswitch.control import LogState, sync_directory
from agentguard.killswitch.model import GENERATION, GLOBAL, RUN, TENANT
from agentguard.killswitch.participant_table import ParticipantTable

PAGE_NAME = "kill.page"
PAGE_BYTES = 2048 * 8
MAGIC = int.from_bytes(b"agkill\x00\x01", "little")
EVERYTHING_STOPPED = 2
LOG_SIZE = 3
NEWEST = 4
UNRECORDED = 5
HEARTBEAT = 6
HINTS = 8
TABLE = 512
HINT_COUNT = TABLE - HINTS

#: A generation that no log reaches, so that everybody looks and finds that something is wrong.
ALARM = 2**64 - 1

# A hint has the low bits of its generation above the hash of its target.
_HASH_BITS = 40
_HASH_MASK = 2**_HASH_BITS - 1
_NUMBER_MASK = 2 ** (64 - _HASH_BITS) - 1


class PageDamagedError(KillSwitchUnavailableError):
    """The file is no kill page, or one of another version."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"{path} {problem}; nothing may run until `agentguard doctor` has rebuilt it from the control log"
        )


class Page:
    """One mapping of the page file.  `signal` is what others may read of it."""

    __slots__ = ("_mapped", "file", "signal", "table", "words")

    def __init__(self, mapped: mmap.mmap | bytearray, file: os.stat_result) -> None:
        self._mapped = mapped
        self.words = words = memoryview(mapped).cast("Q")
        self.signal = words.toreadonly()
        self.table = ParticipantTable(words[TABLE:])
        self.file = file

    @classmethod
    def open(cls, path: Path, *, repair: bool = False) -> Self:
        """Map the page; with `repair`, also one that is damaged.

        Raises:
            PageDamagedError: it is too short, or begins with another magic number.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            file = os.fstat(descriptor)
            if not stat.S_ISREG(file.st_mode):
                raise PageDamagedError(path, "is not a regular file")
            if file.st_size < PAGE_BYTES:
                if not repair:
                    raise PageDamagedError(path, f"has {file.st_size} bytes of {PAGE_BYTES}")
                os.ftruncate(descriptor, PAGE_BYTES)
            page = cls(mmap.mmap(descriptor, PAGE_BYTES), file)
        finally:
            os.close(descriptor)
        if not repair:
            page.check(path)
        return page

    @classmethod
    def create(cls, path: Path, state: LogState) -> Self:
        """Make the file, which appears under its name complete or not at all, and map it."""
        content = bytearray(PAGE_BYTES)
        _fill(memoryview(content).cast("Q"), state)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
            # Unlike a rename, a link never takes the place of a page that is in use.
            with suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.close(descriptor)
            temporary.unlink()
        sync_directory(path.parent)
        return cls.open(path)

    @property
    def generation(self) -> int:
        """The sequence of the newest control record that was announced here."""
        return self.words[GENERATION]

    @property
    def newest(self) -> int:
        """The newest generation that was announced here, whatever alarm there is."""
        generation = self.words[GENERATION]
        return max(self.words[NEWEST], 0 if generation == ALARM else generation)

    @property
    def whole(self) -> bool:
        """Whether the file still reaches as far as the mapping.

        To touch a mapped page that was cut off ends the process by SIGBUS, so ask this first.
        """
        return not isinstance(self._mapped, mmap.mmap) or self._mapped.size() >= PAGE_BYTES

    @property
    def intact(self) -> bool:
        """Whether it still is as long as a page, and begins as one of this version."""
        return self.whole and self.words[0] == MAGIC

    def check(self, path: Path) -> None:
        """Raise `PageDamagedError` unless it is intact."""
        if not self.whole:
            raise PageDamagedError(path, "was cut off")
        if not self.intact:
            raise PageDamagedError(path, "is damaged, or was made by another version of agentguard")

    def is_at(self, path: Path) -> bool:
        """Whether what is mapped is still the file under this name."""
        try:
            return os.path.samestat(self.file, path.lstat())
        except FileNotFoundError:
            return False

    def announce(self, state: LogState, target: str | None = None) -> None:
        """Show a new generation; `target`, where it is known, as `target_of` writes it."""
        if target is not None:
            hint = (state.generation & _NUMBER_MASK) << _HASH_BITS | _hash(target)
            self.words[HINTS + state.generation % HINT_COUNT] = hint
        self.words[EVERYTHING_STOPPED] = state.stopped
        self.words[NEWEST] = state.generation
        self.words[GENERATION] = ALARM if self.words[UNRECORDED] else state.generation
        self.words[LOG_SIZE] = state.size

    def raise_alarm(self, target: str | None = None) -> None:
        """Make everybody look; `target` names whom a kill was meant for that could not be recorded."""
        if target is not None:
            # Of several that are missing, only a kill of everything makes up for all.
            missing = self.words[UNRECORDED]
            self.words[UNRECORDED] = _hash(target) if missing in (0, _hash(target)) else _hash(GLOBAL)
        self.words[GENERATION] = ALARM

    def make_up(self, target: str) -> None:
        """Note that a kill is on record, so that it is missing no more; `announce` follows."""
        if self.words[UNRECORDED] in (_hash(target), 0) or target == GLOBAL:
            self.words[UNRECORDED] = 0

    def check_missing(self, log: Path) -> None:
        """Raise `KillSwitchUnavailableError` where a kill could not be recorded."""
        if self.words[UNRECORDED]:
            raise KillSwitchUnavailableError(
                f"a kill could not be written to {log}, and until it is nothing may run: see that the disk "
                "has room and that the file is yours, then kill again; or call the kill off by "
                "`agentguard doctor --repair --accept-loss`"
            )

    def beat(self, at_ns: int) -> None:
        """Note that what is shown here agreed with the durable record at a moment, in monotonic ns."""
        self.words[HEARTBEAT] = at_ns

    @property
    def silence(self) -> float:
        """Seconds since the relay last agreed with the durable record; infinite where it never did."""
        heartbeat = self.words[HEARTBEAT]
        seconds = (time.monotonic_ns() - heartbeat) / 1e9
        # A heartbeat that is still to come was written before the machine was restarted.
        return seconds if heartbeat and seconds >= 0 else math.inf

    def excludes(self, tenant: str, run_id: str, *, after: int, size: int) -> bool:
        """Whether the hints prove that nothing after generation `after` is meant for a run.

        They prove nothing where one is missing or overwritten, or where the control log is of
        another size than when the page was written.
        """
        if self.words[LOG_SIZE] != size or self.words[UNRECORDED]:
            return False
        generation = self.words[GENERATION]
        if not 0 <= generation - after < HINT_COUNT:
            return False
        targets = {_hash(name) for name in (GLOBAL, f"{TENANT}:{tenant}", f"{RUN}:{run_id}")}
        for number in range(after + 1, generation + 1):
            hint = self.words[HINTS + number % HINT_COUNT]
            if hint >> _HASH_BITS != number & _NUMBER_MASK or hint & _HASH_MASK in targets:
                return False
        return True

    def rewrite(self, state: LogState) -> None:
        """Set everything anew, but leave participants their entries where this was a page."""
        if self.words[0] != MAGIC:
            self.words[:] = memoryview(bytes(PAGE_BYTES)).cast("Q")
        _fill(self.words, state)


def announced(home: Path) -> int:
    """The newest control record that the page of a home knows of, as far as it can be read; else 0."""
    try:
        with (home / PAGE_NAME).open("rb") as file:
            words = memoryview(file.read(PAGE_BYTES)).cast("Q")
    except (OSError, TypeError):
        return 0
    if len(words) < TABLE or words[0] != MAGIC:
        return 0
    generation = int(words[GENERATION])
    return max(int(words[NEWEST]), 0 if generation == ALARM else generation)


def target_of(scope: str, target: str) -> str:
    """Whom a record is meant for, as hints are made of it."""
    return f"{scope}:{target}" if target else scope


def request_target(event_type: str, data: Mapping[str, Any]) -> str:
    """Whom a control record is meant for, as hints are made of it; empty for one that stops nobody."""
    if event_type not in (KILL_SET, KILL_CLEARED):
        return ""
    return target_of(data["scope"], data.get("target", ""))


def _fill(words: memoryview, state: LogState) -> None:
    words[HINTS:TABLE] = memoryview(bytes(HINT_COUNT * 8)).cast("Q")
    words[EVERYTHING_STOPPED] = state.stopped
    words[LOG_SIZE] = state.size
    words[NEWEST] = state.generation
    words[UNRECORDED] = 0
    words[0] = MAGIC
    words[GENERATION] = state.generation


def _hash(target: str) -> int:
    digest = blake2b(target.encode(), digest_size=_HASH_BITS // 8).digest()
    return int.from_bytes(digest, "little")
