"""Exceptions as the log keeps them, and how a replay brings them back: never by running their code."""

from __future__ import annotations

import contextlib
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from agentguard._encoding import clean_text, type_name
from agentguard.errors import AgentGuardError, RecordedError, RunStopped
from agentguard.runs.termination import stop_from, termination
from agentguard.steps.redaction import Redactor

#: How many exceptions are kept of one with its group and its causes, and how deep they may lie.
_MOST, _DEEPEST = 50, 5
#: How many values are kept of one exception's arguments, and of its attributes, and how deep.
_MOST_VALUES, _DEEPEST_VALUE = 100, 5
_BYTES, _TUPLE = "agentguard:bytes", "agentguard:tuple"
_LONGEST = 2000


class _UnkeptError(Exception):
    """This value, or this group, is not kept."""


def keep(error: BaseException, redactor: Redactor | None = None) -> dict[str, Any]:
    """An exception as data: type, message, and those arguments and attributes that are plain.

    `redactor` takes the secrets out of all of it.  A group has its exceptions with it, and an exception
    its cause.
    """
    return _Keeping(redactor).exception(error, _DEEPEST)


class _Keeping:
    """One exception being kept, with those inside it."""

    def __init__(self, redactor: Redactor | None) -> None:
        self._redactor = redactor
        self._left = _MOST

    def exception(self, error: BaseException, depth: int) -> dict[str, Any]:
        self._left -= 1
        if isinstance(error, AgentGuardError):
            return termination(error)
        data = {"type": type_name(type(error)), "message": self._text(_message(error))}
        for particulars in (self._group, self._arguments, self._attributes, self._notes, self._cause):
            try:
                data |= particulars(error, data["message"], depth)
            except Exception:  # noqa: BLE001, S112 - a stranger's attributes may raise anything
                continue
        return data

    def _text(self, text: str) -> str:
        return clean_text(text if self._redactor is None else self._redactor.text(_head(text)))

    def _plain(self, value: Any) -> Any:
        return _clean(value if self._redactor is None else self._redactor.plain(value))

    def _group(self, error: BaseException, message: str, depth: int) -> dict[str, Any]:
        """The exceptions of a group: all of them, or none."""
        if not isinstance(error, BaseExceptionGroup):
            return {}
        inside: tuple[BaseException, ...] = error.exceptions
        if depth <= 0 or len(inside) > self._left:
            return {}
        kept = [self.exception(each, depth - 1) for each in inside]
        groups = [k for each, k in zip(inside, kept, strict=True) if isinstance(each, BaseExceptionGroup)]
        if not all("group" in group for group in groups):  # too many further in
            return {}
        return {"group": self._text(error.message), "exceptions": kept}

    def _arguments(self, error: BaseException, message: str, depth: int) -> dict[str, Any]:
        if isinstance(error, BaseExceptionGroup) or error.args == (message,):
            return {}
        packed = _pack(error.args, [_MOST_VALUES], _DEEPEST_VALUE)[_TUPLE]
        return {"args": self._plain(packed)}

    def _attributes(self, error: BaseException, message: str, depth: int) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for name, value in _attributes(error):
            with contextlib.suppress(_UnkeptError):
                facts[name] = _pack(value, [_MOST_VALUES], _DEEPEST_VALUE)
        return {"facts": self._plain(facts)} if facts else {}

    def _notes(self, error: BaseException, message: str, depth: int) -> dict[str, Any]:
        notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
        return {"notes": [self._text(note) for note in notes[:_MOST]]} if notes else {}

    def _cause(self, error: BaseException, message: str, depth: int) -> dict[str, Any]:
        if error.__cause__ is None or depth <= 0 or self._left <= 0:
            return {}
        return {"cause": self.exception(error.__cause__, depth - 1)}


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a stranger's __str__ may raise anything
        return "(its message cannot be read)"


def _attributes(error: BaseException) -> Iterator[tuple[str, Any]]:
    """The attributes of an exception by name: those of its own, of its slots, and of built-in classes."""
    found: dict[str, Any] = {}
    for cls in type(error).__mro__:
        built_in = cls.__module__ == "builtins"
        if cls is BaseException or cls is BaseExceptionGroup:
            continue
        for name, member in vars(cls).items():
            slot = isinstance(member, types.MemberDescriptorType)
            if slot or (built_in and isinstance(member, types.GetSetDescriptorType)):
                value = getattr(error, name, None)
                if value is not None:
                    found[name] = value
    for name, value in (found | vars(error)).items():
        if not name.startswith("_"):
            yield name, value


def _pack(value: Any, left: list[int], depth: int) -> Any:
    """A value as plain data that `_unpack` gives back, tuples and bytes marked as such.

    Raises:
        _UnkeptError: it is of another type, or too much.
    """
    left[0] -= 1
    cls = type(value)
    if left[0] < 0 or depth < 0:
        raise _UnkeptError
    if value is None or cls is bool or cls is str:
        return _head(value)
    if (cls is int and abs(value) < 1 << 63) or (cls is float and math.isfinite(value)):
        return value
    if cls is bytes and len(value) <= _LONGEST:
        return {_BYTES: value.decode("latin-1")}  # as text, so that a secret in it is found
    if cls is list or cls is tuple:
        items = [_pack(item, left, depth - 1) for item in value]
        return items if cls is list else {_TUPLE: items}
    if cls is dict and all(type(key) is str and not key.startswith("agentguard:") for key in value):
        return {_clean(key): _pack(item, left, depth - 1) for key, item in value.items()}
    raise _UnkeptError


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _BYTES in value:
        return str(value[_BYTES]).encode("latin-1", "replace")
    if _TUPLE in value:
        return tuple(_unpack(item) for item in value[_TUPLE])
    return {key: _unpack(item) for key, item in value.items()}


def restore(
    data: dict[str, Any], own: Callable[[RunStopped], BaseException] = lambda stop: stop
) -> BaseException:
    """The exception of what `keep` gave: of its own class where that is imported, else a `RecordedError`.

    `own` gives what stands for a stop, which is one object in the whole run.
    """
    stop = stop_from(data)
    if stop is not None:
        return own(stop)
    error = _rebuilt(data, own)
    if error is None:
        facts = {k: v for k, v in data.items() if k not in ("type", "message")}
        error = RecordedError(data["type"], data["message"], data.get("facts", facts))
    for note in data.get("notes", ()):
        error.add_note(note)
    if "cause" in data:
        error.__cause__ = restore(data["cause"], own)
    return error


def _rebuilt(data: dict[str, Any], own: Callable[[RunStopped], BaseException]) -> BaseException | None:
    cls = _imported(data["type"])
    if cls is None:
        return None
    try:
        if issubclass(cls, BaseExceptionGroup):
            inside = [restore(each, own) for each in data["exceptions"]]
            error: BaseException = BaseExceptionGroup.__new__(cls, data["group"], inside)
        else:
            args = tuple(_unpack(data["args"])) if "args" in data else (data["message"],)
            error = cls.__new__(cls, *args)
            error.args = args
    except Exception:  # noqa: BLE001 - a stranger's __new__ may raise anything; no exceptions were kept
        return None
    facts = _unpack(data.get("facts", {}))
    if isinstance(error, AgentGuardError):
        facts |= {name: data.get(name) for name in error._facts}
    for name, value in facts.items():
        with contextlib.suppress(Exception):  # it cannot be set
            setattr(error, name, value)
    return error


def _imported(name: str) -> type[BaseException] | None:
    module_name, _, qualname = name.rpartition(".")
    module = sys.modules.get(module_name or "builtins")
    found = getattr(module, qualname, None) if module is not None else None
    if found is None and (agentguard := sys.modules.get("agentguard.errors")) is not None:
        found = getattr(agentguard, name, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _head(value: Any) -> Any:
    """What is searched for secrets: far more than is kept, so that none is cut in two."""
    return value[:20_000] if isinstance(value, str) else value


def _clean(value: Any) -> Any:
    """Plain data with its texts so long as they are kept."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value
