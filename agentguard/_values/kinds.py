"""The types of the standard library that come back without an annotation, and what to do about the rest."""

from __future__ import annotations

import array
import base64
import collections
import datetime as dt
import ipaddress
import pathlib
import re
import types
import uuid
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

from agentguard._values.plain import PREFIX


class NotExactError(Exception):
    """A value that would not come back with its type and value; the message says why and what to do."""


class Kind(NamedTuple):
    """One type: `parts` takes a value apart into plainer values, `make` puts it together again."""

    tag: str
    parts: Callable[[Any], Any]
    make: Callable[[Any], Any]


_kinds: dict[type, Kind] = {}
#: Types whose order is no part of their value.
SETS: Final = frozenset((set, frozenset))


def _kind(cls: type, parts: Callable[[Any], Any], make: Callable[[Any], Any] | None = None) -> None:
    name = "PosixPath" if cls is pathlib.PosixPath else cls.__name__
    _kinds[cls] = Kind(f"{PREFIX}{name}", parts, cls if make is None else make)


def _bytes_parts(value: bytes | bytearray) -> str | list[str]:
    """As text where they are ASCII, so that a reader and the search for secrets see them."""
    return value.decode("ascii") if value.isascii() else [base64.b64encode(value).decode("ascii")]


def _bytes(parts: str | list[str]) -> bytes:
    return parts.encode("latin-1") if isinstance(parts, str) else base64.b64decode(parts[0], validate=True)


def _moment_parts(value: dt.datetime | dt.time) -> list[Any]:
    wall = value.replace(tzinfo=None, fold=0).isoformat()
    return [wall, value.tzinfo, value.fold] if value.fold else [wall, value.tzinfo]


#: What is not written where it is 0.
_NO_FOLD: list[Any] = [0]


def _datetime(parts: list[Any]) -> dt.datetime:
    text, zone, fold = [*parts, *_NO_FOLD][:3]
    return dt.datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def _time(parts: list[Any]) -> dt.time:
    text, zone, fold = [*parts, *_NO_FOLD][:3]
    return dt.time.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def _offset_parts(value: dt.timezone) -> list[Any]:
    return [] if value is dt.UTC else list(value.__getinitargs__())  # type: ignore[attr-defined]


def _zone_parts(value: ZoneInfo) -> str:
    if value.key is None:
        raise NotExactError("a ZoneInfo that was read from a file has no name; use ZoneInfo(key)")
    return value.key


def _uuid_parts(value: uuid.UUID) -> str | list[str]:
    safe = value.is_safe  # which equality overlooks
    return str(value) if safe is uuid.SafeUUID.unknown else [str(value), safe.name]


def _uuid(parts: str | list[str]) -> uuid.UUID:
    return (
        uuid.UUID(parts) if isinstance(parts, str) else uuid.UUID(parts[0], is_safe=uuid.SafeUUID[parts[1]])
    )


#: What a defaultdict may make of a missing key; any other factory is code.
_FACTORIES: Final = {cls.__name__: cls for cls in (bool, dict, float, frozenset, int, list, set, str, tuple)}


def _defaultdict_parts(value: collections.defaultdict[Any, Any]) -> list[Any]:
    factory = value.default_factory
    name = None if factory is None else next((n for n, f in _FACTORIES.items() if f is factory), "")
    if name == "":
        raise NotExactError("the default factory of a defaultdict is code; return dict(...) of it")
    return [name, dict(value)]


def _defaultdict(parts: list[Any]) -> collections.defaultdict[Any, Any]:
    name, items = parts
    return collections.defaultdict(None if name is None else _FACTORIES[name], items)


_kind(tuple, list)
_kind(set, list)
_kind(frozenset, list)
_kind(bytes, _bytes_parts, _bytes)
_kind(bytearray, _bytes_parts, lambda parts: bytearray(_bytes(parts)))
_kind(complex, lambda value: [value.real, value.imag], lambda parts: complex(*parts))
_kind(range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts))
_kind(slice, lambda value: [value.start, value.stop, value.step], lambda parts: slice(*parts))
_kind(Decimal, str)
_kind(Fraction, lambda value: [value.numerator, value.denominator], lambda parts: Fraction(*parts))
_kind(dt.date, lambda value: value.isoformat(), dt.date.fromisoformat)
_kind(dt.datetime, _moment_parts, _datetime)
_kind(dt.time, _moment_parts, _time)
_kind(
    dt.timedelta,
    lambda value: [value.days, value.seconds, value.microseconds],
    lambda parts: dt.timedelta(*parts),
)
_kind(dt.timezone, _offset_parts, lambda parts: dt.timezone(*parts) if parts else dt.UTC)
_kind(ZoneInfo, _zone_parts)
_kind(uuid.UUID, _uuid_parts, _uuid)
for _cls in (pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath):
    _kind(_cls, str)
for _address in (
    ipaddress.IPv4Address,
    ipaddress.IPv4Interface,
    ipaddress.IPv4Network,
    ipaddress.IPv6Address,
    ipaddress.IPv6Interface,
    ipaddress.IPv6Network,
):
    _kind(_address, str)
_kind(collections.deque, lambda value: [list(value), value.maxlen], lambda parts: collections.deque(*parts))
_kind(collections.OrderedDict, dict)
_kind(collections.Counter, dict)
_kind(collections.defaultdict, _defaultdict_parts, _defaultdict)
_kind(types.SimpleNamespace, lambda value: dict(vars(value)), lambda parts: types.SimpleNamespace(**parts))
_kind(type(Ellipsis), lambda _: None, lambda _: Ellipsis)
_kind(type(NotImplemented), lambda _: None, lambda _: NotImplemented)

KINDS: Final[dict[type, Kind]] = _kinds
BY_TAG: Final[dict[str, Kind]] = {kind.tag: kind for kind in _kinds.values()}

#: What to return in the place of a value that does not come back.
_ADVICE: Final[dict[type, str]] = {
    memoryview: "return bytes(view)",
    array.array: "return a list, or bytes",
    types.MappingProxyType: "return dict(...) of it",
    collections.ChainMap: "return dict(...) of it",
    collections.UserDict: "return its data",
    collections.UserList: "return its data",
    collections.UserString: "return str(...) of it",
    type({}.keys()): "return a list of it",
    type({}.values()): "return a list of it",
    type({}.items()): "return a list of it",
    map: "return a list of it",
    filter: "return a list of it",
    zip: "return a list of it",
    enumerate: "return a list of it",
    re.Pattern: "return its pattern, a str",
    re.Match: "return its groups",
    types.FunctionType: "return what the caller needs of it; code is not recorded",
    types.ModuleType: "return what the caller needs of it; code is not recorded",
    type: "return its name; code is not recorded",
}
_USUAL: Final = "annotate the result, with the types that its fields have, or give a codec"


def advice(cls: type) -> str:
    """Return what to do about a value of a type that does not come back."""
    return _ADVICE.get(cls, _USUAL)
