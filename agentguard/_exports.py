"""Names of a package that are loaded from their files when they are first used.

A package whose `__init__` imported its own files would wait for them while whoever loads one of them waits
for the package: threads that import both at once would be refused with a deadlock.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from agentguard._loading import load


def exported(
    package: str, places: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package that gives names of its files.

    Args:
        package: the package's `__name__`.
        places: the names that each of its modules gives, by the module's full name.

    Example:
        >>> get, names = exported("agentguard.cost", {"agentguard.cost.usage": ("estimated_tokens",)})
        >>> get("estimated_tokens")("four words of text"), "estimated_tokens" in names()
        (6, True)
        >>> get("nothing")
        Traceback (most recent call last):
        AttributeError: module 'agentguard.cost' has no attribute 'nothing'
    """
    place_of = {name: module for module, names in places.items() for name in names}

    def get(name: str) -> Any:
        module = place_of.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(load(module), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *place_of})

    return get, names
