"""Values for the codecs of integrations: as JSON and back, with their own type and value, or not at all.

What JSON knows stays as it is; everything else is tagged by its type (`docs/replay.md` lists them).
"""

from __future__ import annotations

import json
from typing import Any

from agentguard._values.kinds import NotExactError
from agentguard._values.packing import EXACT, ByNamePacker, as_it_is, encode
from agentguard._values.sameness import same
from agentguard._values.unpacking import imported, unpack

__all__ = ["ExactCodec", "NotExactError", "from_json", "to_json"]


def to_json(value: Any) -> Any:
    """Return a value as nothing but JSON, from which `from_json` makes the same value again.

    What is nothing but JSON already is returned itself, and not copied.

    Objects of dataclasses, attrs, msgspec, NamedTuples, pydantic models and enums are recorded by the names
    of their classes, which must be found in an imported module.

    Raises:
        NotExactError: it would not come back as it was; the message says why, and what to do.

    Example:
        >>> from datetime import date
        >>> to_json({"due": date(2026, 1, 2), "tags": ("a", "b")})
        {'due': {'agentguard:date': '2026-01-02'}, 'tags': {'agentguard:tuple': ['a', 'b']}}
    """
    if as_it_is(value) is not None:
        return value
    try:
        packed = ByNamePacker().pack(value)
        if same(value, unpack(packed, imported), sets_in_order=False):
            return packed
    except NotExactError:
        raise
    except Exception as error:
        raise NotExactError(f"{type(value).__name__} cannot be recorded: {error}") from error
    raise NotExactError(f"{type(value).__name__} does not come back as it was")


def from_json(packed: Any) -> Any:
    """Return the value of `to_json`.  Nothing is imported, and no `__init__` of a class with fields runs.

    Raises:
        NotExactError: a class is not imported, or this is none of what `to_json` gives.

    Example:
        >>> from_json({"agentguard:Decimal": "0.10"})
        Decimal('0.10')
    """
    return unpack(packed, imported)


class ExactCodec:
    """A `codec=` for results of any type, where an integration does not know the annotation of the function.

    Example:
        >>> from fractions import Fraction
        >>> CODEC = ExactCodec()
        >>> CODEC.decode(CODEC.encode({"parts": (Fraction(1, 3), None)}))
        {'parts': (Fraction(1, 3), None)}
    """

    def encode(self, value: Any) -> bytes:
        """Return the value as JSON.

        Raises:
            NotExactError: it would not come back as it was.
        """
        return encode(to_json(value))

    def decode(self, data: bytes) -> Any:
        """Return the value again; of a log that was written without this codec, too.

        Raises:
            NotExactError: a class is not imported.
        """
        packed = json.loads(data)
        if isinstance(packed, dict) and packed.keys() == {EXACT}:
            packed = packed[EXACT]
        return from_json(packed)
