"""Conversations in payloads: of the messages that come again with every call, each is stored once in a run.

The arguments of a call are `[[...], {...}]`.  Where they hold conversations, their payload has several lines:

    {"conversations":[[[0,0],"<digest>"]],"call":[[null,["search"]],{}]}
    <digest of the message before>{"type":"ai",...}
    <digest of the message before>{"type":"tool",...}

The first line is the call without its conversations, and where each belongs: its path in the call, and the
digest of its last message.  The digest in the event covers this line, so that equal calls have equal digests.
The other lines are the messages that the log did not hold yet.  The digest of a message is that of its line
under the run's salt; before the first message stands `START`.  So the last digest stands for the whole
conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Self

import msgspec

from agentguard.events.codec import Stored, digester
from agentguard.events.model import APPROVAL_REQUESTED, STEP_STARTED
from agentguard.fragments import Digest

#: Where a conversation belongs in a call: keys and indexes, from the outside in.
Path = tuple[int | str, ...]
#: What stands for the message before the first.
START: Final = "0" * 64
#: How such a payload begins; that of a result may, too.
HEAD: Final = b'{"conversations":['
_ASKING: Final = tuple(b'"type":"%s"' % kind.encode() for kind in (STEP_STARTED, APPROVAL_REQUESTED))


class ConversationError(ValueError):
    """Internal: a payload is not what its conversations say; the message says why."""


# --- writing -------------------------------------------------------------------------------------


class Conversation(NamedTuple):
    """A conversation of a call: its place, and each message's digest and JSON."""

    path: Path
    digests: Sequence[str]
    messages: Sequence[bytes]


class ConversationCall(bytes):
    """The first line of a payload, with the conversations that it names."""

    conversations: tuple[Conversation, ...]

    @classmethod
    def of(cls, call: bytes, conversations: Sequence[Conversation]) -> Self:
        """Return the line of a call whose conversations were replaced by null."""
        named = [(path, digests[-1]) for path, digests, _ in conversations]
        line = cls(b'{"conversations":%s,"call":%s}' % (_encode(named), call))
        line.conversations = tuple(conversations)
        return line

    def whole(self) -> bytes:
        """Return the call with its conversations in it."""
        call = _FIRST.decode(self).call
        for path, _, messages in self.conversations:
            call = _with(call, path, _list_of(messages))
        return bytes(call)


def apart(call: bytes, paths: Iterable[Path], digest: Digest) -> ConversationCall:
    """Return a whole call, `[[...], {...}]`, without the lists at some paths, as conversations of it."""
    rest, found = msgspec.Raw(call), []
    for path in paths:
        part = rest
        for at in path:
            part = _parts(part, at)[at]
        messages = list(map(bytes, _LIST.decode(part)))
        found.append(Conversation(path, chained(messages, digest), messages))
        rest = _with(rest, path, msgspec.Raw(b"null"))
    return ConversationCall.of(bytes(rest), found)


def chained(messages: Iterable[bytes], digest: Digest, before: str = START) -> list[str]:
    """Return the digests of messages that follow on one another.

    Example:
        >>> first, second = chained([b'"Hi"', b'"Hello"'], digester(b"salt"))
        >>> second in chained([b'"Hello"'], digester(b"salt"), first)
        True
    """
    digests = []
    for message in messages:
        before = digest(before.encode() + message)
        digests.append(before)
    return digests


class StoredMessages:
    """The messages that a run's log holds, as far as this process knows.  Its user holds the log's lock."""

    __slots__ = ("_digest", "_known")

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        # With a message, all before it are known.
        self._known: set[str] = {START}

    def payload(self, call: ConversationCall) -> bytes:
        """Return what is to be stored of a call: the messages of it that are new, too."""
        lines: list[bytes] = [call]
        for _, digests, messages in call.conversations:
            new = self._new(digests)
            if new < len(digests):
                before = (START, *digests)[new:-1]
                lines += [one.encode() + message for one, message in zip(before, messages[new:], strict=True)]
        return b"\n".join(lines)

    def add(self, call: ConversationCall) -> None:
        """Take note that the payload of a call is on record."""
        for _, digests, _ in call.conversations:
            self._known.update(digests[self._new(digests) :])

    def take_in(self, stored: Stored) -> None:
        """Take note of the messages in an event that was read."""
        if stored.payload is not None and has_conversations(stored.body, stored.payload):
            self._known.update(map(self._digest, stored.payload.split(b"\n")[1:]))

    def _new(self, digests: Sequence[str]) -> int:
        """Return the index of the first message that is not known."""
        index = len(digests)
        while index and digests[index - 1] not in self._known:
            index -= 1
        return index


# --- reading -------------------------------------------------------------------------------------


class _FirstLine(msgspec.Struct):
    conversations: list[tuple[Path, str]]
    call: msgspec.Raw


_encode = msgspec.json.Encoder().encode
_FIRST: Final = msgspec.json.Decoder(_FirstLine)
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ALTERED: Final = "a message of its conversation is not the one that was recorded"


class Messages:
    """The messages of a log that is read from its first event on, by their digests.

    Args:
        digest: that of the run's payloads.
        keep: whether the messages are kept, for `whole`; else only their digests are.
    """

    def __init__(self, digest: Digest, *, keep: bool = True) -> None:
        self._digest = digest
        self._keep = keep
        self._lines = {START: b""}

    def take_in(self, payload: bytes) -> bytes:
        """Take in the messages of a payload, and return its first line, which its event's digest covers.

        Raises:
            ConversationError: a message or a conversation is not what it should be.
        """
        first, *lines = payload.split(b"\n")
        ends = {end for _, end in _first(first).conversations}
        digests = list(map(self._digest, lines))
        for index, (line, digest) in enumerate(zip(lines, digests, strict=True)):
            before = _before(line)
            follows = before in self._lines
            is_used = digest in ends or digest in map(_before, lines[index + 1 : index + 2])
            if not (follows and is_used):
                raise ConversationError(_ALTERED)
            self._lines[digest] = line if self._keep else b""
        if not ends <= self._lines.keys():
            raise ConversationError(_ALTERED)
        return first

    def whole(self, payload: bytes) -> bytes:
        """Return the call of a payload that was taken in, with its conversations in it: `[[...], {...}]`.

        Raises:
            ConversationError: they are not there.
        """
        first = _first(payload.partition(b"\n")[0])
        call = first.call
        for path, end in first.conversations:
            messages = list(self._back_from(end))
            call = _with(call, path, _list_of(messages[::-1]))
        return bytes(call)

    def _back_from(self, digest: str) -> Iterator[bytes]:
        while digest != START:
            if digest not in self._lines:
                raise ConversationError(_ALTERED)
            line = self._lines[digest]
            yield line[len(START) :]
            digest = _before(line)


def _first(line: bytes) -> _FirstLine:
    try:
        return _FIRST.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConversationError("its conversations cannot be read") from error


def _before(line: bytes) -> str:
    return line[: len(START)].decode("ascii", "replace")


def _with(call: msgspec.Raw, path: Sequence[int | str], part: msgspec.Raw) -> msgspec.Raw:
    """Return JSON with another part at a path of it.

    Raises:
        ConversationError: there is no such place.
    """
    if not path:
        return part
    at, *rest = path
    parts = _parts(call, at)
    parts[at] = _with(parts[at], rest, part)
    return msgspec.Raw(_encode(parts))


def _parts(call: msgspec.Raw, at: int | str) -> Any:
    """Return the parts of JSON, one of which is at an index or a key."""
    try:
        parts: Any = (_LIST if isinstance(at, int) else _OBJECT).decode(call)
        parts[at]
    except (msgspec.DecodeError, LookupError) as error:
        raise ConversationError("a conversation of it belongs nowhere") from error
    return parts


def _list_of(messages: Iterable[bytes]) -> msgspec.Raw:
    return msgspec.Raw(b"[%s]" % b",".join(messages))


def paths(payload: bytes) -> list[Path]:
    """Return where the conversations of a payload belong."""
    return [path for path, _ in _first(payload.partition(b"\n")[0]).conversations]


def is_asking(body: bytes) -> bool:
    """Whether an event is one whose payload is the arguments of a call."""
    start = body[:64]
    return _ASKING[0] in start or _ASKING[1] in start


def has_conversations(body: bytes, payload: bytes) -> bool:
    """Whether an event holds the arguments of a call, and these a conversation."""
    return payload.startswith(HEAD) and is_asking(body)


def whole(log: Iterable[Stored], salt: bytes | None) -> Iterator[Stored]:
    """Yield a log, read from its first event on, with the conversations in the payloads of its calls.

    A payload that was altered is yielded as it is.
    """
    messages = Messages(digester(salt or b""))
    for stored in log:
        if stored.payload is None or not has_conversations(stored.body, stored.payload):
            yield stored
            continue
        try:
            messages.take_in(stored.payload)
            yield stored._replace(payload=messages.whole(stored.payload))
        except ConversationError:
            yield stored
