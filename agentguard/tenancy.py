"""Ids of tenants and runs: what is a legal one, and what says that none was given; texts of operators."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

from agentguard._loading import LOADING

DEFAULT_TENANT = "default"
MAX_ID_LENGTH = 200


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "not given"


#: The default of a tenant or run, since None and "" are mistakes that must not stop everything.
UNSET: Final = Unset.UNSET

Id = str | Literal[Unset.UNSET]


def check_id(value: object, field: str) -> str:
    """Return `value` as an id, or say what is wrong with it.

    An id is 1 to 200 printable characters, so that it can stand in a log line, a file name's
    hash, a URL and a SQL parameter without surprises.

    Raises:
        TypeError: it is not a string.
        ValueError: it is empty, too long, or has control characters.
    """
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a str, not {type(value).__name__}")
    if not value or len(value) > MAX_ID_LENGTH:
        raise ValueError(f"{field} must have 1 to {MAX_ID_LENGTH} characters, not {len(value)}")
    if not value.isprintable():
        raise ValueError(f"{field} must have no control characters: {value!r}")
    return value


def check_text(value: object, field: str) -> str:
    """Return the name of an operator, or a reason, as logs keep it.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a str, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{field} must not be empty")
    # It is shown on terminals and in logs, where a control character could pose as something else.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


def check_reason(value: object) -> str:
    """Return why an operator did something, without the secrets that were pasted into it.

    Raises:
        TypeError, ValueError: as `check_text`.
    """
    with LOADING:
        from agentguard._secrets.masking import mask_text  # noqa: PLC0415 - most programs import this and give none

    return mask_text(check_text(value, "reason"))
