"""Another process, with another hash seed: restores payloads that it reads and says what it got.

Each line in is a payload in base64; each line out is a JSON list: what was restored, as `description` has
it, and the payload of a call with it.
"""

from __future__ import annotations

import base64
import http  # noqa: F401 - a log imports nothing: the enum that a program hands out must be there
import json
import struct
import sys
from types import SimpleNamespace
from typing import Any

from agentguard._encoding import encode_call
from agentguard.steps import values


def description(value: Any) -> str:
    """Return text that is the same for two values exactly if a program cannot tell them apart."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is int:
        return hex(value)  # of any length
    if isinstance(value, float):
        return f"{name}({struct.pack('>d', value).hex()})"
    if isinstance(value, complex):
        return f"{name}({description(value.real)}, {description(value.imag)})"
    if isinstance(value, set | frozenset):
        return f"{name}({sorted(map(description, value))})"
    if isinstance(value, dict):
        inside = [(description(key), description(item)) for key, item in value.items()]
        return f"{name}({getattr(value, 'default_factory', '')}, {inside})"
    if kind is SimpleNamespace:
        return f"{name}({description(vars(value))})"
    if hasattr(value, "maxlen"):
        return f"{name}({value.maxlen}, {[description(item) for item in value]})"
    if isinstance(value, list | tuple):
        return f"{name}({[description(item) for item in value]})"
    if hasattr(value, "fold"):
        return f"{name}({value!r}, {value.fold}, {value.tzinfo!r})"
    return f"{name}({value!r}, {getattr(value, 'is_safe', '')})"


def main() -> None:
    for line in sys.stdin:
        value = values.restore(base64.b64decode(line))
        sys.stdout.write(json.dumps([description(value), encode_call((value,), {}).decode()]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
