"""Which process this is, and whether another one is alive.

A pid means something within its PID namespace alone.  Two containers may share a host name, a boot id and
a state directory, and not see each other's processes.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _thread import RLock

#: Without a sign of life for so long, in nanoseconds, an owner that may live elsewhere counts as dead.
STALE_NS = 30_000_000_000
#: The inode of a kernel's first PID namespace.
INITIAL_NAMESPACE = 0xEFFFFFFC


@cache
def _host() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return platform.node(), boot


def pid_namespace() -> int:
    """Return the number of this process's PID namespace; 0 where there are none, or it cannot be told."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def start_time(pid: int) -> int:
    """Return when a process of this PID namespace started, in clock ticks since boot; 0: it cannot be told.

    Raises:
        ProcessLookupError: there is no such process.
    """
    mine = pid == os.getpid()
    if sys.platform != "linux" or not (mine or _proc_is_of_this_namespace()):
        os.kill(pid, 0)
        return 0
    try:
        stat = Path(f"/proc/{'self' if mine else pid}/stat").read_bytes().decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):  # a zombie runs nothing any more
        raise ProcessLookupError(pid)
    return int(fields[19])


def _proc_is_of_this_namespace() -> bool:
    """Whether `/proc` lists the processes of this namespace, which a new one may have to mount for itself."""
    try:
        return Path("/proc/self").readlink().name == str(os.getpid())
    except OSError:
        return False


def identity() -> dict[str, Any]:
    """Return this process as a run's row names its owner."""
    host, boot = _host()
    pid = os.getpid()
    return {"host": host, "boot": boot, "pid_ns": pid_namespace(), "pid": pid, "start": start_time(pid)}


def this_process() -> dict[str, Any]:
    """Return `identity`, worked out once in a process."""
    return _identity_of(os.getpid())


@cache
def _identity_of(pid: int) -> dict[str, Any]:
    return identity()


def is_alive(owner: dict[str, Any]) -> bool | None:
    """Say whether an owner lives: True, False, or None where this process cannot tell.

    Only a process that is missing from this PID namespace, and was of it, is provably dead.  Of every other
    owner the heartbeat has to tell: on another host, in another container, from before a restart.
    """
    mine = identity()
    if any(owner.get(name) != mine[name] for name in ("host", "boot", "pid_ns")):
        return None
    try:
        started = start_time(int(owner["pid"]))
    except ProcessLookupError:
        return False
    except (PermissionError, KeyError, TypeError, ValueError, OverflowError):
        return None
    if started == owner.get("start", 0):
        return True
    return None if started == 0 else False


def counts_as_alive(owner: dict[str, Any], heartbeat_ns: int, now_ns: int) -> bool:
    """Say whether an owner has to be taken to live: by its process, or else by its last sign of life."""
    alive = is_alive(owner)
    return now_ns - heartbeat_ns < STALE_NS if alive is None else alive


class ProcessLock:
    """A re-entrant lock that each process has for itself: a fork does not wait for it, nor find it held.

    Example:
        >>> making = ProcessLock()
        >>> with making.here():
        ...     pass
    """

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[int, RLock] = {}

    def here(self) -> RLock:
        """Return the lock of this process."""
        return self._locks.setdefault(os.getpid(), threading.RLock())
