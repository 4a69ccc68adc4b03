"""A value taken apart for JSON: what JSON knows stays, everything else gets a tag."""

from __future__ import annotations

import base64
import enum
import itertools
import math
import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from agentguard._values import objects
from agentguard._values.http import kind_of
from agentguard._values.kinds import KINDS, SETS, Kind, NotExactError, advice
from agentguard._values.names import find, type_name
from agentguard._values.plain import PREFIX, is_plain

#: Around a payload whose tags are to be read.
EXACT: Final = f"{PREFIX}exact"
DICT: Final = f"{PREFIX}dict"
TEXT: Final = f"{PREFIX}str"
INT: Final = f"{PREFIX}int"
FLOAT: Final = f"{PREFIX}float"
OBJECT: Final = f"{PREFIX}object"
ENUM: Final = f"{PREFIX}enum"

#: Longer integers cannot be written in decimal (`sys.set_int_max_str_digits`).
_LONGEST_INT = 8192
#: Up to so many items, every order of insertion is tried to make a set iterate as it did.
_MOST_ORDERS = 5

encode: Final = msgspec.json.Encoder().encode
_TAG: Final = f'"{PREFIX}'.encode()


def as_it_is(value: Any) -> bytes | None:
    """Return a value as JSON where it is nothing else, and has no key that looks like a tag."""
    try:
        if is_plain(value) and _TAG not in (payload := encode(value)):
            return payload
    except (RecursionError, UnicodeError, ValueError):  # a lone surrogate, an int of thousands of digits
        pass
    return None


class Packer:
    """Packs results: every value comes back as it was, or the packing fails with the reason."""

    def pack(self, value: Any) -> Any:
        """Return a value as nothing but JSON.

        Raises:
            NotExactError: it holds something that would not come back.
            RecursionError: it is nested too deeply, or holds itself.
        """
        cls = type(value)
        if value is None or cls is bool:
            return value
        if cls is str:
            return value if _is_unicode(value) else {TEXT: value.encode("unicode_escape").decode("ascii")}
        if cls is int:
            return value if value.bit_length() < _LONGEST_INT else {INT: hex(value)}
        if cls is float:
            return value if math.isfinite(value) else {FLOAT: _float_text(value)}
        if cls is list:
            return [self.pack(item) for item in value]
        if cls is dict:
            return self.mapping(value)
        if (kind := KINDS.get(cls)) is not None:
            return self.kind(kind, value)
        if issubclass(cls, enum.Enum):
            return self.member(value)
        if objects.has_fields(cls):
            return self.object(value)
        return self.foreign(value)

    def mapping(self, value: Mapping[Any, Any]) -> Any:
        """Return a dict: as it is where its keys are text, else pair by pair."""
        if all(type(key) is str and _is_unicode(key) for key in value):
            packed = {key: self.pack(item) for key, item in value.items()}
            return {DICT: packed} if any(key.startswith(PREFIX) for key in packed) else packed
        return {DICT: [self._pair(key, item) for key, item in value.items()]}

    def _pair(self, key: Any, value: Any) -> Any:
        if type(key) is str and _is_unicode(key):
            return {key: self.pack(value)}  # so that a name that marks a secret is found
        return [self.pack(key), self.pack(value)]

    def kind(self, kind: Kind, value: Any) -> Any:
        """Return a value of the standard library, or of an HTTP library."""
        return {kind.tag: self.pack(insertion_order(value) if type(value) in SETS else kind.parts(value))}

    def member(self, value: enum.Enum) -> Any:
        """Return an enum's member, by its name."""
        name, number = objects.member_parts(value)
        parts = [type_name(type(value)), name]
        return {ENUM: parts if name is not None else [*parts, self.pack(number)]}

    def object(self, value: Any) -> Any:
        """Return an object of a class with fields."""
        fields, more = objects.take_apart(value)
        packed = {OBJECT: type_name(type(value)), "fields": self.mapping(fields)}
        return packed | {name: self.pack(part) for name, part in more.items()}

    def foreign(self, value: Any) -> Any:
        """Return a value of any other type."""
        cls = type(value)
        if (kind := kind_of(cls)) is not None:
            return self.kind(kind, value)
        raise NotExactError(f"{type_name(cls)} does not come back as it was; {advice(cls)}")


class ByNamePacker(Packer):
    """Packs values for which no annotation can be given: their classes must be found by name."""

    def member(self, value: enum.Enum) -> Any:
        """Return an enum's member."""
        _check_found(type(value))
        return super().member(value)

    def object(self, value: Any) -> Any:
        """Return an object of a class with fields."""
        _check_found(type(value))
        return super().object(value)


def _check_found(cls: type) -> None:
    name = type_name(cls)
    if find(name) is not cls:
        raise NotExactError(f"{name} is not found by its name; define it at the top of its module")


def insertion_order(value: set[Any] | frozenset[Any]) -> list[Any]:
    """Return a set's items in an order in which a new set iterates as this one does, if one is found.

    Of text, the order follows from the hash seed of a process, which no log can give back.
    """
    order = list(value)
    few = len(order) <= _MOST_ORDERS
    for attempt in itertools.permutations(order) if few else (order, order[::-1]):
        if list(set(attempt)) == order:
            return list(attempt)
    return order


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _float_text(value: float) -> str:
    """Return nan and the infinities as Python spells them; a nan with other bits by these."""
    text = f"{'-' if math.copysign(1, value) < 0 else ''}{'nan' if math.isnan(value) else 'inf'}"
    bits = struct.pack(">d", value)
    return text if struct.pack(">d", float(text)) == bits else base64.b16encode(bits).decode("ascii")
