"""Telemetry never harms the agent: what it raises ends here."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

_log = logging.getLogger("agentguard")
#: Taken by the first failure of the process and never given back.
_first = threading.Lock()


def swallow(error: Exception) -> None:
    """Log the first failure of the process, and none after it."""
    if _first.acquire(blocking=False):
        _log.warning(
            "telemetry failed and agents go on without it; further failures in this process are not logged",
            exc_info=error,
        )


class _Harmless:
    """`with harmless:` lets no `Exception` out.  Costs more than a `try` that is not used."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        if isinstance(error, Exception):
            swallow(error)
            return True
        return False


harmless = _Harmless()
