"""Fields whose values are secret, by their names.

A name is secret if it ends in one of `SECRET_NAMES`, word by word and whatever its case: `password`,
`db_password`, `userPassword`, `X-Api-Key`; not `tokens`, `max_tokens` or `password_hint`.  `token` alone is
also a piece of text, a coin, or a place in a list: there the value decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

#: Names that mark their values as secret, also as the last words of a longer name.
SECRET_NAMES: Final = (
    "password",
    "passwords",
    "passwd",
    "pwd",
    "passphrase",
    "passcode",
    "secret",
    "secrets",
    "token",
    "jwt",
    "api key",
    "api keys",
    "access key",
    "account key",
    "private key",
    "secret key",
    "signing key",
    "encryption key",
    "subscription key",
    "ssh key",
    "authorization",
    "cookie",
    "cookies",
    "credential",
    "credentials",
)

#: Before "token", these words say that it is no secret: a place in a list, or a piece of text.
_HARMLESS_TOKENS: Final = re.compile(
    "next|previous|prev|page|pagination|paging|continuation|continue|cursor|sync|resume|marker|offset"
    "|per|prompt|completion|input|output|text|word|sub|top|new|raw|chosen|sampled"
    "|eos|bos|pad|unk|mask|sep|cls|stop|start|end|first|last|special"
)
#: Fields that stand beside `token` where it is a piece of a model's answer.
_OF_LOGPROBS: Final = frozenset(("logprob", "logprobs", "top_logprobs", "log_prob"))
#: What a credential looks like: no spaces, and letters mixed with digits, or long.
_CREDENTIAL: Final = re.compile(
    r"(?!0x[0-9A-Fa-f]{40}$)(?:(?=\S*[0-9])(?=\S*[A-Za-z])\S{6,}|[^\s.,;:!?()]{20,})$"
)

_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORDS = re.compile(r"[^\W_]+")


class Names:
    """The secret names: those of `SECRET_NAMES`, and more.

    Example:
        >>> names = Names(["ssn"])
        >>> [names.match(name) for name in ("clientSecret", "ssn", "max_tokens", "next_page_token")]
        [True, True, False, False]
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        more = tuple(more)
        self.words = tuple(_words(name) for name in (*SECRET_NAMES, *more))
        self._joined = frozenset("".join(words) for words in self.words)
        self._longest = max(len(words) for words in self.words)
        #: Whether the value decides of a field that is called `token` and no more.
        self._asks = ("token",) not in map(_words, more)
        #: How many characters the shortest of them has.
        self.shortest = min(map(len, self._joined))

    def match(self, name: str) -> bool:
        """Return whether a value of this name may be a secret."""
        words = _words(name)
        if len(words) > 1 and words[-1] == "token" and _HARMLESS_TOKENS.fullmatch(words[-2]):
            return False
        return any("".join(words[-count:]) in self._joined for count in range(1, self._longest + 1))

    def hide(self, name: str, value: Any, beside: Mapping[Any, Any] | None = None) -> bool:
        """Return whether this value of this name is a secret; `beside` are the fields of its object.

        None, booleans and empty texts never are.
        """
        if value is None or value == "" or isinstance(value, bool) or not self.match(name):
            return False
        if not self._asks or _words(name) != ("token",) or not isinstance(value, str):
            return True
        if beside is not None and not _OF_LOGPROBS.isdisjoint(beside):
            return False
        return looks_random(value)


def looks_random(value: str) -> bool:
    """Return whether a text looks like a credential, and not like a word, a coin or an address of one."""
    return _CREDENTIAL.match(value) is not None


def _words(name: str) -> tuple[str, ...]:
    return tuple(_WORDS.findall(_HUMPS.sub("_", name).lower()))


BUILT_IN: Final = Names()
