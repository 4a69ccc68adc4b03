"""What a store promises of an event that it has taken."""

from __future__ import annotations

from typing import Final, Literal, get_args

#: "process": it survives kill -9 of this process; "power": it survives the loss of power.
Durability = Literal["process", "power"]
DURABILITIES: Final[tuple[str, ...]] = get_args(Durability)


def check_durability(durability: str) -> None:
    """Refuse a durability that no store has.

    Raises:
        ValueError: it names what there is.
    """
    if durability == "buffered":
        raise ValueError(
            "durability='buffered' is gone; use 'process' (the default: survives kill -9), "
            "and for memory:// leave it out"
        )
    if durability not in DURABILITIES:
        raise ValueError(f"durability must be one of {DURABILITIES}, not {durability!r}")
