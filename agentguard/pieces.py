"""Parts of arguments that come again with every call, such as the messages of a conversation.

Each is encoded and searched for secrets once, so that a call costs what is new in it.
"""

from __future__ import annotations

from typing import Any, Protocol

from agentguard._encoding import encode_one


class Cleaner(Protocol):
    """What takes secrets out of JSON."""

    def value(self, payload: bytes) -> bytes:
        """The JSON without its secrets."""
        ...


class Piece:
    """A value as it goes on record: an argument of a step of kind `llm`, or an item of `Pieces`.

    Example:
        >>> Piece({"type": "human", "content": "Hi"}).json
        b'{"type":"human","content":"Hi"}'
    """

    __slots__ = ("clean", "json")

    def __init__(self, value: Any) -> None:
        self.json = encode_one(value)
        #: The last redactor that looked at it, and what it left; together, since threads share a piece.
        self.clean: tuple[Cleaner | None, bytes] = (None, self.json)

    def without_secrets(self, redactor: Cleaner | None) -> bytes:
        """The JSON without its secrets."""
        known = self.clean
        if known[0] is redactor:
            return known[1]
        clean = self.json if redactor is None else redactor.value(self.json)
        self.clean = (redactor, clean)
        return clean


class Pieces(list[Piece]):
    """A list that is an argument of a step of kind `llm`, by its items: mostly the messages.

    Example:
        >>> from agentguard import Guard
        >>> said = Pieces()
        >>> with Guard.in_memory() as guard, guard.run("chat") as run:
        ...     for text in ("Hi", "How are you?"):
        ...         said.append(Piece(text))
        ...         answer = run.apply("chat", lambda messages: "Fine.", (said,), kind="llm")
        >>> answer
        'Fine.'
    """
