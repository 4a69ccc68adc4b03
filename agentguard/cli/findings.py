"""What `agentguard doctor` finds."""

from __future__ import annotations

from typing import NamedTuple

OK = "ok"
NOTE = "note"
FAULT = "FAULT"


class Finding(NamedTuple):
    """One thing looked at: `status` is `ok`, `note` (worth knowing) or `FAULT` (to be mended)."""

    check: str
    status: str
    detail: str
