"""Arguments put together from fragments: what was encoded and searched for secrets before is not again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from agentguard._encoding import clean_text, encode_argument, encode_call
from agentguard.fragments import JsonFragment, JsonFragments
from agentguard.steps.redaction import Redactor

_KINDS = frozenset((JsonFragment, JsonFragments))


class FragmentEncoder:
    """Encodes the arguments of one step's calls from their fragments."""

    __slots__ = ("_before", "_call", "_labels", "_parameters", "_redactor")

    def __init__(self, redactor: Redactor | None, parameters: Sequence[str]) -> None:
        self._redactor = redactor
        self._parameters = parameters
        #: The last fragments, and their JSON without the end of the list; together, as threads come here.
        self._before: tuple[list[JsonFragment], bytes] = [], b"["
        #: Names of keyword arguments as JSON.
        self._labels: dict[str, bytes] = {}
        #: What takes secrets out of the whole, where that cannot be done one by one.
        self._call: Callable[[bytes], bytes] | None = None
        if redactor is not None and not redactor.sees_values_alone(parameters):
            self._call = redactor.of_calls(parameters)

    def join(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes | None:
        """Return arguments as JSON `[[...], {...}]` without secrets; None where none is a fragment."""
        if _KINDS.isdisjoint(map(type, args)) and _KINDS.isdisjoint(map(type, kwargs.values())):
            return None
        labels = self._labels
        if not kwargs.keys() <= labels.keys():
            self._label(kwargs)
        if self._call is not None:
            payload = encode_call([_raw(value) for value in args], {k: _raw(v) for k, v in kwargs.items()})
            return self._call(payload)
        positional = b",".join([self._json(value) for value in args])
        named = b",".join([labels[name] + self._json(value) for name, value in kwargs.items()])
        return b"[[" + positional + b"],{" + named + b"}]"

    def _label(self, names: Iterable[str]) -> None:
        redactor = self._redactor
        if redactor is not None and not redactor.sees_values_alone(names):
            self._call = redactor.of_calls(self._parameters)
        for name in names:
            self._labels[name] = encode_argument(clean_text(name)) + b":"

    def _json(self, value: Any) -> bytes:
        redactor = self._redactor
        if type(value) is JsonFragments:
            # Most often it is the conversation of the call before, and more.
            before, joined = self._before
            if value[: len(before)] != before:
                before, joined = [], b"["
            new = b",".join([fragment.without_secrets(redactor) for fragment in value[len(before) :]])
            joined += b"," + new if before and new else new
            self._before = value[:], joined
            return joined + b"]"
        fragment = value if type(value) is JsonFragment else JsonFragment(value)
        return fragment.without_secrets(redactor)


def _raw(value: Any) -> Any:
    if isinstance(value, JsonFragment):
        return msgspec.Raw(value.json)
    return [msgspec.Raw(item.json) for item in value] if isinstance(value, JsonFragments) else value
