"""What is captured of a generator: its items in order, what was sent in, and what it returned, up to a size.

The payload of its outcome is the list of its items, or what its codec makes of them.  Where there is
more to keep, it is an object that holds that beside them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from agentguard import _typed
from agentguard._encoding import decode, encode_argument, type_name
from agentguard._values.packing import EXACT, encode
from agentguard.events.data import StepEnded
from agentguard.steps import exceptions, values
from agentguard.steps.capture import PayloadRecorder, RecordedPayload
from agentguard.steps.spec import StepSpec

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
_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_EXACT_KEY = f'"{EXACT}"'.encode()


class ItemCounter(Protocol):
    """Reads what items say of usage; given to `usage=` in place of a result."""

    def add(self, item: object) -> None:
        """Take in one item."""


def counter_of(spec: StepSpec) -> ItemCounter | None:
    """Return what reads the items of one call, where the step's `usage=` reads items."""
    counter = getattr(spec.usage, "counter", None)
    return None if counter is None else counter()


class Items:
    """What one call of a generator makes and is given, for the payload of its outcome."""

    __slots__ = (
        "_annotated",
        "_given",
        "_limit",
        "_parts",
        "_plain",
        "_reason",
        "_recorder",
        "_returned",
        "_sent",
        "_size",
        "_spec",
        "_trusted",
        "_yields",
        "count",
        "counter",
    )

    def __init__(self, spec: StepSpec, recorder: PayloadRecorder) -> None:
        self._spec = spec
        self._recorder = recorder
        self._yields = values.item_type(spec.returns)
        self._trusted = values.captured_by(self._yields)
        #: A codec gets all items at once and may keep less of them, such as the last one.
        self._given: list[object] = []
        self._parts: list[bytes] = []
        self._limit = spec.max_items_bytes
        self._size = 2
        self._reason: str | None = None
        #: Which items come back only without the annotation, and whether some may need it.
        self._plain: list[int] = []
        self._annotated = False
        self._sent: list[tuple[int, str, msgspec.Raw]] = []
        self._returned: tuple[bytes, str] | None = None
        self.count = 0
        #: Reads what the items say of usage, where `usage=` can.
        self.counter = counter_of(spec)

    def add(self, item: object) -> None:
        """Take one item."""
        self.count += 1
        if self.counter is not None:
            self.counter.add(item)
        if self._spec.codec is not None:
            self._given.append(item)
            return
        if self._reason is not None:
            return
        try:
            if type(item) in self._trusted and (payload := values.scalar(item)) is not None:
                captured = values.Captured(payload)
            else:
                captured = values.capture(item, self._yields)
        except Exception as error:  # noqa: BLE001 - a user's type; the body goes on
            captured = values.Captured(None, reason=f"capturing an item raised {type_name(type(error))}")
        if captured.payload is None or captured.reason is not None:
            self._lose(f"an item: {captured.reason}")
        elif self._fits(captured.payload):
            self._parts.append(captured.payload)
            if captured.plain:
                self._plain.append(len(self._parts) - 1)
            elif type(item) not in self._trusted:
                self._annotated = True

    def sent(self, sent: Sent) -> None:
        """Take what is sent in to get the next item, before the body sees it."""
        if self._reason is None and sent != NOTHING and self._fits(sent.value):
            self._sent.append((self.count + 1, sent.how, msgspec.Raw(sent.value)))

    def returned(self, value: object) -> None:
        """Take what the generator returned."""
        if value is None or self._reason is not None:
            return
        captured = values.capture(value, values.return_type(self._spec.returns))
        if captured.payload is None or captured.reason is not None:
            self._lose(f"what it returned: {captured.reason}")
        elif self._fits(captured.payload):
            self._returned = captured.payload, "plain" if captured.plain else "annotated"

    def _fits(self, part: bytes) -> bool:
        self._size += len(part) + 1
        if self._size > self._limit:
            self._lose(f"{_TOO_LARGE}{self._limit}")
        return self._reason is None

    def _lose(self, reason: str) -> None:
        self._reason = reason
        self._parts.clear()
        self._plain.clear()
        self._sent.clear()

    def outcome(self) -> RecordedPayload:
        """Return the payload of the generator's outcome, and what its event says of it."""
        made = self._items()
        facts: StepEnded = {"items": self.count, "sent": len(self._sent)}
        whole = self._recorder.redacted(made)
        clean = whole is made
        if self._plain and not self._annotated:
            facts["plain"] = True
        if self._sent or self._returned is not None:
            coded = self._spec.codec is not None
            parts = _Whole(msgspec.Raw(encode(whole) if coded else whole), self._sent)
            if self._returned is not None:
                returned = self._recorder.redacted(self._returned[0])
                clean = clean and returned is self._returned[0]
                parts.returned = msgspec.Raw(returned)
                facts["returned"] = self._returned[1]
            whole = encode(parts)
        payload, data = self._recorder.captured(whole, self._reason if clean else "redacted")
        return payload, data | facts

    def _items(self) -> bytes:
        """The items as JSON, or as the codec puts them."""
        if self._spec.codec is None:
            if self._annotated:
                for at in self._plain:
                    self._parts[at] = encode({EXACT: msgspec.Raw(self._parts[at])})
            return b"[" + b",".join(self._parts) + b"]"
        try:
            encoded = values.by_codec(self._spec.codec, self._given)
        except Exception as error:  # noqa: BLE001 - a user's codec may raise anything
            self._lose(f"its codec failed: {type_name(type(error))}")
            return b"[]"
        if len(encoded) > self._limit:
            self._lose(f"{_TOO_LARGE}{self._limit}")
            return b"[]"
        return encoded


NOTHING = Sent()


def sent_value(recorder: PayloadRecorder, value: object) -> Sent:
    """Return what `send(value)` puts on record."""
    return NOTHING if value is None else Sent("send", recorder.redacted(encode_argument(value)))


def thrown(recorder: PayloadRecorder, error: BaseException | type[BaseException]) -> Sent:
    """Return what `throw(error)` puts on record: an exception, or a class of them, by type and message."""
    if isinstance(error, type):
        return Sent("throw", encode_argument({"type": type_name(error)}))
    data = exceptions.capture(error, recorder.redactor)
    return Sent("throw", encode_argument({name: data[name] for name in ("type", "message")}))


class RestoredItems(NamedTuple):
    """A generator's payload, brought back; `sent` is by item, None where it is not known."""

    items: list[object]
    sent: dict[int, Sent] | None
    returned: object


def restored(spec: StepSpec, payload: bytes, data: StepEnded) -> RestoredItems:
    """What `Items.outcome` gave, brought back."""
    if not data.get("sent") and "returned" not in data:
        items = _restored(spec, payload, data)
        return RestoredItems(items, {} if "sent" in data else None, None)
    whole = _whole(payload)
    part = bytes(whole.items)
    if spec.codec is not None:
        part = _typed.decode(part, bytes)
    sent = {number: Sent(how, bytes(value)) for number, how, value in whole.sent}
    annotated = data.get("returned") == "annotated"
    kind = values.return_type(spec.returns) if annotated else None
    return RestoredItems(_restored(spec, part, data), sent, values.restore(bytes(whole.returned), kind))


def _restored(spec: StepSpec, payload: bytes, data: StepEnded) -> list[object]:
    if spec.codec is not None:
        return list(spec.codec.decode(payload))
    kind = None if data.get("plain") else values.item_type(spec.returns)
    if _EXACT_KEY in payload:
        return [values.restore(bytes(item), kind) for item in _raw_items(payload)]
    if kind is None:
        return list(decode(payload))
    return list(values.restore(payload, list[kind]))  # type: ignore[valid-type]
