"""Whether two values are the same: by type, by value, and by what equality overlooks."""

from __future__ import annotations

import datetime as dt
import enum
import struct
from collections.abc import Callable, Iterable
from typing import Any, Final
from zoneinfo import ZoneInfo

from agentguard._values import objects
from agentguard._values.http import kind_of
from agentguard._values.kinds import KINDS

_BY_EQUALITY = frozenset((type(None), bool, int, str, bytes, bytearray))


def same(a: Any, b: Any, *, sets_in_order: bool = True) -> bool:
    """Return whether `b` is what `a` was; of two objects that say nothing of themselves, False.

    `sets_in_order`: whether sets must iterate alike, which of text no other process can promise.

    Raises:
        RecursionError: they are nested too deeply; and whatever a stranger's `__eq__` raises.
    """
    return _Comparison(sets_in_order=sets_in_order).same(a, b)


class _Comparison:
    def __init__(self, *, sets_in_order: bool) -> None:
        self._sets_in_order = sets_in_order

    def same(self, a: Any, b: Any) -> bool:
        cls = type(a)
        if cls is not type(b):
            return False
        if cls in _BY_EQUALITY:
            return bool(a == b)
        if (compare := _BY_TYPE.get(cls)) is not None:
            return compare(self, a, b)
        if (kind := KINDS.get(cls)) is not None:
            return self.same(kind.parts(a), kind.parts(b)) and self._attributes(a, b)
        if (kind := kind_of(cls)) is not None:
            return self.same(kind.parts(a), kind.parts(b))
        if isinstance(a, enum.Enum):
            return a is b
        if objects.has_fields(cls):
            fields = zip(objects.take_apart(a), objects.take_apart(b), strict=True)
            return all(self.items(x, y) for x, y in fields) and self._inside(a, b)
        return bool(a == b) and self._inside(a, b) and self.items(objects.state(a), objects.state(b))

    def _attributes(self, a: Any, b: Any) -> bool:
        """Compare what a child of nobody may have been given; slots are caches here."""
        return self.items(getattr(a, "__dict__", {}), getattr(b, "__dict__", {}))

    def _inside(self, a: Any, b: Any) -> bool:
        """Compare what an object holds by being a child of a container or of a number."""
        if isinstance(a, dict):
            return self.items(a, b)
        if isinstance(a, list | tuple):
            return self.sequences(a, b)
        if isinstance(a, set | frozenset):
            return self.sets(a, b)
        return not isinstance(a, float) or self.bits(a, b)

    def sequences(self, a: Iterable[Any], b: Iterable[Any]) -> bool:
        left, right = list(a), list(b)
        return len(left) == len(right) and all(map(self.same, left, right))

    def items(self, a: dict[Any, Any], b: dict[Any, Any]) -> bool:
        """Compare mappings, their order included."""
        return len(a) == len(b) and self.sequences(a, b) and self.sequences(a.values(), b.values())

    def sets(self, a: Any, b: Any) -> bool:
        if self._sets_in_order:
            return self.sequences(a, b)
        found = {item: item for item in b}
        return len(a) == len(b) and all(item in found and self.same(item, found[item]) for item in a)

    def zones(self, a: ZoneInfo, b: ZoneInfo) -> bool:
        return a is b or (a.key is not None and a.key == b.key)

    def moments(self, a: Any, b: Any) -> bool:
        clocks = a.fold == b.fold and bool(a.replace(tzinfo=None) == b.replace(tzinfo=None))
        return clocks and self.same(a.tzinfo, b.tzinfo)

    def bits(self, a: float, b: float) -> bool:
        return struct.pack("d", a) == struct.pack("d", b)


_BY_TYPE: Final[dict[type, Callable[[_Comparison, Any, Any], bool]]] = {
    float: _Comparison.bits,
    list: _Comparison.sequences,
    tuple: _Comparison.sequences,
    dict: _Comparison.items,
    set: _Comparison.sets,
    frozenset: _Comparison.sets,
    ZoneInfo: _Comparison.zones,
    dt.datetime: _Comparison.moments,
    dt.time: _Comparison.moments,
}
