"""Arguments taken apart for JSON: to be read by people, and told apart by their digests.

Unlike a result, an argument never comes back.  So its text is the same in every process (sets are sorted),
secrets are masked, and what cannot be stored is recorded by type, with a digest of its state where it has
one that says all: that of a value whose class can be copied, down to parts that JSON knows.
"""

from __future__ import annotations

import contextlib
import hmac
import itertools
import os
import re
import types
import weakref
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final

import msgspec

from agentguard._secrets import MASK
from agentguard._values import objects
from agentguard._values.kinds import SETS, Kind, NotExactError
from agentguard._values.names import clean_text, find, home_name, type_name
from agentguard._values.packing import OBJECT, Packer, encode
from agentguard._values.plain import PREFIX

#: How an argument that cannot be encoded is recorded: by its type.
OPAQUE: Final = f"{PREFIX}unencodable"
#: How code is recorded: by its name.
NAMED: Final = f"{PREFIX}named"

#: How many parts of a stranger's object are looked at, how deep, and how many bytes.
_MOST_PARTS, _DEEPEST, _MOST_BYTES = 2_000, 30, 16 << 20
#: How much of it is shown: of how many objects the attributes, how deep, and how many characters of a text.
_MOST_SHOWN, _DEEPEST_SHOWN, _MOST_TEXT = 100, 3, 1_000
#: Where an object lies in memory, as texts of objects say it.
_ADDRESS: Final = re.compile(r" at 0x[0-9A-Fa-f]+")
_CODE: Final = (types.FunctionType, types.BuiltinFunctionType, type, types.ModuleType)
_VIEWS: Final[tuple[type, ...]] = (type({}.keys()), type({}.values()), type({}.items()))
#: Their children hold such a value, and more.
_BASES: Final[tuple[type, ...]] = (
    str,
    int,
    float,
    complex,
    bytes,
    bytearray,
    list,
    tuple,
    set,
    frozenset,
    dict,
)

Cleaner = Callable[[bytes], bytes]


class ArgumentPacker(Packer):
    """Packs arguments as they go on record: never fails, but for what is nested too deeply.

    `clean` takes the secrets out of what is only digested.
    """

    def __init__(self, clean: Cleaner | None = None) -> None:
        self._clean = clean

    def kind(self, kind: Kind, value: Any) -> Any:
        """Return a value of the standard library; a set in an order that is the same in every process."""
        if type(value) in SETS:
            return {kind.tag: sorted((self.pack(item) for item in value), key=encode)}
        try:
            return super().kind(kind, value)
        except NotExactError:  # a default factory that is code
            return self.foreign(value)

    def foreign(self, value: Any) -> Any:
        """Return a value of any other type: secrets masked, code by its name, the rest by its state."""
        cls = type(value)
        name = home_name(cls)
        if cls is msgspec.Raw:  # encoded already
            return value
        if hasattr(cls, "get_secret_value"):  # pydantic's SecretStr, SecretBytes and Secret
            return self.secret(value)
        if issubclass(cls, _VIEWS):
            return {f"{PREFIX}{cls.__name__}": [self.pack(item) for item in value]}
        if isinstance(value, _CODE):
            return self._code(value)
        base: Any = next((base for base in _BASES if issubclass(cls, base)), None)
        if base is not None:
            held = base.__str__(value) if base is str else base(value)
            parts = {OBJECT: name, "value": self.pack(held)}
            return parts | {"fields": self.mapping(state)} if (state := objects.state(value)) else parts
        if "secret" in name.rpartition(".")[2].lower():
            return MASK
        return self.opaque(value)

    def secret(self, value: Any) -> Any:
        """Return what stands for a secret."""
        return MASK

    def lost(self, value: Any) -> Any:
        """Return what stands for an argument that is nested too deeply, or holds itself."""
        return {OPAQUE: type_name(type(value))}

    def opaque(self, value: Any) -> Any:
        """Return what stands for a value that cannot be stored."""
        digest = state_digest(value, self._clean)
        named = {OPAQUE: type_name(type(value))}
        return named if digest is None else named | {"state": digest}

    def _code(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return {NAMED: value.__name__}
        name = type_name(value) if isinstance(value, type) else f"{value.__module__}.{value.__qualname__}"
        return {NAMED: name} if find(name) is value else self.opaque(value)


class TellingApartPacker(ArgumentPacker):
    """Packs arguments to be digested and thrown away: secrets as they are, no two unknown objects equal.

    An object whose state says nothing is equal to itself alone, as long as it lives.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Whether there was such an object.
        self.unknown = False

    def secret(self, value: Any) -> Any:
        """Return the secret itself."""
        return {OPAQUE: type_name(type(value)), "secret": self.pack(value.get_secret_value())}

    def opaque(self, value: Any) -> Any:
        """Return what stands for this value and no other."""
        packed = super().opaque(value)
        if "state" not in packed:
            return self._as_itself(value, packed)
        hidden = _hidden_digest(value)
        if hidden is None:
            return packed
        self.unknown = True  # what the log has of it does not say all
        return packed | {"hidden": hidden}

    def lost(self, value: Any) -> Any:
        """Return what stands for this value and no other."""
        return self._as_itself(value, super().lost(value))

    def _as_itself(self, value: Any, packed: dict[str, Any]) -> dict[str, Any]:
        self.unknown = True
        return packed | {"object": _token(value)}


class ShowingPacker(ArgumentPacker):
    """Packs arguments for who must approve a call: what is only digested says of itself what it is."""

    def __init__(self, clean: Cleaner | None = None) -> None:
        super().__init__(clean)
        self._depth = 0
        self._left = _MOST_SHOWN

    def opaque(self, value: Any) -> Any:
        """Return what stands for a value that cannot be stored, with its text, or else its attributes."""
        packed = {OPAQUE: type_name(type(value))} if self._depth else super().opaque(value)
        return packed if (shown := self._shown(value)) is None else packed | {"shown": shown}

    def lost(self, value: Any) -> Any:
        """Return what stands for an argument that is nested too deeply, or holds itself, with its text."""
        packed = super().lost(value)
        return packed if (shown := self._shown(value)) is None else packed | {"shown": shown}

    def _shown(self, value: Any) -> Any:
        cls: Any = type(value)
        self._left -= 1
        self._depth += 1
        try:
            if cls.__str__ is not object.__str__ or cls.__repr__ is not object.__repr__:
                text = _ADDRESS.sub("", str(value))
                return clean_text(text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…")
            if self._left < 0 or self._depth > _DEEPEST_SHOWN:
                return None
            return self.mapping(objects.state(value)) or None
        except Exception:  # noqa: BLE001 - a user's object may raise anything
            return None
        finally:
            self._depth -= 1


_PROCESS_KEY: Final = os.urandom(32)
_tokens: Final = itertools.count(1)
_living: Final[dict[int, tuple[weakref.ref[Any], int]]] = {}


def concealed(payload: bytes) -> bytes:
    """Return a digest that only this process can make: no reader of the log can guess its payload."""
    return hmac.digest(_PROCESS_KEY, payload, sha256)


def _token(value: Any) -> int:
    """Return a number that this object has and no other one ever gets."""
    known = _living.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    at = id(value)

    def forget(reference: weakref.ref[Any]) -> None:
        if (known := _living.get(at)) is not None and known[0] is reference:
            del _living[at]

    try:
        entry = weakref.ref(value, forget), next(_tokens)
    except TypeError:  # where it takes no weak references, it is not even equal to itself
        return next(_tokens)
    kept = _living.setdefault(at, entry)  # of several threads, the first has given it its number
    if kept[0]() is not value:
        kept = _living[at] = entry
    return kept[1]


def state_digest(value: Any, clean: Cleaner | None = None) -> str | None:
    """Return a digest of all that an object holds, the same in every process; None where there is none."""
    try:
        packed = encode(_StatePacker(clean).opaque(value))
    except Exception:  # noqa: BLE001 - a user's state may raise anything, or say nothing
        return None
    return sha256(packed if clean is None else clean(packed)).hexdigest()


def _hidden_digest(value: Any) -> str | None:
    """Return a digest of an object with what its class keeps out of copies; None where that is nothing."""
    packer = _StatePacker(None, whole=True)
    try:
        packed = encode(packer.opaque(value))
    except Exception:  # noqa: BLE001 - as above
        return None
    return sha256(packed).hexdigest() if packer.found_hidden else None


#: What an attribute may hold and tell nothing.
_EMPTY: Final[tuple[Any, ...]] = (None, False, 0, "", [], {})


class _StatePacker(ArgumentPacker):
    """Packs an object by what `copy` would make a copy of, without making one.

    `whole`: with the attributes that the class keeps out of a copy, as far as they can be packed.
    """

    def __init__(self, clean: Cleaner | None, *, whole: bool = False) -> None:
        super().__init__(clean)
        self._whole = whole
        self.found_hidden = False
        self._left = _MOST_PARTS
        self._bytes_left = _MOST_BYTES
        self._depth = 0

    def pack(self, value: Any) -> Any:
        self._left -= 1
        self._depth += 1
        if self._left < 0 or self._depth > _DEEPEST:
            raise NotExactError("too much")
        try:
            return super().pack(value)
        finally:
            self._depth -= 1

    def opaque(self, value: Any) -> Any:
        name = home_name(type(value))
        if isinstance(value, _CODE):
            raise NotExactError(name)  # code that has no name, such as a lambda
        if (held := self._buffer(value)) is not None:
            packed = {OPAQUE: name, "of": held}
            fields = objects.state(value)  # such as the mask of a masked array
            return packed | {"fields": self.mapping(fields)} if fields else packed
        reduced = value.__reduce_ex__(4)
        if isinstance(reduced, str):
            raise NotExactError(name)
        reduction: list[Any] = [*reduced, None, None, None]
        make, arguments, state, items, pairs = reduction[:5]
        if getattr(make, "__module__", None) != "copyreg":
            arguments = (make, *arguments)
        elif len(arguments) == 1 and state is None and items is None and pairs is None:
            raise NotExactError(f"{name} holds nothing that would tell one from another")
        held = (arguments, state, *(() if part is None else tuple(part) for part in (items, pairs)))
        packed = {OPAQUE: name, "of": [self.pack(part) for part in held]}
        hidden = self._hidden(value, state) if self._whole else {}
        return packed | {"hidden": hidden} if hidden else packed

    def _hidden(self, value: Any, shown: Any) -> dict[str, Any]:
        """Return the attributes that are not in the state of a copy."""
        names = {name for part in (shown if type(shown) is tuple else (shown,)) for name in part or ()}
        found: dict[str, Any] = {}
        for name, part in objects.state(value).items():
            with contextlib.suppress(Exception):  # a lock, a connection
                if name not in names and (packed := self.pack(part)) not in _EMPTY:
                    found[name] = packed
        self.found_hidden = self.found_hidden or bool(found)
        return found

    def _buffer(self, value: Any) -> Any:
        """Return what numpy's arrays and scalars, and whatever else lies in memory, consist of."""
        try:
            view = memoryview(value)
        except (TypeError, ValueError, BufferError):
            return None
        with view:
            self._bytes_left -= view.nbytes
            if "O" in view.format or self._bytes_left < 0:
                return None
            content = view if view.c_contiguous else view.tobytes()
            return [view.format, list(view.shape or ()), sha256(content).hexdigest()]
