"""Whether a value comes back from its stored form as it went in, and how it is brought back.

There are three forms: plain JSON; JSON that the return annotation makes the value of; and JSON whose tags
say what JSON does not know (`agentguard._values`).  What none of them brings back is recorded to be read,
with the reason why it cannot be handed out again.
"""

from __future__ import annotations

import collections.abc
import functools
import sys
import types
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    NamedTuple,
    Union,
    get_args,
    get_origin,
)

import msgspec

from agentguard import _typed
from agentguard._encoding import decode, encode_argument
from agentguard._loading import LOADING
from agentguard._values.fingerprint import OPAQUE, ArgumentPacker
from agentguard._values.kinds import NotExactError, advice
from agentguard._values.names import type_name
from agentguard._values.packing import EXACT, ByNamePacker, Packer, as_it_is, encode
from agentguard._values.plain import PREFIX
from agentguard._values.sameness import same
from agentguard._values.unpacking import Finder, finder_of, imported, unpack
from agentguard.steps.spec import Codec

if TYPE_CHECKING:
    from pydantic import TypeAdapter

#: These always come back as they were, where no annotation has a say.
_SCALARS = frozenset((type(None), bool, int, str))
_EXACT_HEAD: Final = b'{"%s":' % EXACT.encode()
_TAG: Final = f'"{PREFIX}'.encode()


class Captured(NamedTuple):
    """A value as it is stored.

    `plain`: it comes back without its annotation, which would change or refuse it.  `reason`: why it does
    not come back at all.
    """

    payload: bytes | None
    plain: bool = False
    reason: str | None = None


def captured_by(returns: object) -> frozenset[type]:
    """Return the types whose scalars come back through an annotation as they do without it.

    `float` would make 3.0 of 3, and an enum its member of a text: those are brought back without.
    """
    if returns is None or returns is Any:
        return _SCALARS | {float}
    union = get_origin(returns) in (Union, types.UnionType)
    try:
        members = frozenset[object](get_args(returns) if union else (returns,))
    except TypeError:  # an annotation that cannot be hashed
        return frozenset()
    scalars = (_SCALARS | {float}) & members
    if scalars != members:
        return frozenset()
    return scalars - {float} if int in scalars else scalars


def scalar(value: object) -> bytes | None:
    """Return a scalar as JSON, where JSON gives it back."""
    try:
        payload = encode(value)
    except (UnicodeError, ValueError):  # a lone surrogate, an int of thousands of digits
        return None
    return None if payload == b"null" and value is not None else payload  # as which nan and inf go


def capture(value: object, returns: object = None, *, by_name: bool = False) -> Captured:
    """Return a value in the first form that brings it back as it was, else one to be read, and the reason.

    `by_name`: no annotation can be given, so objects of imported classes come back by the names of these.
    """
    if (payload := as_it_is(value)) is not None:
        return Captured(payload, plain=returns is not None)
    if returns is not None and (annotated := _annotated(value, returns)) is not None:
        return Captured(annotated)
    return _tagged(value, returns, by_name=by_name)


def _annotated(value: object, returns: object) -> bytes | None:
    """Return a value as JSON that its annotation makes the same value of; None if it makes another."""
    try:
        payload = _encode_native(value)
        return payload if _TAG not in payload and same(value, _through(payload, returns)) else None
    except Exception:  # noqa: BLE001 - a user's types may raise anything
        return None


def _model(value: object) -> object:
    """Return what msgspec does not know: a pydantic model, by its fields."""
    dump = getattr(value, "model_dump", None)
    if not callable(dump) or isinstance(value, type) or hasattr(type(value), "get_secret_value"):
        raise TypeError(f"{type_name(type(value))} cannot be encoded")
    return dump(mode="json")


_encode_native: Final = msgspec.json.Encoder(enc_hook=_model).encode


def _tagged(value: object, returns: object, *, by_name: bool) -> Captured:
    packer = ByNamePacker() if by_name else Packer()
    try:
        payload = _EXACT_HEAD + encode(packer.pack(value)) + b"}"
        if same(value, restore(payload, returns, by_name=by_name), sets_in_order=False):
            return Captured(payload)
        reason = f"{type_name(type(value))} does not come back as it was; {advice(type(value))}"
    except NotExactError as error:
        reason = str(error)
    except RecursionError:
        reason = "it is nested too deeply, or holds itself"
    except Exception as error:  # noqa: BLE001 - a user's types may raise anything
        reason = f"{type_name(type(value))} cannot be recorded: {type_name(type(error))}"
    return Captured(readable(value), reason=reason)


class _ReadablePacker(ArgumentPacker):
    """Packs what is only to be read: a stranger's object by its type, without a look at its state."""

    def opaque(self, value: object) -> object:
        return {OPAQUE: type_name(type(value))}


_READABLE: Final = _ReadablePacker()


def readable(value: object) -> bytes | None:
    """Return JSON for people to read; None where even that fails."""
    try:
        return encode_argument(value, _READABLE)
    except Exception:  # noqa: BLE001 - as above
        return None


def restore(payload: bytes, returns: object = None, *, by_name: bool = False) -> Any:
    """Return the value of a payload, through a return annotation where there is one.

    Raises:
        NotExactError: it does not come back; the message says why.
        Exception: whatever the types of the value raise.
    """
    if payload.startswith(_EXACT_HEAD):
        return unpack(decode(payload)[EXACT], imported if by_name else _finder(returns))
    return decode(payload) if returns is None else _through(payload, returns)


def _finder(returns: object) -> Finder:
    try:
        return finder_of(returns)
    except TypeError:  # an annotation that cannot be hashed
        return finder_of.__wrapped__(returns)


def _through(payload: bytes, returns: Any) -> object:
    validate = getattr(returns, "model_validate_json", None)
    if callable(validate):
        return validate(payload)
    try:
        return _typed.decode(payload, returns)
    except (TypeError, msgspec.ValidationError):  # it knows no `list[Model]`, no `Model | None`
        if "pydantic" not in sys.modules:
            raise
        return _adapter(returns).validate_json(payload)


@functools.lru_cache(maxsize=256)
def _adapter(returns: Any) -> TypeAdapter[object]:
    with LOADING:
        from pydantic import TypeAdapter  # noqa: PLC0415 - the user's: it is loaded, or its models would not be

    return TypeAdapter(returns)


def by_codec(codec: Codec, value: object) -> bytes:
    """Return a value through a user's codec.

    Raises:
        TypeError: the codec gave no bytes.
    """
    encoded = codec.encode(value)
    if not isinstance(encoded, bytes):
        raise TypeError(f"codec.encode must give bytes, not {type(encoded).__name__}")
    return encoded


def item_type(returns: object) -> object:
    """Return what a generator annotated with `returns` yields: `Iterator[T]` and its like give T."""
    arguments = get_args(returns)
    return arguments[0] if arguments else None


def return_type(returns: object) -> object:
    """Return what a generator annotated with `returns` returns: `Generator[T, S, R]` gives R."""
    if get_origin(returns) is not collections.abc.Generator:
        return None
    arguments = get_args(returns)
    return arguments[2] if len(arguments) == 3 else None
