"""LiteLLM's answers as the log keeps them, and back."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litellm import EmbeddingResponse, ModelResponse, TextCompletionResponse
from litellm.types.utils import ModelResponseStream

_CLASSES: Final[dict[str, Any]] = {
    cls.__name__: cls
    for cls in (ModelResponse, ModelResponseStream, EmbeddingResponse, TextCompletionResponse)
}


class _Recorded(msgspec.Struct):
    """One answer, or chunk: its class, and its fields."""

    cls: str
    fields: dict[str, Any]


_ANSWER: Final = msgspec.json.Decoder(_Recorded)
_CHUNKS: Final = msgspec.json.Decoder(list[_Recorded])


class Opened(msgspec.Struct, frozen=True):
    """Yielded by the body of a stream once the request is sent."""


class AnswerCodec:
    """A whole answer."""

    def encode(self, value: Any) -> bytes:
        """Return the answer as JSON.

        Raises:
            TypeError: it is of a class that LiteLLM's functions are not known to return.
        """
        return msgspec.json.encode(_recorded(value))

    def decode(self, data: bytes) -> Any:
        """Return the answer again."""
        return _restored(_ANSWER.decode(data))


class StreamCodec:
    """A streamed answer: its chunks."""

    def encode(self, value: list[Any]) -> bytes:
        """Return the chunks as JSON."""
        return msgspec.json.encode([_recorded(chunk) for chunk in value if not isinstance(chunk, Opened)])

    def decode(self, data: bytes) -> list[Any]:
        """Return the chunks again, after the sign that the request is sent."""
        return [Opened(), *map(_restored, _CHUNKS.decode(data))]


def _recorded(value: Any) -> _Recorded:
    name = type(value).__name__
    if _CLASSES.get(name) is not type(value):
        raise TypeError(f"{name} is no answer that can be kept")
    return _Recorded(name, value.model_dump(mode="json", exclude_none=True))


def _restored(recorded: _Recorded) -> Any:
    return _CLASSES[recorded.cls](**recorded.fields)
