"""What is kept of a call: its arguments before the body, its result after it, and their digests.

A payload lies beside its event and can be erased; the event keeps a digest under the run's own salt,
so equal arguments are seen to be equal within a run and cannot be guessed once the salt is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentguard._encoding import encode_call, encode_value, type_name
from agentguard.events.model import ONLY_A_DIGEST
from agentguard.steps import values
from agentguard.steps.model import LLM, Capture, Step, StepSpec
from agentguard.steps.pieces import Joiner
from agentguard.steps.redaction import Redactor

_NOT_CAPTURED = "not captured"


class Keeper:
    """What is kept of the calls of one step in one run: the options of both, looked up once."""

    __slots__ = (
        "_cut",
        "_digest",
        "_full",
        "_joiner",
        "_kept",
        "_level",
        "_parameters",
        "_redact_call",
        "_redact_result",
        "_spec",
        "redactor",
    )

    def __init__(
        self, spec: StepSpec, level: Capture, redactor: Redactor | None, digest: Callable[[bytes], str]
    ) -> None:
        self._spec = spec
        self._level = level
        self._full = level == "full"
        self._digest = digest
        #: The types of results that need no second look.
        self._kept = values.kept_by(spec.returns)
        self._parameters = spec.parameters[1:] if spec.skip_first else spec.parameters
        #: Whether some arguments stay out of the log.
        self._cut = spec.skip_first or bool(spec.ignore)
        self.redactor = redactor
        self._redact_call = None if redactor is None else redactor.of_calls(self._parameters)
        self._redact_result = None if redactor is None else redactor.value
        #: Only conversations are long, and come again.
        self._joiner = Joiner(redactor, self._parameters) if spec.kind == LLM else None

    def arguments(self, step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Take the snapshot of a call's arguments."""
        if self._level == "none" or not (args or kwargs):
            return
        payload = self._encoded(args, kwargs)
        step.digest = self._digest(payload)
        if self._full:
            step.payload = payload

    def digest_of(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        digest: Callable[[bytes], str] | None = None,
    ) -> str:
        """The digest of a call's arguments, whatever is captured: what counts repeats.

        `digest` is that of another run, for what is counted over several.
        """
        return (digest or self._digest)(self._encoded(args, kwargs))

    def repeat_of(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        digest: Callable[[bytes], str] | None = None,
    ) -> str:
        """The digest by which calls are the same: what is given by name, and in what order, is all one."""
        if kwargs:
            args, kwargs = _by_position(self._spec.positional, args, kwargs)
        return self.digest_of(args, kwargs, digest)

    def _encoded(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        if self._cut:
            args, kwargs = self._without(args, kwargs)
        if self._joiner is not None and (joined := self._joiner.join(args, kwargs)) is not None:
            return joined
        payload = encode_call(args, kwargs)
        return payload if self._redact_call is None else self._redact_call(payload)

    def _without(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        ignore, names = self._spec.ignore, self._parameters
        if self._spec.skip_first:
            args = args[1:]
        kept = [
            None if position < len(names) and names[position] in ignore else value
            for position, value in enumerate(args)
        ]
        return kept, {name: value for name, value in kwargs.items() if name not in ignore}

    def result(self, value: Any) -> tuple[bytes | None, dict[str, Any]]:
        """The payload of an outcome, and what its event says of it.

        `unreplayable` gives the reason why a replay could not hand the same value out again.
        """
        if self._level == "none":
            return None, {"unreplayable": _NOT_CAPTURED}
        if self._spec.codec is not None:
            return self._by_codec(value)
        payload = encode_value(value)
        if payload is None:
            return None, {"unreplayable": f"{type_name(type(value))} cannot be encoded"}
        cls = type(value)
        if cls in self._kept and (cls is not float or payload != b"null"):  # as which nan and inf go
            return self.encoded(payload, None)
        if not values.is_scalar(value):
            return self.encoded(payload, values.loss(value, payload, self._spec.returns))
        encoded, data = self.encoded(payload, None)
        data["plain"] = True  # to be brought back without the annotation, which would change or refuse it
        return encoded, data

    def note(self, value: Any) -> tuple[bytes | None, dict[str, Any]]:
        """The same of a result that only tells what happened: no replay will hand it out."""
        payload = encode_value(value)
        if payload is None:
            return None, {}
        return self.encoded(payload, None)

    def _by_codec(self, value: Any) -> tuple[bytes | None, dict[str, Any]]:
        try:
            payload = values.by_codec(self._spec.codec, value)
        except Exception as error:  # noqa: BLE001 - a stranger's codec may raise anything
            return None, {"unreplayable": f"its codec failed: {type_name(type(error))}"}
        return self.encoded(payload, None)

    def encoded(self, payload: bytes, reason: str | None) -> tuple[bytes | None, dict[str, Any]]:
        """Redact an encoded result and say what its event keeps of it."""
        if self._level == "none":
            return None, {"unreplayable": _NOT_CAPTURED}
        if self._redact_result is not None:
            redacted = self._redact_result(payload)
            if redacted is not payload:
                payload, reason = redacted, "redacted"
        return self.kept(payload, reason)

    def redacted(self, payload: bytes) -> bytes:
        """An encoded value without its secrets; the same object where there are none."""
        return payload if self._redact_result is None else self._redact_result(payload)

    def kept(self, payload: bytes, reason: str | None) -> tuple[bytes | None, dict[str, Any]]:
        """What an outcome keeps of a payload without secrets, and what its event says of it."""
        if self._level == "none":
            return None, {"unreplayable": _NOT_CAPTURED}
        if self._full:
            if reason is None:
                return payload, {"result": self._digest(payload)}
            return payload, {"result": self._digest(payload), "unreplayable": reason}
        return None, {"result": self._digest(payload), "unreplayable": ONLY_A_DIGEST}


def _by_position(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The same call with as much as can be given by position, and the rest in the order of the names."""
    positional, named = list(args), dict(kwargs)
    for name in names[len(args) :]:
        if name not in named:
            break
        positional.append(named.pop(name))
    return positional, dict(sorted(named.items()))
