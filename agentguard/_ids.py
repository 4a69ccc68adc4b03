"""Where run ids come from: time-ordered UUIDs (version 7, RFC 9562, section 5.7)."""

from __future__ import annotations

import os
import time


def new_run_id() -> str:
    """A fresh UUIDv7 as text: 48 bits of milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | (7 << 76)
    value = value & ~(0x3 << 62) | (2 << 62)
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
