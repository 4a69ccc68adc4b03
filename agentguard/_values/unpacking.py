"""A value put together again from what `packing` made of it."""

from __future__ import annotations

import base64
import enum
import functools
import struct
import typing
from collections.abc import Callable
from typing import Any, Final

from agentguard._values import objects
from agentguard._values.http import kind_of_tag
from agentguard._values.kinds import BY_TAG, NotExactError, advice
from agentguard._values.names import find, type_name
from agentguard._values.packing import DICT, ENUM, FLOAT, INT, OBJECT, TEXT
from agentguard._values.plain import PREFIX

#: What a pydantic model has beside its fields.
_MORE: Final = frozenset(("unset", "extra", "private"))
#: Finds a class by its name on record.
Finder = Callable[[str], type]


def unpack(packed: Any, finder: Finder) -> Any:
    """Return the value that was packed, its classes found by `finder`.

    Raises:
        NotExactError: a class is not found, or the payload is none of ours.
        Exception: whatever the types raise at parts that they do not take.
    """
    if isinstance(packed, list):
        return [unpack(item, finder) for item in packed]
    if not isinstance(packed, dict):
        return packed
    tag = next(iter(packed), "")
    if not tag.startswith(PREFIX):
        return {key: unpack(item, finder) for key, item in packed.items()}
    parts = packed[tag]
    if (kind := BY_TAG.get(tag) or kind_of_tag(tag)) is not None:
        return kind.make(unpack(parts, finder))
    try:
        return _MAKERS[tag](packed, finder)
    except KeyError:
        raise NotExactError(f"{tag} is not known to this version of agentguard") from None


def _dict(packed: dict[str, Any], finder: Finder) -> dict[Any, Any]:
    parts = packed[DICT]
    if isinstance(parts, dict):
        return {key: unpack(item, finder) for key, item in parts.items()}
    made: dict[Any, Any] = {}
    for pair in parts:
        if isinstance(pair, dict):
            made |= {key: unpack(item, finder) for key, item in pair.items()}
        else:
            key, item = pair
            made[unpack(key, finder)] = unpack(item, finder)
    return made


def _float(packed: dict[str, Any], _: Finder) -> float:
    text = packed[FLOAT]
    if len(text) == 16:
        return float(struct.unpack(">d", base64.b16decode(text))[0])
    return float(text)


def _object(packed: dict[str, Any], finder: Finder) -> Any:
    cls = finder(packed[OBJECT])
    if not objects.has_fields(cls):
        raise NotExactError(f"{type_name(cls)} has no fields")
    fields = unpack(packed["fields"], finder)
    more: dict[str, Any] = {name: unpack(packed[name], finder) for name in packed.keys() & _MORE}
    return objects.put_together(cls, objects.Parts(fields, more))


def _member(packed: dict[str, Any], finder: Finder) -> enum.Enum:
    parts: list[Any] = [*packed[ENUM], None]
    name, member, value = parts[:3]
    cls = finder(name)
    if not issubclass(cls, enum.Enum):
        raise NotExactError(f"{type_name(cls)} is no enum")
    return objects.member(cls, member, unpack(value, finder))


_MAKERS: Final[dict[str, Callable[[dict[str, Any], Finder], Any]]] = {
    DICT: _dict,
    TEXT: lambda packed, _: packed[TEXT].encode("ascii").decode("unicode_escape"),
    INT: lambda packed, _: int(packed[INT], 16),
    FLOAT: _float,
    OBJECT: _object,
    ENUM: _member,
}


def imported(name: str) -> type:
    """Return the class of a name, where its module is imported.

    Raises:
        NotExactError: it is not.
    """
    cls = find(name)
    if not isinstance(cls, type):
        raise NotExactError(f"{name} is not imported")
    return cls


@functools.lru_cache(maxsize=256)
def finder_of(annotation: Any) -> Finder:
    """Return what finds the classes that an annotation names, their children, and any enum."""
    named: dict[str, type] = {}
    _collect(annotation, named, set())
    bases = tuple(named.values())

    def finder(name: str) -> type:
        cls = named.get(name) or imported(name)
        if issubclass(cls, enum.Enum) or issubclass(cls, bases):
            return cls
        raise NotExactError(f"{name} does not come back as it was; {advice(cls)}")

    return finder


def _collect(annotation: Any, named: dict[str, type], seen: set[str]) -> None:
    """Add the classes with fields that an annotation names, and those that their fields name."""
    annotation = getattr(annotation, "__value__", annotation)  # of `type Name = ...`
    for argument in typing.get_args(annotation):
        _collect(argument, named, seen)
    cls = typing.get_origin(annotation) or annotation
    if not isinstance(cls, type) or (name := type_name(cls)) in seen:
        return
    seen.add(name)
    if objects.has_fields(cls) or issubclass(cls, enum.Enum):
        named[name] = cls
    elif not typing.is_typeddict(cls):
        return
    for hint in _hints(cls).values():
        _collect(hint, named, seen)


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except Exception:  # noqa: BLE001 - a name that is known only to a type checker
        return {}
