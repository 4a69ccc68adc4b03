"""Values as JSON text, by msgspec: arguments before a call, results after it.  Never pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agentguard._secrets import MASK

#: What encoding a stranger's object can raise.
_FAILURES = (
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    UnicodeError,
    msgspec.MsgspecError,
)
#: How an argument that cannot be encoded is recorded: by its type.
OPAQUE = "agentguard:unencodable"


def _foreign(value: Any) -> Any:
    """What msgspec does not know: secrets masked, pydantic models by their own dump, and no more."""
    if hasattr(type(value), "get_secret_value"):  # pydantic's SecretStr, SecretBytes and Secret
        return MASK
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    if "secret" in type(value).__name__.lower():
        return MASK
    raise TypeError(f"{type_name(type(value))} cannot be encoded")


_encode = msgspec.json.Encoder(enc_hook=_foreign).encode
decode = msgspec.json.Decoder().decode


def type_name(cls: type) -> str:
    """`module.QualifiedName`, plain for builtins."""
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return clean_text(name)


def encode_value(value: Any) -> bytes | None:
    """A value as JSON, or None where it cannot be encoded."""
    try:
        return _encode(value)
    except _FAILURES:
        return None
    except Exception:  # noqa: BLE001 - a stranger's model_dump may raise anything
        return None


def encode_one(value: Any) -> bytes:
    """A value as JSON, one that cannot be encoded by its type, as an argument is."""
    return _encode(_or_opaque(value))


def encode_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Arguments as JSON `[[...], {...}]`; those that cannot be encoded are recorded by type."""
    try:
        return _encode((args, kwargs))
    except _FAILURES:
        pass
    except Exception:  # noqa: BLE001, S110 - as above; the slow way below names the culprit
        pass
    positional = [_or_opaque(value) for value in args]
    named = {clean_text(str(name)): _or_opaque(value) for name, value in kwargs.items()}
    return _encode((positional, named))


def encode_inputs(value: Any) -> bytes | None:
    """A run's inputs as JSON: of mappings and lists, what cannot be encoded is recorded by type."""
    return encode_value(value) or encode_value(_parts(value, 2))


def _parts(value: Any, depth: int) -> Any:
    """A value by its parts, so deep as the `args` and `kwargs` of a call lie."""
    if depth and isinstance(value, Mapping):
        return {clean_text(str(name)): _parts(item, depth - 1) for name, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_parts(item, depth - 1) for item in value]
    return _or_opaque(value)


def _or_opaque(value: Any) -> Any:
    encoded = encode_value(value)
    return {OPAQUE: type_name(type(value))} if encoded is None else msgspec.Raw(encoded)


def clean_text(text: str, limit: int = 2000) -> str:
    """Text that can be encoded: lone surrogates escaped, at most `limit` characters."""
    if len(text) > limit:
        text = text[:limit] + f"… ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
