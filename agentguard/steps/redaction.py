"""Taking secrets out of captured payloads: before they are stored, digested or compared.

A payload without a secret costs two searches over its bytes, and comes back as the object that it
was.  Only where something may be found is it decoded, masked and encoded again.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from agentguard._encoding import decode, type_name
from agentguard._loading import LOADING
from agentguard._secrets import MASK
from agentguard._secrets.names import Names
from agentguard._secrets.search import search_for

Rule = Callable[[str, object], object]
_log = logging.getLogger("agentguard")
_encode = msgspec.json.Encoder().encode


class Redactor:
    """Masks secrets by name and by shape, and what a rule of the user's own changes.

    The rule is called as `rule(name, value)` for each parameter, each value of a mapping and each
    item of a list, from the outside in; items have the name of their list, and a result itself has
    the empty one.  What it returns takes the value's place.

    Example:
        >>> redactor = Redactor(["ssn"])
        >>> redactor.value(b'{"ssn":"078-05-1120","max_tokens":5}')
        b'{"ssn":"**********","max_tokens":5}'
        >>> redactor.call(b'[["ann","hunter2"],{}]', ("user", "password"))
        b'[["ann","**********"],{}]'
    """

    __slots__ = ("_names", "_rule", "_search", "_shortest", "_step")

    def __init__(self, names: Iterable[str] = (), rule: Rule | None = None) -> None:
        self._names = Names(names)
        self._rule = rule
        #: Which step it looks at, to be said where its rule raises.
        self._step = ""
        self._search = search_for(self._names, rule=rule is not None)
        #: Nothing shorter can hold a secret: `{"pwd":1}`.
        self._shortest = len('{"":1}') + self._names.shortest if rule is None else 0

    def for_step(self, name: str) -> Redactor:
        """Return the redactor for one step, which names it where its rule raises."""
        if self._rule is None:
            return self
        named = copy.copy(self)
        named._step = name
        return named

    def call(self, payload: bytes, parameters: Sequence[str]) -> bytes:
        """The arguments of a call, `[[...], {...}]`, without their secrets."""
        return self.of_calls(parameters)(payload)

    def of_calls(self, parameters: Sequence[str]) -> Callable[[bytes], bytes]:
        """`call` for the calls of one function, given the names of its parameters."""
        mask = functools.partial(self._call, parameters=parameters)
        if any(map(self._names.match, parameters)):
            return lambda payload: _masked(payload, mask, [[MASK], {}])
        search, shortest = self._search, self._shortest

        def of_call(payload: bytes) -> bytes:
            if len(payload) < shortest or not search(payload):
                return payload
            return _masked(payload, mask, [[MASK], {}])

        return of_call

    def sees_values_alone(self, names: Iterable[str]) -> bool:
        """Whether arguments of these names may be looked at one by one: no rule, and no secret name."""
        return self._rule is None and not any(
            self._names.match(name) or _mask_text(name, self._names) is not name for name in names
        )

    def value(self, payload: bytes) -> bytes:
        """A result without its secrets; bytes of a codec that are no JSON are masked as text."""
        if len(payload) < self._shortest or not self._search(payload):
            return payload
        return _masked(payload, functools.partial(self._value, name=""), MASK)

    def plain(self, value: Any) -> Any:
        """Plain data of ours without its secrets, the rule not asked; the same object where there is none."""
        redactor = self if self._rule is None else BUILT_IN
        return redactor._value(value, name="") if redactor._search(_encode(value)) else value

    def text(self, text: str) -> str:
        """A message without its secrets."""
        return _mask_text(text, self._names)

    # --- values --------------------------------------------------------------------------------

    def _call(self, value: list[Any], parameters: Sequence[str]) -> list[Any]:
        args, kwargs = value
        names = (*parameters, *[""] * (len(args) - len(parameters)))
        new_args = _list(args, [self._named(name, arg) for name, arg in zip(names, args, strict=False)])
        new_kwargs = self._mapping(kwargs)
        return value if new_args is args and new_kwargs is kwargs else [new_args, new_kwargs]

    def _named(self, name: str, value: object, beside: Mapping[object, object] | None = None) -> object:
        """Return a value that has a name: masked whole, if that makes it a secret."""
        return MASK if self._names.hide(name, value, beside) else self._value(value, name)

    def _value(self, value: object, name: str) -> object:
        if self._rule is not None:
            value = self._by_rule(self._rule, name, value)
        if isinstance(value, str):
            return _mask_text(value, self._names)
        if isinstance(value, dict):
            return self._mapping(value)
        if isinstance(value, list):
            return _list(value, [self._value(item, name) for item in value])
        return value

    def _mapping(self, value: dict[object, object]) -> dict[object, object]:
        masked = {self._key(key): self._named(str(key), item, value) for key, item in value.items()}
        return value if all(masked.get(key, _GONE) is item for key, item in value.items()) else masked

    def _key(self, key: object) -> object:
        return _mask_text(key, self._names) if isinstance(key, str) else key

    def _by_rule(self, rule: Rule, name: str, value: object) -> object:
        try:
            changed = rule(name, value)
            if changed is not value:
                _encode(changed)
        except Exception as error:  # noqa: BLE001 - a user's rule may raise anything
            # It must neither let a secret through nor lose the outcome of a step that has happened.
            # No traceback either: its message may quote the value.
            whose = f" of the guarded step {self._step!r}" if self._step else ""
            kind = type_name(type(error))
            _log.error("redact=%s raised %s on %r; the value is masked", whose, kind, name)
            return MASK
        return changed


_GONE = object()


def _list(old: list[object], new: list[object]) -> list[object]:
    return old if all(a is b for a, b in zip(old, new, strict=True)) else new


def _mask_text(text: str, names: Names | None = None) -> str:
    """Mask a text; what does it is loaded when there is something to mask."""
    with LOADING:
        from agentguard._secrets.masking import mask_text  # noqa: PLC0415 - its expressions take milliseconds

    return mask_text(text) if names is None else mask_text(text, names)


def _masked(payload: bytes, mask: Callable[[Any], object], instead: object) -> bytes:
    """A payload masked, `instead` where it is nested too deeply to be looked through."""
    try:
        value = decode(payload)
        masked = mask(value)
        return payload if masked is value else _encode(masked)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _mask_text(payload.decode("latin-1")).encode("latin-1")
    except RecursionError:
        return _encode(instead)


BUILT_IN = Redactor()


@functools.lru_cache(maxsize=64)
def _with_names(names: tuple[str, ...]) -> Redactor:
    return Redactor(names)


def redactor(option: object) -> Redactor | Literal[False] | None:
    """What a user's `redact=` stands for; None leaves it to the guard, False switches it off.

    Raises:
        TypeError: it is neither a callable, nor names, nor a bool.
    """
    if option is None or option is False or isinstance(option, Redactor):
        return option
    if option is True:
        return BUILT_IN
    if callable(option):
        return Redactor(rule=option)
    names = (option,) if isinstance(option, str) else option
    if isinstance(names, Iterable):
        names = tuple(names)
        if all(isinstance(name, str) and any(c.isalnum() for c in name) for name in names):
            return _with_names(names)
    raise TypeError(
        f"redact must be a callable (name, value) -> value, names, or False to switch it off, not {option!r}"
    )
