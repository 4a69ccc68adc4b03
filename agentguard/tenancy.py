"""Tenant ids: what is a legal one."""

from __future__ import annotations

DEFAULT_TENANT = "default"
MAX_ID_LENGTH = 200


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
