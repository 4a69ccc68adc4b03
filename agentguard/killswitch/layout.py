"""The kill page: which word means what, and what may be concluded from it.

The page is a file of unsigned 64-bit words that every process of a home maps into its memory:

    0           magic, with the version of this layout
    1           generation: the sequence of the newest control record
    2           1 while a global kill is active, for people who look
    3           size of the control log at that generation
    4 to 7      spare
    8 to 511    hints: whom the newest generations were meant for, hashed
    512 to 2047 the table of participants

A word is stored whole.  All but the table are written under the home's lock alone.
"""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Self

from agentguard.errors import KillSwitchUnavailableError
from agentguard.killswitch.control import LogState, sync_directory
from agentguard.killswitch.model import GENERATION, GLOBAL, RUN, TENANT
from agentguard.killswitch.participant_table import ParticipantTable

PAGE_NAME = "kill.page"
PAGE_BYTES = 2048 * 8
MAGIC = int.from_bytes(b"agkill\x00\x01", "little")
EVERYTHING_STOPPED = 2
LOG_SIZE = 3
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

    __slots__ = ("file", "signal", "table", "words")

    def __init__(self, words: memoryview, file: os.stat_result) -> None:
        self.words = words
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
            page = cls(memoryview(mmap.mmap(descriptor, PAGE_BYTES)).cast("Q"), file)
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
    def intact(self) -> bool:
        """Whether it still begins as a page of this version."""
        return self.words[0] == MAGIC

    def check(self, path: Path) -> None:
        """Raise `PageDamagedError` unless it is intact."""
        if not self.intact:
            raise PageDamagedError(path, "is damaged, or was made by another version of agentguard")

    def is_at(self, path: Path) -> bool:
        """Whether what is mapped is still the file under this name."""
        try:
            return os.path.samestat(self.file, path.stat())
        except FileNotFoundError:
            return False

    def announce(self, state: LogState, target: str | None = None) -> None:
        """Show a new generation; `target`, where it is known, as `target_of` writes it."""
        if target is not None:
            hint = (state.generation & _NUMBER_MASK) << _HASH_BITS | _hash(target)
            self.words[HINTS + state.generation % HINT_COUNT] = hint
        self.words[EVERYTHING_STOPPED] = state.stopped
        self.words[GENERATION] = state.generation
        self.words[LOG_SIZE] = state.size

    def excludes(self, tenant: str, run_id: str, *, after: int, size: int) -> bool:
        """Whether the hints prove that nothing after generation `after` is meant for a run.

        They prove nothing where one is missing or overwritten, or where the control log is of
        another size than when the page was written.
        """
        if self.words[LOG_SIZE] != size:
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
        if not self.intact:
            self.words[:] = memoryview(bytes(PAGE_BYTES)).cast("Q")
        _fill(self.words, state)


def announced(home: Path) -> int:
    """The newest control record that the page of a home knows of, as far as it can be read; else 0."""
    try:
        with (home / PAGE_NAME).open("rb") as file:
            words = memoryview(file.read(PAGE_BYTES)).cast("Q")
    except (OSError, TypeError):
        return 0
    if len(words) < TABLE or words[0] != MAGIC or words[GENERATION] == ALARM:
        return 0
    return int(words[GENERATION])


def target_of(scope: str, target: str) -> str:
    """Whom a record is meant for, as hints are made of it."""
    return f"{scope}:{target}" if target else scope


def _fill(words: memoryview, state: LogState) -> None:
    words[HINTS:TABLE] = memoryview(bytes(HINT_COUNT * 8)).cast("Q")
    words[EVERYTHING_STOPPED] = state.stopped
    words[LOG_SIZE] = state.size
    words[0] = MAGIC
    words[GENERATION] = state.generation


def _hash(target: str) -> int:
    digest = blake2b(target.encode(), digest_size=_HASH_BITS // 8).digest()
    return int.from_bytes(digest, "little")
