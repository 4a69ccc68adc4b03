"""What is kept of a call: its arguments before the body, its result after it, and their digests.

A payload lies beside its event and can be erased; the event keeps a digest under the run's own salt,
so equal arguments are seen to be equal within a run and cannot be guessed once the salt is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentguard._encoding import encode_call, encode_value, type_name
from agentguard.steps import values
from agentguard.steps.model import Step


def arguments(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Take the snapshot of a call's arguments, at the capture level of the step or its guard."""
    journal = step.journal
    level = step.spec.capture or journal.parts.capture
    if level == "none" or not (args or kwargs):
        return
    payload = _encoded(step, args, kwargs)
    digest = journal.digest
    step.digest = digest(payload)
    if level == "full":
        step.payload = payload


def digest_of(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The digest of a call's arguments, whatever is captured: what counts repeats."""
    return step.journal.digest(_encoded(step, args, kwargs))


def _encoded(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    spec = step.spec
    parameters = spec.parameters
    if spec.skip_first:
        args, parameters = args[1:], parameters[1:]
    if spec.ignore:
        args, kwargs = _without(spec.ignore, parameters, args, kwargs)
    payload = encode_call(args, kwargs)
    redactor = step.journal.redactor(spec)
    return redactor.call(payload, parameters) if redactor else payload


def _without(
    ignore: Sequence[str], names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    kept = [
        None if position < len(names) and names[position] in ignore else value
        for position, value in enumerate(args)
    ]
    return kept, {name: value for name, value in kwargs.items() if name not in ignore}


def result(step: Step, value: Any) -> tuple[bytes | None, dict[str, Any]]:
    """The payload of an outcome, and what its event says of it.

    `unreplayable` gives the reason why a replay could not hand the same value out again.
    """
    spec = step.spec
    if (spec.capture or step.journal.parts.capture) == "none":
        return None, {"unreplayable": "not captured"}
    if spec.codec is not None:
        try:
            return encoded(step, values.by_codec(spec.codec, value), None)
        except Exception as error:  # noqa: BLE001 - a stranger's codec may raise anything
            return None, {"unreplayable": f"its codec failed: {type_name(type(error))}"}
    payload = encode_value(value)
    if payload is None:
        return None, {"unreplayable": f"{type_name(type(value))} cannot be encoded"}
    reason = None if type(value) in values.SCALARS else values.loss(value, payload, spec.returns)
    return encoded(step, payload, reason)


def encoded(step: Step, payload: bytes, reason: str | None) -> tuple[bytes | None, dict[str, Any]]:
    """Redact an encoded result and say what its event keeps of it."""
    journal = step.journal
    level = step.spec.capture or journal.parts.capture
    if level == "none":
        return None, {"unreplayable": "not captured"}
    redactor = journal.redactor(step.spec)
    if redactor is not None:
        redacted = redactor.value(payload)
        if redacted is not payload:
            payload, reason = redacted, "redacted"
    digest = journal.digest
    data: dict[str, Any] = {"result": digest(payload)}
    if level == "digest":
        reason = "only a digest was captured"
    if reason is not None:
        data["unreplayable"] = reason
    return (payload if level == "full" else None), data
