"""Arguments put together from fragments: what was encoded and searched for secrets before is not again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from agentguard._encoding import clean_text, encode_argument, encode_call
from agentguard._values.fingerprint import ArgumentPacker
from agentguard.events.conversations import START, Conversation, ConversationCall, Path
from agentguard.fragments import Digest, JsonFields, JsonFragment, JsonFragments
from agentguard.steps.redaction import Redactor

_KINDS = frozenset((JsonFragment, JsonFragments, JsonFields))


class _Said(NamedTuple):
    """A conversation as it was asked with last: its fragments, their JSON and their digests."""

    fragments: list[JsonFragment]
    messages: list[bytes]
    digests: list[str]


class FragmentEncoder:
    """Encodes the arguments of one step's calls from their fragments.

    Args:
        redactor: takes the secrets out.
        parameters: the names of the step's parameters.
        masking: False to leave the secrets in, and to take apart the same conversations all the same.
    """

    __slots__ = ("_alone", "_cleaner", "_parameters", "_parameters_alone", "_redactor", "_said")

    def __init__(self, redactor: Redactor | None, parameters: Sequence[str], *, masking: bool = True) -> None:
        self._redactor = redactor
        self._cleaner = redactor if masking else None
        self._parameters = parameters
        self._parameters_alone = redactor is None or redactor.sees_values_alone(parameters)
        #: Names as JSON, and whether what has one may be looked at by itself.
        self._alone: dict[str, tuple[bytes, bool]] = {}
        #: By place and digest.
        self._said: dict[tuple[Path, Digest], _Said] = {}

    def join(
        self,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        digest: Digest | None,
        packer: ArgumentPacker,
    ) -> bytes | None:
        """Return arguments as JSON `[[...], {...}]` without secrets; None where none is a fragment.

        With a digest, lists of fragments are taken out as conversations: this is a `ConversationCall` then.
        """
        if _KINDS.isdisjoint(map(type, args)) and _KINDS.isdisjoint(map(type, kwargs.values())):
            return None
        if not (self._parameters_alone and all(self._label(name)[1] for name in _names(args, kwargs))):
            payload = encode_call(list(map(_raw, args)), {k: _raw(v) for k, v in kwargs.items()}, packer)
            return payload if self._cleaner is None else self._cleaner.call(payload, self._parameters)
        found: list[Conversation] = []

        def encoded(value: object, path: Path) -> bytes:
            if type(value) is JsonFragments:
                if digest is None or not value:
                    return b"[%s]" % b",".join([item.without_secrets(self._cleaner) for item in value])
                found.append(self._conversation(value, path, digest))
                return b"null"
            if type(value) is JsonFields:
                return fields(value, path)
            if type(value) is JsonFragment:
                return value.without_secrets(self._cleaner)
            json = encode_argument(value, packer)
            return json if self._cleaner is None else self._cleaner.value(json)

        def fields(values: Mapping[str, object], path: Path) -> bytes:
            parts = [self._label(name)[0] + encoded(value, (*path, name)) for name, value in values.items()]
            return b"{%s}" % b",".join(parts)

        positional = b",".join([encoded(value, (0, index)) for index, value in enumerate(args)])
        call = b"[[%s],%s]" % (positional, fields(kwargs, (1,)))
        return ConversationCall.of(call, found) if found else call

    def _label(self, name: str) -> tuple[bytes, bool]:
        known = self._alone.get(name)
        if known is None:
            alone = self._redactor is None or self._redactor.sees_values_alone((name,))
            known = self._alone[name] = encode_argument(clean_text(name)) + b":", alone
        return known

    def _conversation(self, fragments: JsonFragments, path: Path, digest: Digest) -> Conversation:
        """Return a conversation: most often it is that of the call before, and more."""
        said = self._said.get((path, digest)) or _Said([], [], [])
        same = len(said.fragments)
        if fragments[:same] != said.fragments:
            pairs = enumerate(zip(said.fragments, fragments, strict=False))
            same = next((i for i, (a, b) in pairs if a is not b), min(same, len(fragments)))
        messages, digests = said.messages[:same], said.digests[:same]
        before = digests[-1] if digests else START
        for fragment in fragments[same:]:
            json = fragment.without_secrets(self._cleaner)
            before = fragment.digest_after(before, json, digest)
            messages.append(json)
            digests.append(before)
        said = _Said(list(fragments), messages, digests)
        self._said[path, digest] = said
        return Conversation(path, said.digests, said.messages)


def _names(args: Sequence[object], kwargs: Mapping[str, object]) -> Iterator[str]:
    yield from kwargs
    for value in (*args, *kwargs.values()):
        if type(value) is JsonFields:
            yield from value


def _raw(value: object) -> object:
    """Return a value for the encoder, with what is encoded already as it is."""
    if isinstance(value, JsonFragment):
        return msgspec.Raw(value.json)
    if isinstance(value, JsonFragments):
        return [msgspec.Raw(item.json) for item in value]
    return {name: _raw(field) for name, field in value.items()} if isinstance(value, JsonFields) else value
