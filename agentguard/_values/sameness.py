"""Whether two values are the same: by type, by value, and by what equality overlooks."""

from __future__ import annotations

import datetime as dt
import enum
import struct
from collections.abc import Callable, Iterable
from typing import Any, Final
from zoneinfo import ZoneInfo

from agentguard._values import objects
from agentguard._values.kinds import KINDS

_BY_EQUALITY = frozenset((type(None), bool, int, str, bytes, bytearray))


def same(a: Any, b: Any) -> bool:
    """Return whether `b` is what `a` was; of two objects that say nothing of themselves, False.

    Raises:
        RecursionError: they are nested too deeply; and whatever a stranger's `__eq__` raises.
    """
    cls = type(a)
    if cls is not type(b):
        return False
    if cls in _BY_EQUALITY:
        return bool(a == b)
    if (compare := _BY_TYPE.get(cls)) is not None:
        return compare(a, b)
    if (kind := KINDS.get(cls)) is not None:
        return same(kind.parts(a), kind.parts(b)) and _same_items(objects.state(a), objects.state(b))
    if isinstance(a, enum.Enum):
        return a is b
    if objects.has_fields(cls):
        return all(map(_same_items, objects.take_apart(a), objects.take_apart(b))) and _same_inside(a, b)
    return bool(a == b) and _same_inside(a, b) and _same_items(objects.state(a), objects.state(b))


def _same_inside(a: Any, b: Any) -> bool:
    """Compare what an object holds by being a child of a container or of a number."""
    if isinstance(a, dict):
        return _same_items(a, b)
    if isinstance(a, list | tuple):
        return _all_same(a, b)
    if isinstance(a, set | frozenset):
        return _same_sets(a, b)
    if isinstance(a, float):
        return _same_bits(a, b)
    return True


def _all_same(a: Iterable[Any], b: Iterable[Any]) -> bool:
    left, right = list(a), list(b)
    return len(left) == len(right) and all(map(same, left, right))


def _same_items(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    """Compare mappings, their order included."""
    return len(a) == len(b) and _all_same(a, b) and _all_same(a.values(), b.values())


def _same_sets(a: Any, b: Any) -> bool:
    found = {item: item for item in b}
    return len(a) == len(b) and all(item in found and same(item, found[item]) for item in a)


def _same_zones(a: ZoneInfo, b: ZoneInfo) -> bool:
    return a is b or (a.key is not None and a.key == b.key)


def _same_moments(a: Any, b: Any) -> bool:
    zones = same(a.tzinfo, b.tzinfo)
    return zones and a.fold == b.fold and bool(a.replace(tzinfo=None) == b.replace(tzinfo=None))


def _same_bits(a: float, b: float) -> bool:
    return struct.pack("d", a) == struct.pack("d", b)


_BY_TYPE: Final[dict[type, Callable[[Any, Any], bool]]] = {
    float: _same_bits,
    list: _all_same,
    tuple: _all_same,
    dict: _same_items,
    set: _same_sets,
    frozenset: _same_sets,
    ZoneInfo: _same_zones,
    dt.datetime: _same_moments,
    dt.time: _same_moments,
}
