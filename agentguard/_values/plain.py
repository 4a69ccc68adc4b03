"""Which values JSON gives back exactly: None, bool, int, finite float, str, and lists and dicts of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

#: How the key begins of an object that stands for something JSON does not know.
PREFIX: Final = "agentguard:"

#: The encoder refuses what of these it cannot write: a lone surrogate, an int of thousands of digits.
_ALWAYS: Final = frozenset((type(None), bool, int, str))
_TEXT: Final = frozenset((str,))
_FLOAT: Final = frozenset((float,))


def is_plain(value: Any) -> bool:
    """Return whether a value is nothing but JSON, by exact types; keys with our prefix are not looked for.

    Raises:
        RecursionError: it is nested too deeply, or holds itself.
    """
    cls = type(value)
    if cls in _ALWAYS:
        return True
    if cls is float:
        return math.isfinite(value)
    if cls is list:
        return _are_plain(value)
    if cls is dict:
        return _TEXT.issuperset(map(type, value)) and _are_plain(value.values())
    return False


def _are_plain(values: Iterable[Any]) -> bool:
    """Look at a container's types at once, and at single values only where those do not say enough."""
    types = set(map(type, values))
    if types <= _ALWAYS:
        return True
    if types == _FLOAT:
        return all(map(math.isfinite, values))
    return all(map(is_plain, values))
