"""The control log: every kill, revive, tenant budget and erasure of a home, as a chained file.

It is a log like a run's (same records, same chain, run id `CONTROL_RUN_ID`), one entry a line:

    {"hash":"<64 hex digits>","event":<the body, byte for byte>}
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from agentguard.errors import LogIntegrityError
from agentguard.events.codec import Stored, chain, decode, encode, genesis
from agentguard.events.model import CONTROL_RUN_ID, Head, Record
from agentguard.killswitch.index import KillIndex
from agentguard.killswitch.kill_requests import check_request
from agentguard.protocols import HeadMovedError

_GENESIS = genesis(CONTROL_RUN_ID)
_LINE = re.compile(rb'\{"hash":"([0-9a-f]{64})","event":(.+)\}', re.DOTALL)
_FRAME = len(b'{"hash":"","event":}\n') + 64


class LogState(NamedTuple):
    """What a log comes to: its newest record, its size in bytes, whether everything is stopped."""

    generation: int
    size: int
    stopped: bool


class ControlLog:
    """The file `control.log`, read on from where this reader was.  Safe for threads.

    A last line without its end is what a crash left of an append: readers pass over it, and the
    next append removes it.  Nothing else of the file is ever rewritten.
    """

    def __init__(self, home: Path) -> None:
        self.path = home / "control.log"
        self.index = KillIndex()
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._head = _GENESIS
        self._seq = 0

    @property
    def generation(self) -> int:
        """The sequence of the newest record that was read."""
        return self._seq

    @property
    def state(self) -> LogState:
        """What was read so far comes to; an unfinished last line is no part of it."""
        return LogState(self._seq, self._offset, self.index.everything_stopped)

    def size(self) -> int:
        """How many bytes the file has."""
        try:
            return self.path.lstat().st_size
        except FileNotFoundError:
            return 0

    def check_usable(self) -> None:
        """See that the file can be read and written, or be made where there is none.

        Raises:
            OSError: it cannot, or something else lies in its place.
        """
        folder = self.path.parent
        try:
            os.close(self._open(os.O_RDWR))
        except FileNotFoundError:
            if folder.is_dir() and not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, "no file can be made here", str(folder)) from None

    def refresh(self) -> int:
        """Read what was appended since, and give the generation.

        Raises:
            LogIntegrityError: the chain is broken there, or what was read before is gone.
        """
        with self._lock:
            return self._refresh()

    def append(self, event_type: str, data: dict[str, Any], at_ns: int, after: int | None = None) -> int:
        """Add a record, durably, and give its generation.  The caller holds the home's lock."""
        stored, _ = self.draft(event_type, data, at_ns, after)
        return self.add(stored, durable=True)

    def draft(
        self, event_type: str, data: dict[str, Any], at_ns: int, after: int | None = None
    ) -> tuple[Stored, bytes]:
        """Return the next record of this log, and the hash of the one before; nothing is written.

        Raises:
            HeadMovedError: it would not follow generation `after`.
        """
        check_request(event_type, data)
        with self._lock:
            if self._refresh() != after and after is not None:
                raise HeadMovedError(CONTROL_RUN_ID, after)
            body = encode(Record(seq=self._seq + 1, type=event_type, at_ns=at_ns, data=data))
            return Stored(self._seq + 1, body, chain(self._head, body), None, self._seq + 1), self._head

    def add(self, stored: Stored, *, durable: bool) -> int:
        """Add the next record as it is stored elsewhere, and give its generation.

        The caller holds the home's lock.

        Args:
            stored: the record.
            durable: whether it has to survive a loss of power when this returns.

        Raises:
            LogIntegrityError: it does not follow the newest record of this log.
        """
        line = format_entry(stored)
        with self._lock:
            self._refresh()
            added, record = _entry(line, self._seq + 1, self._head)
            self._file = self._write(line + b"\n", durable=durable)
            self._take_in(added, record)
            return self._seq

    def newest(self) -> tuple[int, bytes]:
        """Sequence and hash of the newest record, after reading on."""
        with self._lock:
            return self._refresh(), self._head

    def read(self, after: int = 0) -> Iterator[Stored]:
        """The log as it is stored, unchecked, for somebody who verifies it.

        A line that is no entry comes as a body without a hash, which fits no chain.
        """
        for seq, line in enumerate(_split(self._complete_lines(0)), 1):
            if seq > after:
                yield parse_entry(line, seq)

    def verify(self) -> Head:
        """Check the whole chain, and give its head.

        Raises:
            LogIntegrityError: the first record that does not fit.
        """
        seq, digest = 0, _GENESIS
        for stored, _ in _entries(self._complete_lines(0)):
            seq, digest = stored.seq, stored.hash
        return Head(seq, digest.hex())

    def _refresh(self) -> int:
        try:
            info = self.path.lstat()
        except FileNotFoundError:
            if self._seq:
                raise self._fault("the log is gone, and this record with it") from None
            return 0
        if self._file != (info.st_dev, info.st_ino):
            self._compare()
        elif info.st_size < self._offset:
            raise self._fault(f"the log was cut to {info.st_size} bytes, and this record is gone")
        if info.st_size > self._offset:
            lines = self._complete_lines(self._offset)
            for stored, record in _entries(lines, self._seq, self._head):
                self._take_in(stored, record)
        self._file = (info.st_dev, info.st_ino)
        return self._seq

    def _take_in(self, stored: Stored, record: Record) -> None:
        try:
            check_request(record.type, record.data or {})
        except ValueError as error:
            raise LogIntegrityError(CONTROL_RUN_ID, stored.seq, str(error)) from error
        self.index.add(record)
        self._offset += _FRAME + len(stored.body)
        self._seq, self._head = stored.seq, stored.hash

    def _compare(self) -> None:
        """Make sure that a file put in the place of the one read so far begins in the same way."""
        if not self._seq:
            return
        for stored, _ in _entries(self._complete_lines(0)):
            if stored.seq == self._seq and stored.hash == self._head:
                return
        raise self._fault("the log was replaced by another, which does not have this record")

    def _write(self, line: bytes, *, durable: bool) -> tuple[int, int]:
        """Write a line behind what was read; return which file it is in."""
        created = not self.path.exists()
        descriptor = self._open(os.O_WRONLY | os.O_CREAT)
        try:
            info = os.fstat(descriptor)
            if info.st_size > self._offset:
                os.ftruncate(descriptor, self._offset)
            os.lseek(descriptor, self._offset, os.SEEK_SET)
            while line:
                line = line[os.write(descriptor, line) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if durable and created:
            sync_directory(self.path.parent)
        return info.st_dev, info.st_ino

    def _complete_lines(self, offset: int) -> bytes:
        try:
            with os.fdopen(self._open(os.O_RDONLY), "rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return b""
        return data[: data.rfind(b"\n") + 1]

    def _open(self, flags: int) -> int:
        """A descriptor of the file; of nothing that is a link, a folder or a pipe."""
        # Without O_NONBLOCK a pipe in the place of the file would be waited for.
        descriptor = os.open(self.path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is not a regular file", str(self.path))
        return descriptor

    def _fault(self, problem: str) -> LogIntegrityError:
        return LogIntegrityError(CONTROL_RUN_ID, self._seq, problem)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def format_entry(stored: Stored) -> bytes:
    """A record as a line of the log, without the end of the line."""
    return b'{"hash":"%s","event":%s}' % (stored.hash.hex().encode(), stored.body)


def parse_entry(line: bytes, seq: int) -> Stored:
    """A line of a log, unchecked; one that is no entry comes without a hash, which fits no chain."""
    match = _LINE.fullmatch(line)
    digest = bytes.fromhex(match[1].decode()) if match else b""
    return Stored(seq, match[2] if match else line, digest, None, seq)


def check_chain(entries: Iterable[Stored]) -> Iterator[Stored]:
    """The entries of a whole log, each checked to follow the one before.

    Raises:
        LogIntegrityError: the first that does not.
    """
    head = _GENESIS
    for seq, stored in enumerate(entries, 1):
        checked, _ = _entry(format_entry(stored), seq, head)
        yield checked
        head = checked.hash


def _split(lines: bytes) -> list[bytes]:
    # Not splitlines, for which a line also ends at \r.
    return lines.split(b"\n")[:-1]


def _entries(lines: bytes, seq: int = 0, head: bytes = _GENESIS) -> Iterator[tuple[Stored, Record]]:
    """The entries in complete lines that follow record `seq`."""
    for line in _split(lines):
        seq += 1
        stored, record = _entry(line, seq, head)
        yield stored, record
        head = stored.hash


def _entry(line: bytes, seq: int, head: bytes) -> tuple[Stored, Record]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise LogIntegrityError(CONTROL_RUN_ID, seq, "the line is not an entry of a log")
    body = match[2]
    digest = chain(head, body)
    if digest.hex().encode() != match[1]:
        raise LogIntegrityError(
            CONTROL_RUN_ID, seq, "the hash does not fit: the record was altered, or follows another"
        )
    try:
        record = decode(body)
    except LogIntegrityError as error:
        raise LogIntegrityError(CONTROL_RUN_ID, seq, error.problem) from error
    if record.seq != seq:
        raise LogIntegrityError(CONTROL_RUN_ID, seq, f"the record says that it is {record.seq}")
    return Stored(seq, body, digest, None, seq), record
