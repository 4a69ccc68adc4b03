"""What a run is given, on record: part by part, so that one that does not come back loses no other."""

from __future__ import annotations

from typing import Final, NamedTuple, NoReturn

import msgspec

from agentguard import _typed
from agentguard._encoding import OPAQUE, decode
from agentguard._values.names import type_name
from agentguard._values.packing import EXACT, encode
from agentguard._values.plain import PREFIX
from agentguard._values.unpacking import imported, unpack
from agentguard.errors import ReplayDivergenceError
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.events.data import LostPart, RunCreated, data_of
from agentguard.steps import values
from agentguard.steps.redaction import Redactor

#: How deep parts are told apart: as deep as the `args` and `kwargs` of a decorated agent lie.
_DEPTH: Final = 2
_REDACTED: Final = "a secret in it is not on record"


class Lost(msgspec.Struct, frozen=True):
    """A part of a run's inputs that is not on record as it was: where it lies, and why."""

    path: tuple[str | int, ...]
    reason: str


class LostInput:
    """Stands where an input of the recorded run cannot be handed out: every use of it says so."""

    __slots__ = ("_lost",)

    def __init__(self, lost: Lost) -> None:
        self._lost = lost

    def __repr__(self) -> str:
        return f"<input {_where(self._lost.path)} is not on record: {self._lost.reason}>"

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error()

    def _error(self) -> ReplayDivergenceError:
        where = _where(self._lost.path)
        return ReplayDivergenceError(
            "not_replayable",
            f"run.{where}",
            f"an input that cannot be handed out again: {self._lost.reason}",
            "the program uses it; put what it was in its place first",
        )

    def _refuse(self, *_: object) -> NoReturn:
        raise self._error()

    __str__ = __bool__ = __eq__ = __hash__ = __iter__ = __len__ = __call__ = _refuse
    __getitem__ = __contains__ = __enter__ = __exit__ = __await__ = __aiter__ = _refuse
    __int__ = __float__ = __index__ = __add__ = __lt__ = __gt__ = __fspath__ = _refuse


def _where(path: tuple[str | int, ...]) -> str:
    return "inputs" + "".join(f"[{part!r}]" for part in path)


class RecordedInputs(NamedTuple):
    """The inputs of a run as they are stored: a payload, and which of its parts do not come back."""

    payload: bytes | None
    lost: tuple[Lost, ...] = ()

    @classmethod
    def of(cls, created: Stored) -> RecordedInputs:
        """Return what the first event of a run has."""
        data = data_of(codec.decode(created.body), RunCreated)
        return cls(created.payload, _typed.convert(data.get("lost_inputs", ()), tuple[Lost, ...]))

    def lost_parts(self) -> list[LostPart]:
        """Return what `run_created` says of the parts that do not come back."""
        return [{"path": list(lost.path), "reason": lost.reason} for lost in self.lost]

    def value(self) -> object:
        """Return the inputs; None where there are none, a `LostInput` for each part that does not come back.

        Raises:
            ReplayDivergenceError: the program no longer has the types that they are of.
        """
        if self.payload is None:
            return None
        try:
            if not self.lost:
                return values.restore(self.payload, by_name=True)
            return self._part(decode(self.payload), ())
        except Exception as error:
            raise ReplayDivergenceError(
                "not_replayable", "run.inputs", f"inputs that do not come back: {error}"
            ) from error

    def _part(self, part: object, path: tuple[str | int, ...]) -> object:
        lost = next((lost for lost in self.lost if lost.path == path), None)
        if lost is not None:
            return LostInput(lost)
        if isinstance(part, list):
            return [self._part(item, (*path, number)) for number, item in enumerate(part)]
        if not isinstance(part, dict):
            return part
        if EXACT in part:
            return unpack(part[EXACT], imported)
        return {name: self._part(item, (*path, name)) for name, item in part.items()}


NO_INPUTS: Final = RecordedInputs(None)


def record_inputs(value: object, redactor: Redactor | None) -> RecordedInputs:
    """Return a run's inputs as they are stored, without secrets."""
    if isinstance(value, RecordedInputs):  # of the run that a fork was made from
        return value
    captured = values.capture(value, by_name=True)
    payload = captured.payload
    whole = captured.reason is None and payload is not None
    if payload is not None and whole and (redactor is None or redactor.value(payload) is payload):
        return RecordedInputs(payload)
    lost: list[Lost] = []
    payload = encode(_parts(value, (), lost))
    clean = payload if redactor is None else redactor.value(payload)
    if clean is not payload:
        lost += [Lost(path, _REDACTED) for path in _changed(decode(payload), decode(clean), ())]
    return RecordedInputs(clean, tuple(lost))


def _parts(value: object, path: tuple[str | int, ...], lost: list[Lost]) -> object:
    if len(path) < _DEPTH and type(value) is list:
        return [_parts(item, (*path, number), lost) for number, item in enumerate(value)]
    if len(path) < _DEPTH and type(value) is dict and all(map(_is_name, value)):
        return {name: _parts(item, (*path, name), lost) for name, item in value.items()}
    captured = values.capture(value, by_name=True)
    if captured.reason is None and captured.payload is not None:
        return msgspec.Raw(captured.payload)
    lost.append(Lost(path, captured.reason or f"{type_name(type(value))} cannot be recorded"))
    return {OPAQUE: type_name(type(value))} if captured.payload is None else msgspec.Raw(captured.payload)


def _is_name(key: object) -> bool:
    return type(key) is str and not key.startswith(PREFIX) and values.scalar(key) is not None


def _changed(old: object, new: object, path: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    """Return which parts were redacted."""
    if old == new:
        return []
    if len(path) < _DEPTH and isinstance(old, dict) and isinstance(new, dict) and EXACT not in old:
        if list(old) == list(new):
            return [found for name in old for found in _changed(old[name], new[name], (*path, name))]
    elif len(path) < _DEPTH and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for number, pair in pairs for found in _changed(*pair, (*path, number))]
    return [path]
