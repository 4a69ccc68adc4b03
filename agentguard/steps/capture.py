"""What is captured of a call: its arguments before the body, its result after it, and their digests.

A payload lies beside its event and can be erased; the event holds a digest under the run's own salt,
so equal arguments are seen to be equal within a run and cannot be guessed once the salt is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from agentguard._encoding import CONVERSATIONS_APART, decode, encode_call, encode_call_of_scheme_1
from agentguard._values.fingerprint import (
    OPAQUE,
    ArgumentPacker,
    ShowingPacker,
    TellingApartPacker,
    concealed,
)
from agentguard._values.kinds import NotExactError
from agentguard._values.names import type_name
from agentguard._values.packing import encode
from agentguard.events.conversations import ConversationCall
from agentguard.events.data import StepEnded
from agentguard.events.model import ONLY_A_DIGEST
from agentguard.fragments import Digest
from agentguard.steps import values
from agentguard.steps.fragments import FragmentEncoder
from agentguard.steps.redaction import Redactor
from agentguard.steps.spec import LLM, Capture, Codec, StepSpec, logged_attributes
from agentguard.steps.step_call import StepCall

#: What an outcome has on record: its payload, and what its event says of it.
RecordedPayload = tuple[bytes | None, StepEnded]

_OPAQUE = OPAQUE.encode()
_TEXT = frozenset((str,))
_NOT_CAPTURED = "not captured"
_REDACTED = "redacted"


class Capturing(NamedTuple):
    """How the calls of one run are captured: the run's part of a recorder's options."""

    level: Capture
    redactor: Redactor | None
    digest: Digest
    #: The value scheme of the run: arguments are encoded as the run's log has them.
    scheme: int


class PayloadRecorder:
    """Captures the calls of one step in one run: the options of both, looked up once."""

    __slots__ = (
        "_attributes",
        "_cut",
        "_digest",
        "_fragments",
        "_full",
        "_level",
        "_packer",
        "_parameters",
        "_raw_fragments",
        "_redact_call",
        "_redact_result",
        "_scheme",
        "_spec",
        "_trusted",
        "redactor",
    )

    def __init__(self, spec: StepSpec, capturing: Capturing) -> None:
        self._spec = spec
        self._level, redactor, self._digest, self._scheme = capturing
        self._full = self._level == "full"
        #: The types of results that need no second look.
        self._trusted = values.captured_by(spec.returns)
        self._parameters = spec.parameters[1:] if spec.skip_first else spec.parameters
        #: Whether some arguments stay out of the log.
        self._cut = spec.skip_first or bool(spec.ignore)
        self.redactor = redactor
        self._redact_call = None if redactor is None else redactor.of_calls(self._parameters)
        self._redact_result = None if redactor is None else redactor.value
        self._packer = ArgumentPacker(self._redact_result)
        #: Attributes that calls share, and what is told of them; together, since threads share a recorder.
        self._attributes: tuple[Mapping[str, object] | None, dict[str, object]] = (None, {})
        #: Only conversations are long, and come again.
        self._fragments = FragmentEncoder(redactor, self._parameters) if spec.kind == LLM else None
        self._raw_fragments = FragmentEncoder(redactor, self._parameters, masking=False)

    def arguments(self, step: StepCall, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Take the snapshot of a call's arguments."""
        if self._level == "none" or not (args or kwargs):
            return
        payload = self._encoded(args, kwargs, self._digest)
        step.digest = self._digest(payload)
        if self._full:
            step.payload = payload

    def attributes(self, given: Mapping[str, object]) -> dict[str, object]:
        """Return what the log and the span are told of attributes: plain values, without secrets."""
        known, told = self._attributes
        # Of texts alone: of others, those that are equal may be told otherwise, or may have changed in place.
        texts = _TEXT.issuperset(map(type, given.values()))
        if given is known or (texts and given == known):
            return told
        told = logged_attributes(given)
        if self._redact_result is not None:
            payload = encode(told)
            clean = self._redact_result(payload)
            told = told if clean is payload else decode(clean)
        if texts or given is self._spec.attributes:
            self._attributes = (given, told)
        return told

    def digest_of(self, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
        """Return the digest of a call's arguments, whatever is captured."""
        return self._digest(self._encoded(args, kwargs, self._digest))

    def repeat_of(
        self,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        digest: Digest | None = None,
    ) -> str:
        """Return the digest by which calls are repeats: what is given by name, and in what order, is all one.

        Arguments that are masked, left out or of an unknown kind have a part in it that only this process
        can make, so that different calls never count as one.  `digest` is that of another run, for what is
        counted over several.
        """
        digest = digest or self._digest
        if kwargs:
            args, kwargs = _by_position(self._spec.positional, args, kwargs)
        payload = self._encoded(args, kwargs, digest)
        if self._scheme == 1:
            return digest(payload)
        apart = self._told_apart(args, kwargs, digest)
        return digest(payload if apart == payload else payload + concealed(apart))

    def unknown(self, args: Sequence[object], kwargs: Mapping[str, object]) -> str | None:
        """Return a digest that binds an approval to these very objects; None where all arguments are known.

        Another process can never make it: there the step is asked for again.
        """
        if self._cut:
            args, kwargs = self._without(args, kwargs)
        packer = TellingApartPacker()
        payload = encode_call(args, kwargs, packer)
        return self._digest(concealed(payload)) if packer.unknown else None

    def asked(self, step: StepCall, args: Sequence[object], kwargs: Mapping[str, object]) -> bytes | None:
        """Return a call's arguments for who must approve it: as the log has them, and what it only digests.

        That is for people: it binds nothing, and need not be the same in another process.
        """
        payload = step.payload
        if payload is None or isinstance(payload, ConversationCall) or _OPAQUE not in payload:
            return payload
        if self._cut:
            args, kwargs = self._without(args, kwargs)
        shown = encode_call(args, kwargs, ShowingPacker(self._redact_result))
        return shown if self._redact_call is None else self._redact_call(shown)

    def _encoded(self, args: Sequence[object], kwargs: Mapping[str, object], digest: Digest) -> bytes:
        if self._cut:
            args, kwargs = self._without(args, kwargs)
        if self._fragments is not None:
            joined = self._fragments.join(args, kwargs, self._chain(digest), self._packer)
            if joined is not None:
                return joined
        if self._scheme == 1:
            payload = encode_call_of_scheme_1(args, kwargs)
        else:
            payload = encode_call(args, kwargs, self._packer)
        return payload if self._redact_call is None else self._redact_call(payload)

    def _told_apart(self, args: Sequence[object], kwargs: Mapping[str, object], digest: Digest) -> bytes:
        """Return all arguments as JSON: none masked, none left out, no two unknown ones equal."""
        if self._spec.skip_first:
            args = args[1:]
        packer = TellingApartPacker()
        joined = None
        if self._fragments is not None:
            joined = self._raw_fragments.join(args, kwargs, self._chain(digest), packer)
        return encode_call(args, kwargs, packer) if joined is None else joined

    def _chain(self, digest: Digest) -> Digest | None:
        """Return what conversations are digested with; None where the run's log has them inside the calls."""
        return digest if self._scheme >= CONVERSATIONS_APART else None

    def _without(
        self, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[Sequence[object], Mapping[str, object]]:
        ignore, names = self._spec.ignore, self._parameters
        if self._spec.skip_first:
            args = args[1:]
        captured = [
            None if position < len(names) and names[position] in ignore else value
            for position, value in enumerate(args)
        ]
        return captured, {name: value for name, value in kwargs.items() if name not in ignore}

    def result(self, value: object) -> RecordedPayload:
        """Return the payload of an outcome, and what its event says of it.

        `unreplayable` gives the reason why a replay could not hand the same value out again.  A stranger's
        type that raises anything while it is looked at is such a reason.
        """
        if self._level == "none":
            return None, {"unreplayable": _NOT_CAPTURED}
        if self._spec.codec is not None:
            return self._by_codec(self._spec.codec, value)
        try:
            if type(value) in self._trusted and (payload := values.scalar(value)) is not None:
                return self.encoded(payload, None)
            captured = values.capture(value, self._spec.returns)
        except Exception as error:  # noqa: BLE001 - MemoryError too: the body has run, and must be settled
            return None, {"unreplayable": f"capturing it raised {type_name(type(error))}"}
        payload, data = self.encoded(captured.payload, captured.reason)
        if captured.plain:
            data["plain"] = True  # to be brought back without the annotation, which would change or refuse it
        return payload, data

    def note(self, value: object) -> RecordedPayload:
        """Return the same of a result that only tells what happened: no replay will hand it out."""
        payload = values.readable(value)
        return (None, {}) if payload is None else self.encoded(payload, None)

    def _by_codec(self, codec: Codec, value: object) -> RecordedPayload:
        try:
            payload = values.by_codec(codec, value)
        except NotExactError as error:  # a codec that knows why
            return self.encoded(values.readable(value), str(error))
        except Exception as error:  # noqa: BLE001 - a user's codec may raise anything
            return None, {"unreplayable": f"its codec failed: {type_name(type(error))}"}
        return self.encoded(payload, None)

    def encoded(self, payload: bytes | None, reason: str | None) -> RecordedPayload:
        """Redact an encoded result and say what its event holds of it."""
        if payload is None:
            return None, {"unreplayable": reason or _NOT_CAPTURED}
        redacted = self.redacted(payload)
        return self.captured(redacted, reason if redacted is payload else _REDACTED)

    def redacted(self, payload: bytes) -> bytes:
        """Return an encoded value without its secrets; the same object where there are none."""
        return payload if self._redact_result is None else self._redact_result(payload)

    def captured(self, payload: bytes, reason: str | None) -> RecordedPayload:
        """Return what an outcome holds of a payload without secrets, and what its event says of it."""
        if self._level == "none":
            return None, {"unreplayable": _NOT_CAPTURED}
        if self._full:
            if reason is None:
                return payload, {"result": self._digest(payload)}
            return payload, {"result": self._digest(payload), "unreplayable": reason}
        return None, {"result": self._digest(payload), "unreplayable": ONLY_A_DIGEST}


def _by_position(
    names: Sequence[str], args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[Sequence[object], Mapping[str, object]]:
    """Return the same call with as much as can be by position, and the rest in the order of the names."""
    positional, named = list(args), dict(kwargs)
    for name in names[len(args) :]:
        if name not in named:
            break
        positional.append(named.pop(name))
    return positional, dict(sorted(named.items()))
