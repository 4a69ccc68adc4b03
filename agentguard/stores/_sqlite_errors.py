"""What SQLite and the file system complain of, in words that name the file and the way out."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from agentguard.errors import StoreUnavailableError

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)

#: What a statement raises: the second where SQLite's message quotes a damaged schema that is no text.
RAISED = (sqlite3.Error, UnicodeDecodeError)

_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full; make room, and the next step goes through",
    sqlite3.SQLITE_READONLY: "it is read-only here; check the rights of this user on the file, "
    "its -wal and -shm files and their folder",
    sqlite3.SQLITE_PERM: "access is denied; check the rights of this user on the file",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that the folder exists and that this "
    "user may write to it",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; put it aside with its -wal file, restore a "
    "backup or read what is left with `sqlite3 FILE .recover`",
    sqlite3.SQLITE_NOTADB: "this is no SQLite database; name another file",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write it; look at the system's log",
    sqlite3.SQLITE_NOMEM: "there is no memory left for it",
}


def is_busy(error: sqlite3.Error | UnicodeDecodeError) -> bool:
    """Whether another connection was in the way, so that trying again makes sense."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF in _BUSY


def held_for_too_long(path: str, seconds: float) -> StoreUnavailableError:
    """What to raise when another writer did not let go in time."""
    return StoreUnavailableError(
        f"{path} was locked for {seconds:g} s by {_holder(path)}; a long transaction, an open "
        "`sqlite3` shell or a backup holds it: end that, or raise store_timeout"
    )


class Translation:
    """A block in which whatever SQLite or the system raises becomes `StoreUnavailableError`."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, (*RAISED, OSError)):
            raise StoreUnavailableError(f"{self._path}: {_explain(error)}") from error


def _explain(error: sqlite3.Error | UnicodeDecodeError | OSError) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return _ADVICE[sqlite3.SQLITE_FULL]
        return f"{error.strerror or error} ({error.filename or 'the file'})"
    if isinstance(error, UnicodeDecodeError):
        said = error.object.decode("utf-8", "backslashreplace")
        return f"{_ADVICE[sqlite3.SQLITE_CORRUPT]} ({said})"
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    advice = _ADVICE.get(code & 0xFF)
    if advice is not None:
        return f"{advice} ({error})"
    return f"SQLite says: {error}"


def _holder(path: str) -> str:
    """The process that holds the write lock, where Linux tells."""
    with suppress(OSError, ValueError, IndexError):
        inode = os.stat(f"{path}-shm").st_ino  # noqa: PTH116  # one system call, no object
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            _, _, _, mode, pid, place, *_ = line.split()
            if mode == "WRITE" and int(place.rpartition(":")[2]) == inode and int(pid) > 0:
                if int(pid) == os.getpid():
                    return "another connection of this process"
                return f"process {pid}"
    return "another process"
