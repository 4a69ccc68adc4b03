"""What the SDKs of OpenAI and Anthropic receive while a framework calls them.

Frameworks count tokens in types of their own, and some drop what the bill depends on: the tier that a call
was served in, the hours that a cache keeps, searches.  The SDK still has it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final

import wrapt

from agentguard._loading import LOADING, load
from agentguard.budget.model_usage import ModelUsage
from agentguard.cost.provider import model_usage

#: The classes that make an answer, or a stream, of what was received; by SDK.
_PARSING: Final = {
    "openai": (("_response", "BaseAPIResponse"), ("_legacy_response", "LegacyAPIResponse")),
    "anthropic": (("_response", "BaseAPIResponse"), ("_legacy_response", "LegacyAPIResponse")),
}
_followed: set[str] = set()


class RawAnswers:
    """The answers that the SDKs receive in the blocks `with raw.here():`."""

    def __init__(self) -> None:
        self._answers: list[_Answer] = []

    def here(self) -> AbstractContextManager[None]:
        """Take in the answers to requests that are made in this block, and all of a stream that it opens."""
        return _Here(self)

    def completed(self, counted: ModelUsage) -> ModelUsage:
        """Return what a framework counted of one answer, with what the SDK received of it.

        Where several answers were received, nobody knows which of them it counted.
        """
        usage = self._usage()
        if usage is None:
            return counted
        return usage if usage.beside else counted.larger(usage)

    @property
    def told(self) -> bool:
        """Whether the usage of one answer was received."""
        return self._usage() is not None

    def _usage(self) -> ModelUsage | None:
        if not self._answers:
            return None
        told = [answer.usage for answer in self._answers if answer.usage is not None]
        return told[0] if len(told) == 1 else None

    def answer(self, sdk: str) -> _Answer:
        """Begin another answer."""
        made = _Answer(sdk)
        self._answers.append(made)
        return made


_HERE: ContextVar[RawAnswers | None] = ContextVar("agentguard_raw_answers", default=None)


class _Here(AbstractContextManager[None]):
    def __init__(self, raw: RawAnswers) -> None:
        self._raw = raw

    def __enter__(self) -> None:
        _follow()
        self._token = _HERE.set(self._raw)

    def __exit__(self, *exc: object) -> None:
        _HERE.reset(self._token)


class _Answer:
    def __init__(self, sdk: str) -> None:
        self._sdk = sdk
        self.usage: ModelUsage | None = None

    def saw(self, told: Any) -> None:
        holders = (told, getattr(told, "message", None), getattr(told, "response", None))
        if all(getattr(holder, "usage", None) is None for holder in holders):
            return
        try:
            counted = model_usage(told, provider=self._sdk)
        except (TypeError, ValueError):
            return  # a count that cannot be one: the framework's own is used
        if counted is not None:
            self.usage = counted if self.usage is None else self.usage.larger(counted)

    def items(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.saw(item)
            yield item

    async def items_async(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for item in items:
            self.saw(item)
            yield item


def _follow() -> None:
    """Follow the SDKs that are loaded by now."""
    for sdk in _PARSING.keys() - _followed:
        if sdk in sys.modules:
            with LOADING:
                if sdk not in _followed:
                    _follow_sdk(sdk)
                    _followed.add(sdk)


def _follow_sdk(sdk: str) -> None:
    def parse(wrapped: Any, response: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found, raw = wrapped(*args, **kwargs), _HERE.get()
        if raw is None:
            return found
        answer, items = raw.answer(sdk), getattr(found, "_iterator", None)
        if items is None:
            answer.saw(found)
        else:  # a stream, sync or async
            asynchronous = hasattr(items, "__anext__")
            found._iterator = (answer.items_async if asynchronous else answer.items)(items)
        return found

    for name, cls in _PARSING[sdk]:
        try:
            module = load(f"{sdk}.{name}")
            wrapt.wrap_function_wrapper(module, f"{cls}._parse", parse)
        except (ImportError, AttributeError):
            continue  # of another version
