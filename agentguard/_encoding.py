"""Values as JSON text: arguments before a call, results after it.  Never pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from agentguard._secrets import MASK
from agentguard._values.fingerprint import OPAQUE, ArgumentPacker
from agentguard._values.names import clean_text, type_name
from agentguard._values.packing import as_it_is, encode

__all__ = [
    "CONVERSATIONS_APART",
    "OPAQUE",
    "VALUE_SCHEME",
    "clean_text",
    "decode",
    "encode_argument",
    "encode_call",
    "encode_call_of_scheme_1",
    "type_name",
]

#: How arguments and results are encoded; a run says which scheme it was recorded with.
VALUE_SCHEME: Final = 3
#: The first scheme in which conversations lie beside the calls, each message once.
CONVERSATIONS_APART: Final = 3

decode = msgspec.json.Decoder().decode
_PACKER: Final = ArgumentPacker()
#: What most arguments are: no look inside is needed.
_SIMPLE: Final = frozenset((type(None), bool, int, str))


def encode_argument(value: Any, packer: ArgumentPacker = _PACKER) -> bytes:
    """Return an argument as JSON; what JSON does not know is tagged, or recorded by its type."""
    if (payload := as_it_is(value)) is not None:
        return payload
    return encode(_packed(value, packer))


def encode_call(args: Sequence[Any], kwargs: Mapping[str, Any], packer: ArgumentPacker = _PACKER) -> bytes:
    """Return the arguments of a call as JSON `[[...], {...}]`."""
    if _SIMPLE.issuperset(map(type, args)) and _SIMPLE.issuperset(map(type, kwargs.values())):
        try:
            return encode((args, kwargs))
        except (UnicodeError, ValueError):  # a lone surrogate, an int of thousands of digits
            pass
    elif (payload := as_it_is([list(args), kwargs])) is not None:
        return payload
    positional = [_packed(value, packer) for value in args]
    named = {clean_text(str(name)): _packed(value, packer) for name, value in kwargs.items()}
    return encode((positional, named))


def _packed(value: Any, packer: ArgumentPacker) -> Any:
    try:
        return msgspec.Raw(encode(packer.pack(value)))
    except Exception:  # noqa: BLE001 - a user's object may raise anything; a deep one RecursionError
        return packer.lost(value)


# --- logs of before ------------------------------------------------------------------------------


def _foreign(value: Any) -> Any:
    if hasattr(type(value), "get_secret_value"):
        return MASK
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    if "secret" in type(value).__name__.lower():
        return MASK
    raise TypeError(f"{type_name(type(value))} cannot be encoded")


_encode_of_scheme_1 = msgspec.json.Encoder(enc_hook=_foreign).encode


def encode_call_of_scheme_1(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Return the arguments of a call as runs of value scheme 1 have them, to be compared with theirs."""
    try:
        return _encode_of_scheme_1((args, kwargs))
    except Exception:  # noqa: BLE001, S110 - a user's object; the slow way below names it
        pass
    positional = [_or_type_of(value) for value in args]
    named = {clean_text(str(name)): _or_type_of(value) for name, value in kwargs.items()}
    return encode((positional, named))


def _or_type_of(value: Any) -> Any:
    try:
        return msgspec.Raw(_encode_of_scheme_1(value))
    except Exception:  # noqa: BLE001 - as above
        return {OPAQUE: type_name(type(value))}
