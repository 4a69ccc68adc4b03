"""Objects of classes with fields (dataclasses, attrs, msgspec, NamedTuple, pydantic) and enums."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import types
from typing import Any, NamedTuple

import msgspec


class Parts(NamedTuple):
    """What an object is made of; `more` is what a pydantic model has beside its fields."""

    fields: dict[str, Any]
    more: dict[str, Any]


def has_fields(cls: type) -> bool:
    """Return whether objects of a class are made of named fields and nothing else."""
    return (
        dataclasses.is_dataclass(cls)
        or issubclass(cls, msgspec.Struct)
        or is_named_tuple(cls)
        or is_model(cls)
        or hasattr(cls, "__attrs_attrs__")
    )


def is_named_tuple(cls: type) -> bool:
    """Return whether a class was made by `NamedTuple` or `namedtuple`."""
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def is_model(cls: type) -> bool:
    """Return whether a class is a pydantic model."""
    return hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_fields")


def take_apart(value: Any) -> Parts:
    """Return all that an object of a class with fields holds, what equality overlooks included."""
    cls = type(value)
    if is_named_tuple(cls):
        return Parts(dict(zip(cls._fields, tuple(value), strict=True)), {})
    if issubclass(cls, msgspec.Struct):
        names = cls.__struct_fields__
        return Parts(
            {n: v for n in names if (v := getattr(value, n)) is not msgspec.UNSET} | state(value), {}
        )
    if not is_model(cls):
        return Parts(state(value), {})
    more: dict[str, Any] = {}
    fields = _uncached(cls, value.__dict__)
    if unset := [name for name in fields if name not in value.__pydantic_fields_set__]:
        more["unset"] = unset
        for name in unset:
            if _is_default(cls, name, fields[name]):
                del fields[name]
    if extra := value.__pydantic_extra__:
        more["extra"] = dict(extra)
    if private := value.__pydantic_private__:
        more["private"] = dict(private)
    return Parts(fields, more)


def _is_default(cls: Any, name: str, value: Any) -> bool:
    """Return whether a field has what its class says: that need not be on record."""
    field = cls.model_fields.get(name)
    return field is not None and field.default_factory is None and field.default is value


def put_together(cls: Any, parts: Parts) -> Any:
    """Return an object of these parts; no `__init__` is called but that of a msgspec Struct."""
    fields, more = parts
    if is_named_tuple(cls):
        return tuple.__new__(cls, fields.values())
    if issubclass(cls, msgspec.Struct):
        return cls(**fields)
    value: Any = object.__new__(cls)
    if is_model(cls):
        value.__setstate__(_model_state(cls, fields, more))
        return value
    for name, part in fields.items():
        object.__setattr__(value, name, part)
    return value


def _model_state(cls: Any, fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    extra, unset = more.get("extra"), more.get("unset", ())
    defaults = {name: cls.model_fields[name].default for name in unset if name not in fields}
    known = [name for name in cls.model_fields if name in fields or name in defaults]
    held = {name: fields[name] if name in fields else defaults[name] for name in known}
    return {
        "__dict__": held | fields,
        "__pydantic_fields_set__": (fields.keys() - set(unset)) | (extra or {}).keys(),
        "__pydantic_extra__": extra or ({} if cls.model_config.get("extra") == "allow" else None),
        "__pydantic_private__": more.get("private") or ({} if cls.__private_attributes__ else None),
    }


def state(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, those of slots included, without cached properties."""
    found: dict[str, Any] = {}
    cls = type(value)
    for base in cls.__mro__:
        if issubclass(base, msgspec.Struct) or base.__module__ == "builtins":
            continue
        for name, member in vars(base).items():
            if isinstance(member, types.MemberDescriptorType) and name not in ("__dict__", "__weakref__"):
                try:
                    found.setdefault(name, getattr(value, name))
                except AttributeError:
                    continue
    return found | _uncached(cls, getattr(value, "__dict__", {}))


def _uncached(cls: type, attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: part
        for name, part in attributes.items()
        if not isinstance(inspect.getattr_static(cls, name, None), functools.cached_property)
    }


def member_parts(value: enum.Enum) -> tuple[str | None, Any]:
    """Return the name of an enum's member; for flags that have none together, their value."""
    cls = type(value)
    name = value._name_
    if name is not None and cls.__members__.get(name) is value:
        return name, None
    return None, value._value_


def member(cls: type[enum.Enum], name: str | None, value: Any) -> enum.Enum:
    """Return the member that `member_parts` took apart."""
    return cls[name] if name is not None else cls(value)
