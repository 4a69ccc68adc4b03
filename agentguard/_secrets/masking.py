"""Secrets taken out of a text, by their shapes and by the names that stand before them."""

from __future__ import annotations

import base64
import binascii
import functools
import re
from typing import Final

from agentguard._secrets import MASK
from agentguard._secrets.names import BUILT_IN, Names, looks_random
from agentguard._secrets.shapes import ANY

#: A name and its value: JSON or a dict in a string (in another string, with backslashes), the query of a
#: URL, an XML element, an option on a command line, and an assignment or a header.
_PAIRS: Final = (
    r"""(?P<open>\\*["'])(?P<key>[\w .-]{2,64})(?P=open)\s*:\s*"""
    r"""(?P<quote>\\*["'])(?P<text>(?:(?!(?P=quote))(?:\\.|.))+)"""
    r"""|[?&](?P<field>[\w.-]{2,64})=(?P<query>[^&\s"'#<>]+)"""
    r"""|<(?P<tag>[\w.-]{2,64})>(?P<element>[^<>]+)(?=</(?P=tag)>)"""
    r"""|(?<![\w-])--(?P<option>[\w-]{2,64})(?:=|[ ]+)(?P<argument>[^\s"'=-][^\s"']*)"""
    r"""|(?P<line>^[ \t-]*)?(?<![\w.?&-])(?P<name>[\w.-]{0,60}?(?i:NAMES))(?P<sign>[ ]?[:=][ ]?)"""
    r"""(?:(?P<mark>["'`])(?P<quoted>[^\n]+?)(?P=mark)|(?P<bare>[^\s"'`;&,]+)(?=(?P<rest>[^\n]*)))"""
)
_VALUES: Final = {"key": "text", "field": "query", "tag": "element", "option": "argument"}
#: What stands for a value and is none: `${TOKEN}`, `<your key>`, `%s`, `xxxx`, and words of JSON and Python.
_PLACEHOLDER: Final = re.compile(
    r"(?i)[$<{%@\[(].*|x{3,}|\.{3}.*|\*+|none|null|nil|true|false|undefined|required|optional|str|string|text|int|bytes"
)
#: A name in a program, called or not.
_CODE: Final = re.compile(r"[A-Za-z_]+(?:\.[A-Za-z_]\w*)*(?:[\[(].*|[):\]}]*)|[A-Za-z_]\w*[.(\[].*")


@functools.lru_cache(maxsize=64)
def _pairs(names: Names) -> re.Pattern[str]:
    """Return the expression for such names; of other assignments nothing is to be consumed."""
    spelt = {r"[\W_]?".join(map(re.escape, words)) for words in names.words}
    union = "|".join(sorted(spelt, key=len, reverse=True))
    return re.compile(_PAIRS.replace("NAMES", union), re.DOTALL | re.MULTILINE)


_HEADERS: Final = frozenset(("authorization", "cookie", "set-cookie"))


def mask_text(text: str, names: Names = BUILT_IN) -> str:
    """Return a text without the secrets in it; the same object where there is none.

    Example:
        >>> mask_text("login failed for postgres://ann:hunter2@db/app")
        'login failed for postgres://ann:**********@db/app'
        >>> mask_text("DB_PASSWORD=hunter2")
        'DB_PASSWORD=**********'
    """

    def pair(found: re.Match[str]) -> str:
        span = _secret_value(found, names)
        if span is None:
            return found[0]
        start, end = (at - found.start() for at in span)
        return found[0][:start] + MASK + found[0][end:]

    masked = _pairs(names).sub(pair, ANY.sub(_shape, text))
    return text if masked == text else masked


def _shape(found: re.Match[str]) -> str:
    if found["basic"] is not None and not _is_basic(found["basic"]):
        return found[0]
    return (found["user"] or found["hook"] or found["field"] or "") + MASK


def _is_basic(text: str) -> bool:
    """Return whether it is `user:password` in base64, and not a word after "basic"."""
    try:
        return b":" in base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return False


def _secret_value(found: re.Match[str], names: Names) -> tuple[int, int] | None:
    """Return where the secret of a pair is; None where there is none."""
    for name, value in _VALUES.items():
        if found[name] is not None:
            return found.span(value) if names.hide(found[name], found[value]) else None
    return _assigned(found, names)


def _assigned(found: re.Match[str], names: Names) -> tuple[int, int] | None:
    name, sign = found["name"], found["sign"]
    if not names.match(name):
        return None
    if found["quoted"] is not None:
        value = found["quoted"]
        if MASK in value or _PLACEHOLDER.fullmatch(value) or not names.hide(name, value):
            return None
        return found.span("quoted")
    value, rest = found["bare"], found["rest"]
    if ":" in sign:
        whole_line = found["line"] is not None and " " in sign
        if whole_line and name.lower() in _HEADERS and MASK not in value + rest:
            return found.start("bare"), found.end("rest")
        if not (whole_line and not rest.strip()) and not looks_random(value):
            return None  # prose: "the token: see below"
    elif _CODE.fullmatch(value) and not name.isupper() and not (sign == "=" and rest.startswith(";")):
        return None  # `password=password`; not `Password=word;` of a connection string
    if MASK in value or _PLACEHOLDER.fullmatch(value) or not names.hide(name, value):
        return None
    return found.span("bare")
