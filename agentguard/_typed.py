"""JSON and plain values, read as values of a type.

msgspec keeps what it has learnt of a type on that type, and shows it to other threads while half of it is
missing: two that use a type first at once end the process with a segmentation fault (msgspec 0.22).  So a
type is learnt under a lock.  A module's own decoder, made while the module loads, needs none.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from agentguard._loading import LEARNING

_Value = TypeVar("_Value")


def decode(payload: bytes | str, kind: type[_Value]) -> _Value:
    """Return JSON as a value of a type.

    Raises:
        TypeError: msgspec does not know the type.
        msgspec.DecodeError, UnicodeDecodeError: the payload is no such value.

    Example:
        >>> decode(b'["a", "b"]', tuple[str, str])
        ('a', 'b')
    """
    with LEARNING:
        decoder = msgspec.json.Decoder(kind)
    return decoder.decode(payload)


def convert(value: Any, kind: type[_Value]) -> _Value:
    """Return plain values, as JSON has them, as a value of a type.

    Raises:
        TypeError: msgspec does not know the type.
        msgspec.ValidationError: it is no such value.

    Example:
        >>> convert(["a", "b"], tuple[str, str])
        ('a', 'b')
    """
    with LEARNING:
        msgspec.msgpack.Decoder(kind)  # it knows every type; JSON's refuses some keys of dicts
    return msgspec.convert(value, kind)
