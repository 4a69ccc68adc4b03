"""What is kept of a generator: its items in order, what was sent in, and what it returned, up to a size.

The payload of its outcome is the list of its items, or what its codec makes of them.  Where there is
more to keep, it is an object that holds that beside them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from agentguard._encoding import decode, encode_one, encode_value, type_name
from agentguard.steps import exceptions, values
from agentguard.steps.capture import Keeper
from agentguard.steps.model import StepSpec

_encode = msgspec.json.Encoder().encode
_TOO_LARGE = "more than max_items_bytes="


class Sent(NamedTuple):
    """What was sent in to get an item: `next`, `send` or `throw`, and the value, encoded and redacted."""

    how: str = "next"
    value: bytes = b"null"

    def __str__(self) -> str:
        return "next()" if self.how == "next" else f"{self.how}({self.value.decode(errors='replace')})"


class _Whole(msgspec.Struct):
    """The payload where there is more than items; those of a codec are in base64."""

    items: msgspec.Raw
    #: The number of the item that it was sent for, how, and what.
    sent: list[tuple[int, str, msgspec.Raw]] = []
    returned: msgspec.Raw = msgspec.Raw(b"null")


_whole = msgspec.json.Decoder(_Whole).decode


class Items:
    """What one call of a generator makes and is given, for the payload of its outcome."""

    __slots__ = (
        "_annotated",
        "_keeper",
        "_kept",
        "_limit",
        "_parts",
        "_plain",
        "_reason",
        "_returned",
        "_sent",
        "_size",
        "_spec",
        "_trusted",
        "_yields",
        "count",
    )

    def __init__(self, spec: StepSpec, keeper: Keeper) -> None:
        self._spec = spec
        self._keeper = keeper
        self._yields = values.item_type(spec.returns)
        self._trusted = values.kept_by(self._yields)
        #: A codec gets all items at once and may keep less of them, such as the last one.
        self._kept: list[Any] = []
        self._parts: list[bytes] = []
        self._limit = spec.max_items_bytes
        self._size = 2
        self._reason: str | None = None
        #: Whether some items come back only without the annotation, and whether some may need it.
        self._plain = self._annotated = False
        self._sent: list[tuple[int, str, msgspec.Raw]] = []
        self._returned: tuple[bytes, str] | None = None
        self.count = 0

    def add(self, item: Any) -> None:
        """Take one item."""
        self.count += 1
        if self._spec.codec is not None:
            self._kept.append(item)
            return
        if self._reason is not None:
            return
        part = encode_value(item)
        if part is None:
            self._lose(f"an item of type {type(item).__name__} cannot be encoded")
        elif (lost := self._loss(item, part)) is not None:
            self._lose(lost)
        elif self._fits(part):
            self._parts.append(part)

    def _loss(self, item: Any, part: bytes) -> str | None:
        if type(item) in self._trusted and part != b"null":
            return None
        lost = values.loss(item, part, self._yields)
        if lost is None:
            self._annotated = True
        elif values.is_scalar(item):
            self._plain = True
            lost = None
        if self._plain and self._annotated:
            return "some items come back only through the annotation, and some only without it"
        return lost

    def sent(self, sent: Sent) -> None:
        """Take what is sent in to get the next item, before the body sees it."""
        if self._reason is None and sent != NOTHING and self._fits(sent.value):
            self._sent.append((self.count + 1, sent.how, msgspec.Raw(sent.value)))

    def returned(self, value: Any) -> None:
        """Take what the generator returned."""
        if value is None or self._reason is not None:
            return
        part = encode_value(value)
        if part is None:
            self._lose(f"what it returned, of type {type_name(type(value))}, cannot be encoded")
        elif values.is_scalar(value):
            self._keep_returned(part, "plain")
        elif (lost := values.loss(value, part, values.return_type(self._spec.returns))) is not None:
            self._lose(f"what it returned: {lost}")
        else:
            self._keep_returned(part, "annotated")

    def _keep_returned(self, part: bytes, how: str) -> None:
        if self._fits(part):
            self._returned = part, how

    def _fits(self, part: bytes) -> bool:
        self._size += len(part) + 1
        if self._size > self._limit:
            self._lose(f"{_TOO_LARGE}{self._limit}")
        return self._reason is None

    def _lose(self, reason: str) -> None:
        self._reason = reason
        self._parts.clear()
        self._sent.clear()

    def outcome(self) -> tuple[bytes | None, dict[str, Any]]:
        """The payload of the generator's outcome, and what its event says of it."""
        made = self._items()
        facts: dict[str, Any] = {"items": self.count, "sent": len(self._sent)}
        whole = self._keeper.redacted(made)
        clean = whole is made
        if self._plain:
            facts["plain"] = True
        if self._sent or self._returned is not None:
            coded = self._spec.codec is not None
            parts = _Whole(msgspec.Raw(_encode(whole) if coded else whole), self._sent)
            if self._returned is not None:
                returned = self._keeper.redacted(self._returned[0])
                clean = clean and returned is self._returned[0]
                parts.returned = msgspec.Raw(returned)
                facts["returned"] = self._returned[1]
            whole = _encode(parts)
        kept, data = self._keeper.kept(whole, self._reason if clean else "redacted")
        return kept, data | facts

    def _items(self) -> bytes:
        """The items as JSON, or as the codec puts them."""
        if self._spec.codec is None:
            return b"[" + b",".join(self._parts) + b"]"
        try:
            encoded = values.by_codec(self._spec.codec, self._kept)
        except Exception as error:  # noqa: BLE001 - a stranger's codec may raise anything
            self._lose(f"its codec failed: {type_name(type(error))}")
            return b"[]"
        if len(encoded) > self._limit:
            self._lose(f"{_TOO_LARGE}{self._limit}")
            return b"[]"
        return encoded


NOTHING = Sent()


def sent_value(keeper: Keeper, value: Any) -> Sent:
    """What `send(value)` puts on record."""
    return NOTHING if value is None else Sent("send", keeper.redacted(encode_one(value)))


def thrown(keeper: Keeper, error: Any) -> Sent:
    """What `throw(error)` puts on record: an exception, or a class of them, by type and message."""
    if isinstance(error, type):
        return Sent("throw", encode_one({"type": type_name(error)}))
    kept = exceptions.keep(error, keeper.redactor)
    return Sent("throw", encode_one({name: kept[name] for name in ("type", "message")}))


class Recorded(NamedTuple):
    """A generator's payload, brought back; `sent` is by item, None where it is not known."""

    items: list[Any]
    sent: dict[int, Sent] | None
    returned: Any


def recorded(spec: StepSpec, payload: bytes, data: dict[str, Any]) -> Recorded:
    """What `Items.outcome` gave, brought back."""
    if not data.get("sent") and "returned" not in data:
        items = _restored(spec, payload, data)
        return Recorded(items, {} if "sent" in data else None, None)
    whole = _whole(payload)
    part = bytes(whole.items)
    if spec.codec is not None:
        part = msgspec.json.decode(part, type=bytes)
    sent = {number: Sent(how, bytes(value)) for number, how, value in whole.sent}
    annotated = data.get("returned") == "annotated"
    kind = values.return_type(spec.returns) if annotated else None
    return Recorded(_restored(spec, part, data), sent, values.restore(bytes(whole.returned), kind))


def _restored(spec: StepSpec, payload: bytes, data: dict[str, Any]) -> list[Any]:
    if spec.codec is not None:
        return list(spec.codec.decode(payload))
    kind = None if data.get("plain") else values.item_type(spec.returns)
    if kind is None:
        return list(decode(payload))
    return list(values.restore(payload, list[kind]))  # type: ignore[valid-type]
