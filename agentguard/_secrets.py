"""What counts as a secret: names, and the shapes of well-known keys.  Pure text, no payloads here.

A name is secret if it ends in one of `SECRET_NAMES`, word by word and whatever its case: `password`,
`db_password`, `userPassword`, `X-Api-Key`; not `tokens`, `max_tokens` or `password_hint`.  A value is
secret if a part of it looks like one of `SHAPES`, wherever it stands; that part alone is masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

#: What stands in the place of a secret.
MASK: Final = "**********"

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
    "private key",
    "secret key",
    "signing key",
    "encryption key",
    "ssh key",
    "authorization",
    "cookie",
    "cookies",
    "credential",
    "credentials",
)

#: Before "token", these words say that it is no secret: a place in a list, or a piece of text.
_HARMLESS_TOKENS: Final = re.compile(
    "next|previous|prev|page|continuation|cursor|sync|resume|per|prompt|completion|input|output"
    "|eos|bos|pad|unk|mask|sep|cls|stop|start|end|first|last|special"
)

#: Twenty characters or more, or eight or more with a digit among them.
_RUN = r"(?:[A-Za-z0-9._~+/=-]{20,}|(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{8,})"

#: The shapes of keys: what they are, and how they look.
SHAPES: Final[dict[str, str]] = {
    "sk- keys (OpenAI, Anthropic and others)": (
        r"(?<![A-Za-z0-9])sk-(?:[A-Za-z0-9_-]{20,}|(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{8,})"
    ),
    "bearer tokens": r"(?<=[Bb]earer )" + _RUN,
    "AWS access key ids": r"(?<![A-Za-z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])",
    "GitHub tokens": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "GitLab tokens": r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{16,}",
    "Slack tokens": r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}",
    "Google API keys": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{30,}",
    "Hugging Face tokens": r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}",
    "Stripe keys": r"(?<![A-Za-z0-9])[sr]k_(?:live|test)_[A-Za-z0-9]{10,}",
    "npm tokens": r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{30,}",
    "JSON web tokens": r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*",
    "private keys in PEM": (
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----.*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY-----|\Z)"
    ),
    "passwords in URLs": r"(?<=://)(?P<user>[^\s/:@\"'<>]*:)[^\s/@\"'<>]+(?=@)",
}
_SHAPES = re.compile("|".join(SHAPES.values()), re.DOTALL)

#: Secrets by name inside a text: JSON or a Python dict in a string, and the query of a URL.
_PAIRS = re.compile(
    r"""(?P<open>["'])(?P<key>[\w .-]{2,64})(?P=open)\s*:\s*"""
    r"""(?P<quote>["'])(?P<text>(?:\\.|(?!(?P=quote)).)+)"""
    r"""|[?&](?P<field>[\w.-]{2,64})=(?P<query>[^&\s"'#<>]+)""",
    re.DOTALL,
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
        self.words = tuple(_words(name) for name in (*SECRET_NAMES, *more))
        self._joined = frozenset("".join(words) for words in self.words)
        self._longest = max(len(words) for words in self.words)
        #: How many characters the shortest of them has.
        self.shortest = min(map(len, self._joined))

    def match(self, name: str) -> bool:
        """Whether a value of this name is a secret."""
        words = _words(name)
        if len(words) > 1 and words[-1] == "token" and _HARMLESS_TOKENS.fullmatch(words[-2]):
            return False
        return any("".join(words[-count:]) in self._joined for count in range(1, self._longest + 1))


def _words(name: str) -> tuple[str, ...]:
    return tuple(_WORDS.findall(_HUMPS.sub("_", name).lower()))


_BUILT_IN = Names()


def mask_text(text: str, names: Names = _BUILT_IN) -> str:
    """A text without the secrets in it; the same object where there is none.

    Example:
        >>> mask_text("login failed for postgres://ann:hunter2@db/app")
        'login failed for postgres://ann:**********@db/app'
    """
    masked = _SHAPES.sub(_shape, text)

    def pair(found: re.Match[str]) -> str:
        name, group = (found["key"], "text") if found["key"] is not None else (found["field"], "query")
        if not names.match(name):
            return found[0]
        return found[0][: found.start(group) - found.start()] + MASK

    masked = _PAIRS.sub(pair, masked)
    return text if masked == text else masked


def _shape(found: re.Match[str]) -> str:
    return (found["user"] or "") + MASK


# --- finding out fast that there is nothing ------------------------------------------------------

#: What must stand in the bytes for one of `SHAPES` to be there, each looked for by a rare character.
_TRACES = (
    r"-(?:(?<=[^A-Za-z0-9]sk-)|(?<=glpat-)|(?<=xox[abeoprs]-)|----BEGIN )"
    r"|_(?:(?<=gh[pousr]_)|(?<=github_)pat_|(?<=hf_)|(?<=[sr]k_)(?:live|test)_|(?<=npm_))"
    r"|K(?<=AK)IA|S(?<=AS)IA|I(?<=AI)za|J(?<=eyJ)|B(?=earer )|b(?=earer )"
    r"|/(?<=:/)/[^\s/:@\"'<>]*:[^\s/@\"'<>]+@"
)


def finders(names: Names) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Two patterns for JSON text that has not a secret in it, if neither is found there.

    The first looks for keys, also of JSON in a string; the second for shapes, fields of URLs, and keys
    of Python dicts.
    They may find more than there is.  Names that are not ASCII make the first find every key.
    """
    spelt = sorted({text for words in names.words for text in ("".join(words), ".".join(words))})
    if not all(text.isascii() for text in spelt):
        return re.compile(rb'":'), re.compile(rf"{_TRACES}|=|':".encode())
    key, inner, quoted, field = (_behind(spelt, end) for end in ('":', r'\\":', "':", "="))
    return (
        re.compile(rf'":(?:{key}|(?<=\\":)(?:{inner}))'.encode()),
        re.compile(rf"{_TRACES}|={field}|':{quoted}".encode()),
    )


def _behind(spelt: list[str], end: str) -> str:
    """What looks back from `end`: at three characters first, which rules out most names at once."""
    depth = min(3, *map(len, spelt))
    classes = "".join(f"[{''.join(sorted({_both(text[at]) for text in spelt}))}]" for at in range(-depth, 0))
    by_last: dict[str, list[str]] = {}
    for text in spelt:
        by_last.setdefault(text[-1], []).append(text)
    tails = "|".join(
        f"(?<=[{_both(last)}]{end})(?:" + "|".join(f"(?<={_any_case(text)}{end})" for text in texts) + ")"
        for last, texts in by_last.items()
    )
    return f"(?<={classes}{end})(?:{tails})"


def _both(character: str) -> str:
    if character == ".":
        return "_. -"
    return character.lower() + character.upper() if character.isalpha() else re.escape(character)


def _any_case(text: str) -> str:
    return "".join("." if c == "." else f"[{_both(c)}]" if c.isalpha() else re.escape(c) for c in text)


def public_url(url: str) -> str:
    """A URL without user, password and options, of which `prefix` alone is nobody's secret."""
    parts = urlsplit(url)
    if not parts.scheme:
        return url
    options = urlencode([pair for pair in parse_qsl(parts.query) if pair[0] == "prefix"])
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return f"{shown}?{options}" if options else shown
