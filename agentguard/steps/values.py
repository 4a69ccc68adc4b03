"""Whether a value comes back from its stored form as it went in, and how it is brought back."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
import sys
import types
from datetime import datetime, time
from typing import Any, Union, get_args, get_origin

import msgspec

from agentguard._encoding import decode, type_name

#: These always come back as they were, where no annotation has a say.
_SCALARS = frozenset((type(None), bool, int, str))


def is_scalar(value: Any) -> bool:
    """Whether JSON by itself gives a value back, with its type."""
    cls = type(value)
    return cls in _SCALARS or (cls is float and math.isfinite(value))


def kept_by(returns: Any) -> frozenset[type]:
    """The types whose scalars come back through an annotation as they do without it.

    `float` would make 3.0 of 3, and an enum its member of a text: those are brought back without.
    """
    if returns is None or returns is Any:
        return _SCALARS | {float}
    union = get_origin(returns) in (Union, types.UnionType)
    try:
        members = frozenset(get_args(returns) if union else (returns,))
    except TypeError:  # an annotation that cannot be hashed
        return frozenset()
    if not members <= _SCALARS | {float}:
        return frozenset()
    return members - {float} if int in members else members


def loss(value: Any, payload: bytes, returns: Any = None) -> str | None:
    """Why `payload` would not give the same type and value back; None if it would."""
    cls = type(value)
    if returns is None and cls in _SCALARS:
        return None
    try:
        restored = restore(payload, returns)
    except Exception as error:  # noqa: BLE001 - a stranger's types may raise anything
        return f"it does not decode as {returns!r}: {type(error).__name__}"
    if not _same(value, restored):
        return (
            f"{type_name(cls)} does not come back as it was; annotate the result, with the types that its "
            "fields have, or give a codec"
        )
    return None


def restore(payload: bytes, returns: Any = None) -> Any:
    """The value of a payload, through a return annotation where there is one."""
    if returns is None:
        return decode(payload)
    validate = getattr(returns, "model_validate_json", None)
    if callable(validate):
        return validate(payload)
    try:
        return msgspec.json.decode(payload, type=returns)
    except (TypeError, msgspec.ValidationError):  # it knows no `list[Model]`, no `Model | None`
        if "pydantic" not in sys.modules:
            raise
        return _adapter(returns).validate_json(payload)


@functools.lru_cache(maxsize=256)
def _adapter(returns: Any) -> Any:
    from pydantic import TypeAdapter  # noqa: PLC0415 - the user's: it is loaded, or its models would not be

    return TypeAdapter(returns)


def by_codec(codec: Any, value: Any) -> bytes:
    """A value through a user's codec: an object with `encode(value) -> bytes` and `decode(bytes)`."""
    encoded = codec.encode(value)
    if not isinstance(encoded, bytes):
        raise TypeError(f"codec.encode must give bytes, not {type(encoded).__name__}")
    return encoded


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return (
            list(a) == list(b)
            and all(_same(k, j) for k, j in zip(a, b, strict=True))
            and all(_same(a[key], b[key]) for key in a)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    if isinstance(a, datetime | time) and a.fold != b.fold:  # which `==` overlooks
        return False
    try:
        if not a == b:  # noqa: SIM201 - a stranger's `!=` need not be its opposite
            return False
    except Exception:  # noqa: BLE001 - a stranger's __eq__ may raise anything
        return False
    # 1 == 1.0: a field annotated float that holds an int comes back as another type.
    return all(_same(getattr(a, name, None), getattr(b, name, None)) for name in _fields(type(a)))


def _fields(cls: type) -> tuple[str, ...]:
    """The fields of a dataclass, msgspec Struct, attrs class or pydantic model that `==` looks at."""
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls) if field.compare)
    if (struct := getattr(cls, "__struct_fields__", None)) is not None:
        return tuple(struct)
    if (attributes := getattr(cls, "__attrs_attrs__", None)) is not None:
        return tuple(attribute.name for attribute in attributes if attribute.eq)
    return tuple(getattr(cls, "__pydantic_fields__", ()))


def item_type(returns: Any) -> Any:
    """What a generator annotated with `returns` yields: `Iterator[T]` and its like give T."""
    arguments = get_args(returns)
    return arguments[0] if arguments else None


def return_type(returns: Any) -> Any:
    """What a generator annotated with `returns` returns: `Generator[T, S, R]` gives R."""
    if get_origin(returns) is not collections.abc.Generator:
        return None
    arguments = get_args(returns)
    return arguments[2] if len(arguments) == 3 else None
