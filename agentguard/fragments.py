"""Parts of arguments that come again with every call, such as the messages of a conversation.

Each is encoded and searched for secrets once, so that a call costs what is new in it.
"""

from __future__ import annotations

from typing import Any, Protocol

from agentguard._encoding import encode_argument


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

    __slots__ = ("clean", "json")

    def __init__(self, value: Any) -> None:
        self.json = encode_argument(value)
        #: The last redactor that looked at it, and what it left; together, since threads share a fragment.
        self.clean: tuple[Cleaner | None, bytes] = (None, self.json)

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
