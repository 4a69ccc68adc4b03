"""Parts of arguments that come again with every call, such as the messages of a conversation.

Each is encoded and searched for secrets once, and stored once in a run: a call costs what is new in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self
from weakref import WeakValueDictionary

from agentguard._encoding import encode_argument
from agentguard._values.plain import PREFIX, is_plain

#: The digest of bytes under a run's salt, in hex.
Digest = Callable[[bytes], str]


class Cleaner(Protocol):
    """What takes secrets out of JSON."""

    def value(self, payload: bytes) -> bytes:
        """Return the JSON without its secrets."""
        ...


class JsonFragment:
    """A value as it goes on record: an argument of a step of kind `llm`, or an item of `JsonFragments`.

    Example:
        >>> JsonFragment({"type": "human", "content": "Hi"}).json
        b'{"type":"human","content":"Hi"}'
    """

    __slots__ = ("__weakref__", "clean", "digested", "json")

    def __init__(self, value: Any) -> None:
        self.json = encode_argument(value)
        #: The last redactor that looked at it, and what it left; together, since threads share a fragment.
        self.clean: tuple[Cleaner | None, bytes] = (None, self.json)
        #: What it was last digested with, as JSON and after which message, and its digest.
        self.digested: tuple[Digest | None, bytes, str, str] = (None, b"", "", "")

    def without_secrets(self, redactor: Cleaner | None) -> bytes:
        """Return the JSON without its secrets."""
        if redactor is None:
            return self.json
        known = self.clean
        if known[0] is redactor:
            return known[1]
        clean = redactor.value(self.json)
        self.clean = (redactor, clean)
        return clean

    def digest_after(self, before: str, json: bytes, digest: Digest) -> str:
        """Return the digest of the message, given that of the one before it."""
        known = self.digested
        if known[0] is digest and known[1] is json and known[2] == before:
            return known[3]
        found = digest(before.encode() + json)
        self.digested = (digest, json, before, found)
        return found


#: The fragments in use, by their JSON.
_IN_USE: WeakValueDictionary[bytes, JsonFragment] = WeakValueDictionary()


class JsonFragments(list[JsonFragment]):
    """A list that is an argument of a step of kind `llm`, by its items: mostly the messages.

    Example:
        >>> from agentguard import Guard
        >>> said = JsonFragments()
        >>> with Guard.in_memory() as guard, guard.run("chat") as run:
        ...     for text in ("Hi", "How are you?"):
        ...         said.append(JsonFragment(text))
        ...         answer = run.apply("chat", lambda messages: "Fine.", (said,), kind="llm")
        >>> answer
        'Fine.'
    """

    @classmethod
    def of(cls, values: Iterable[Any]) -> Self:
        """Return values as fragments: those of a call before that is still in use, where they are the same.

        For who gets a conversation as new objects with each call, and cannot keep its fragments.

        Example:
            >>> before, now = JsonFragments.of(["Hi"]), JsonFragments.of(["Hi", "How are you?"])
            >>> now[0] is before[0]
            True
        """
        return cls([_shared(JsonFragment(value)) for value in values])


class JsonFields(dict[str, JsonFragment | JsonFragments]):
    """An object that is an argument of a step of kind `llm`, by its fields: mostly a request."""


def fragmented(request: dict[str, Any]) -> JsonFields | dict[str, Any]:
    """Return a request by its fields, lists of objects (the messages, the tools) by their items.

    A request that is more than JSON, such as one with objects of an SDK in it, is returned as it is.

    Example:
        >>> request = fragmented({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
        >>> type(request["messages"]).__name__
        'JsonFragments'
    """
    try:
        if not is_plain(request) or any(name.startswith(PREFIX) for name in request):
            return request
    except RecursionError:
        return request
    return JsonFields({name: _fragments(value) for name, value in request.items()})


def _fragments(value: Any) -> JsonFragment | JsonFragments:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return JsonFragments.of(value)
    return JsonFragment(value)


def _shared(fragment: JsonFragment) -> JsonFragment:
    return _IN_USE.setdefault(fragment.json, fragment)
