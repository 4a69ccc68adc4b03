"""Exceptions as the log holds them, and how a replay brings them back: never by running their code."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import cast

from agentguard._values import objects
from agentguard._values.kinds import NotExactError
from agentguard._values.names import clean_text, find, type_name
from agentguard._values.packing import ByNamePacker, encode
from agentguard._values.sameness import same
from agentguard._values.unpacking import imported, unpack
from agentguard.errors import AgentGuardError, RecordedError, RunStopped
from agentguard.events.data import ErrorData, Failure
from agentguard.runs.termination import stop_from, termination
from agentguard.steps.redaction import Redactor

#: How many exceptions are captured of one with its group and its causes, and how deep they may lie.
_MOST, _DEEPEST = 50, 5
#: How many bytes of JSON one exception's arguments may have, and each of its attributes.
_MOST_BYTES = 64_000
_PACKER = ByNamePacker()


def put_on_record(data: Failure, error: BaseException, redactor: Redactor | None = None) -> None:
    """Put an exception on an event: `error`, and `unreplayable` where it does not come back."""
    data["error"] = found = capture(error, redactor)
    if "lost" in found:
        data["unreplayable"] = found.pop("lost")


def capture(error: BaseException, redactor: Redactor | None = None) -> ErrorData:
    """Return an exception as data: type, message, arguments, attributes, notes, group and cause.

    `redactor` takes the secrets out of all of it.  `lost` says why the exception would not come back as it
    was; of a class that is not found by its name that is known, and it comes back as a `RecordedError`.
    """
    return _Capture(redactor).exception(error, _DEEPEST)


class _Capture:
    """One exception being captured, with those inside it."""

    def __init__(self, redactor: Redactor | None) -> None:
        self._redactor = redactor
        self._left = _MOST

    def exception(self, error: BaseException, depth: int) -> ErrorData:
        self._left -= 1
        if isinstance(error, AgentGuardError):
            return cast("ErrorData", termination(error))
        data: ErrorData = {"type": type_name(type(error)), "message": self._text(_message(error))}
        for put in (
            self._put_group,
            self._put_arguments,
            self._put_attributes,
            self._put_notes,
            self._put_cause,
        ):
            try:
                put(data, error, depth)
            except Exception as failure:  # noqa: BLE001 - a user's attributes may raise anything
                data["lost"] = f"{data['type']}: looking at it raised {type_name(type(failure))}"
        if "lost" not in data and find(data["type"]) is type(error) and not _comes_back(error, data):
            data["lost"] = f"{data['type']} does not come back as it was; raise one with plain arguments"
        return data

    def _text(self, text: str) -> str:
        return clean_text(text if self._redactor is None else self._redactor.text(_head(text)))

    def _packed(self, what: str, value: object) -> tuple[object, str | None]:
        """Return a value as JSON without secrets, and why it would not come back; None: nothing is left."""
        try:
            packed = _PACKER.pack(value)
        except NotExactError as error:
            return None, f"{what}: {error}"
        if len(encode(packed)) > _MOST_BYTES:
            return None, f"{what}: it has more than {_MOST_BYTES} bytes"
        clean = packed if self._redactor is None else self._redactor.plain(packed)
        return clean, None if clean is packed else f"{what}: redacted"

    # What cannot be captured leaves nothing behind: each of these puts its part when it has all of it.

    def _put_group(self, data: ErrorData, error: BaseException, depth: int) -> None:
        """Put the exceptions of a group: all of them, or none."""
        if not isinstance(error, BaseExceptionGroup):
            return
        inside: tuple[BaseException, ...] = error.exceptions
        if depth <= 0 or len(inside) > self._left:
            data["lost"] = f"a group of more than {_MOST} exceptions, or deeper than {_DEEPEST}"
            return
        captured = [self.exception(each, depth - 1) for each in inside]
        lost = [each.pop("lost") for each in captured if "lost" in each]
        groups = [k for each, k in zip(inside, captured, strict=True) if isinstance(each, BaseExceptionGroup)]
        message = self._text(error.message)
        if lost:
            data["lost"] = lost[0]
        if all("group" in group for group in groups):  # else there are too many further in
            data["group"] = message
            data["exceptions"] = captured

    def _put_arguments(self, data: ErrorData, error: BaseException, depth: int) -> None:
        if isinstance(error, BaseExceptionGroup) or _is(error, data["message"]):
            return
        name = type_name(type(error))
        packed = [self._packed(f"argument {n} of {name}", value) for n, value in enumerate(error.args)]
        data["args"] = [value for value, _ in packed]
        _lose(data, packed)

    def _put_attributes(self, data: ErrorData, error: BaseException, depth: int) -> None:
        name = type_name(type(error))
        attributes = _attributes(error).items()
        packed = [self._packed(f"{name}.{n}", {n: value}) for n, value in attributes]
        _lose(data, packed)
        facts = {n: value for found, _ in packed if isinstance(found, dict) for n, value in found.items()}
        if facts:
            data["facts"] = facts

    def _put_notes(self, data: ErrorData, error: BaseException, depth: int) -> None:
        notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
        if notes:
            data["notes"] = [self._text(note) for note in notes[:_MOST]]

    def _put_cause(self, data: ErrorData, error: BaseException, depth: int) -> None:
        if error.__cause__ is not None and depth > 0 and self._left > 0:
            data["cause"] = self.exception(error.__cause__, depth - 1)


def _lose(data: ErrorData, packed: list[tuple[object, str | None]]) -> None:
    """Say why not all of what was packed comes back."""
    for _, reason in packed:
        if reason is not None:
            data["lost"] = reason


def _is(error: BaseException, message: str) -> bool:
    """Return whether the message on record is the one argument, whole."""
    return len(error.args) == 1 and type(error.args[0]) is str and error.args[0] == message


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        return "(its message cannot be read)"


def _head(text: str) -> str:
    """Return what is searched for secrets: far more than is captured, so that none is cut in two."""
    return text[:20_000]


def _attributes(error: BaseException) -> dict[str, object]:
    """Return an exception's attributes by name: those of its own, of its slots, and of built-in classes."""
    found = dict(_of_built_in_classes(error)) | objects.state(error)
    found.pop("__notes__", None)
    return found


def _of_built_in_classes(error: BaseException) -> Iterator[tuple[str, object]]:
    for cls in type(error).__mro__:
        if cls.__module__ != "builtins" or cls is BaseException or cls is BaseExceptionGroup:
            continue
        for name, member in vars(cls).items():
            if cls is AttributeError and name == "obj":  # Python's own, for its suggestions
                continue
            if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
                value = getattr(error, name, None)
                if value is not None and not name.startswith("__"):
                    yield name, value


def _comes_back(error: BaseException, data: ErrorData) -> bool:
    """Return whether an exception's data gives one with the same arguments, attributes and message."""
    again = _rebuilt(data, lambda stop: stop)
    if again is None or type(again) is not type(error):
        return False
    groups = isinstance(error, BaseExceptionGroup)
    if not groups and not same(error.args, again.args, sets_in_order=False):
        return False
    return same(_attributes(error), _attributes(again), sets_in_order=False) and _message(error) == _message(
        again
    )


def restore(data: ErrorData, own: Callable[[RunStopped], BaseException] = lambda stop: stop) -> BaseException:
    """Return the exception of `capture`: of its own class where that is imported, else a `RecordedError`.

    `own` gives what stands for a stop, which is one object in the whole run.
    """
    stop = stop_from(data)
    if stop is not None:
        return own(stop)
    error = None if "lost" in data else _rebuilt(data, own)
    if error is None:
        facts = {k: v for k, v in data.items() if k not in ("type", "message", "lost")}
        error = RecordedError(data["type"], data["message"], data.get("facts", facts))
    for note in data.get("notes", ()):
        error.add_note(note)
    if "cause" in data:
        error.__cause__ = restore(data["cause"], own)
    return error


def _rebuilt(data: ErrorData, own: Callable[[RunStopped], BaseException]) -> BaseException | None:
    cls = _imported(data["type"])
    if cls is None:
        return None
    try:
        if issubclass(cls, BaseExceptionGroup):
            if "exceptions" not in data or "group" not in data:
                return None  # there were too many
            inside = [restore(each, own) for each in data["exceptions"]]
            error: BaseException = BaseExceptionGroup.__new__(cls, data["group"], inside)
        else:
            args = tuple(unpack(data["args"], imported)) if "args" in data else (data["message"],)
            error = cls.__new__(cls, *args)
            error.args = args
        facts = unpack(data.get("facts", {}), imported)
    except Exception:  # noqa: BLE001 - a user's __new__ may raise anything
        return None
    if isinstance(error, AgentGuardError):
        facts |= {name: data.get(name) for name in error._facts}
    for name, value in facts.items():
        with contextlib.suppress(Exception):  # it cannot be set
            setattr(error, name, value)
    return error


def _imported(name: str) -> type[BaseException] | None:
    found = find(name) or find(f"agentguard.errors.{name}")
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
