"""What is kept of a generator: its items in order, as the payload of its outcome, up to a size."""

from __future__ import annotations

from typing import Any

from agentguard._encoding import encode_value, type_name
from agentguard.steps import values


class Items:
    """The items of a generator as the payload of its outcome, up to a size."""

    __slots__ = ("codec", "count", "kept", "limit", "parts", "reason", "returns", "size")

    def __init__(self, limit: int, returns: Any, codec: Any) -> None:
        self.returns = returns
        #: A codec gets all items at once and may keep less of them, such as the last one.
        self.codec = codec
        self.kept: list[Any] = []
        self.parts: list[bytes] = []
        self.limit = limit
        self.size = 2
        self.count = 0
        self.reason: str | None = None

    def add(self, item: Any) -> None:
        """Take one item."""
        self.count += 1
        if self.codec is not None:
            self.kept.append(item)
            return
        if self.reason is not None:
            return
        part = encode_value(item)
        if part is None:
            self.reason = f"an item of type {type(item).__name__} cannot be encoded"
        elif (lost := values.loss(item, part, self.returns)) is not None:
            self.reason = lost
        elif self.size + len(part) + 1 > self.limit:
            self.reason = f"more than max_items_bytes={self.limit}"
        else:
            self.size += len(part) + 1
            self.parts.append(part)
            return
        self.parts.clear()

    def payload(self) -> bytes:
        """The items as JSON, or as the codec puts them; read `reason` after it."""
        if self.codec is None:
            return b"[" + b",".join(self.parts) + b"]"
        try:
            encoded = values.by_codec(self.codec, self.kept)
        except Exception as error:  # noqa: BLE001 - a stranger's codec may raise anything
            self.reason = f"its codec failed: {type_name(type(error))}"
            return b"[]"
        if len(encoded) > self.limit:
            self.reason = f"more than max_items_bytes={self.limit}"
            return b"[]"
        return encoded
