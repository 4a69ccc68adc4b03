"""How much of what is promised the tests marked `long` do.

`AGENTGUARD_LONG` is the share: 1, the default, is all of it (1,000,000 steps, 10,000 runs, 200 times
kill -9 under each durability, 2,000 programs of each property). `make test-long SCALE=0.1` sets it.
"""

import os

SCALE = float(os.environ.get("AGENTGUARD_LONG", "1"))
if not 0 < SCALE <= 1:
    raise ValueError(f"AGENTGUARD_LONG is a share of the whole, more than 0 and at most 1, not {SCALE:g}")


def scaled(promised: int, *, at_least: int = 1) -> int:
    """The share of a promised number that is to be done now."""
    return max(at_least, round(promised * SCALE))
