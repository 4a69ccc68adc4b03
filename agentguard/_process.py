"""Which process this is, and whether another one is alive."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _host() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return platform.node(), boot


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where it cannot be told.

    Raises:
        ProcessLookupError: there is no such process.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes().decode("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessLookupError(pid) from None
        except OSError:
            return 0
        fields = stat.rpartition(")")[2].split()
        if fields[0] in ("Z", "X"):  # a zombie runs nothing any more
            raise ProcessLookupError(pid)
        return int(fields[19])
    os.kill(pid, 0)
    return 0


def identity() -> dict[str, Any]:
    """This process as a run's row names its owner."""
    host, boot = _host()
    pid = os.getpid()
    return {"host": host, "boot": boot, "pid": pid, "start": start_time(pid)}


def is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether an owner lives: True, False, or None where this host cannot tell."""
    host, boot = _host()
    if owner.get("host") != host:
        return None
    if owner.get("boot") != boot:
        return False  # the host was restarted since
    try:
        return start_time(int(owner["pid"])) == int(owner.get("start", 0))
    except ProcessLookupError:
        return False
    except (PermissionError, KeyError, TypeError, ValueError):
        return None
