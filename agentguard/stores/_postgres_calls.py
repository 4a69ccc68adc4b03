"""The statements that a step waits for: prepared where that can be, their parameters packed here.

psycopg parses, adapts and describes each statement anew, in Python, which takes longer than the server takes
to append.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct, error

import psycopg

_SIZE = Struct("!i").pack
_INTEGER = Struct("!i").pack
_BIGINT = Struct("!q").pack
_ARRAY = Struct("!iiiii").pack
_NULL = _SIZE(-1)


class Call:
    """A statement whose parameters are `$1` and so on, and how each of them is packed."""

    def __init__(self, name: str, query: str, *packers: Callable[..., bytes]) -> None:
        self.name = f"agentguard_{name}".encode()
        self.query = query.encode()
        self._packers = packers
        self.formats = [1] * len(packers)

    def packed(self, values: Sequence[object]) -> list[bytes | None]:
        """The parameters in the server's binary form.

        Raises:
            psycopg.DataError: a value has no such form.
        """
        pairs = zip(self._packers, values, strict=True)
        try:
            return [None if value is None else pack(value) for pack, value in pairs]
        except (error, UnicodeError) as reason:
            raise psycopg.DataError(f"a value has no form in PostgreSQL: {reason}") from reason


def integer(value: int) -> bytes:
    """An `integer`."""
    return _INTEGER(value)


def bigint(value: int) -> bytes:
    """A `bigint`."""
    return _BIGINT(value)


def binary(value: bytes) -> bytes:
    """A `bytea`."""
    return value


def text(value: str) -> bytes:
    """A `text`, in a connection whose encoding is UTF-8."""
    return value.encode()


def _array(oid: int, pack: Callable[..., bytes], values: Sequence[object]) -> bytes:
    parts = [_ARRAY(1, None in values, oid, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            packed = pack(value)
            parts += (_SIZE(len(packed)), packed)
    return b"".join(parts)


#: Arrays of these, and of `bytea`.  The numbers are those of the types in every PostgreSQL.
integers = partial(_array, 23, _INTEGER)
bigints = partial(_array, 20, _BIGINT)
texts = partial(_array, 25, text)
byteas = partial(_array, 17, binary)
