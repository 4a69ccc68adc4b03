"""For consumers of published events: what a message says, and which ones are repeats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from agentguard._optional import require
from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.events.model import Event

#: `KafkaError._PARTITION_EOF`.
_PARTITION_END: Final = -191


class PublishedEvent(NamedTuple):
    """An event as a message carried it.

    Attributes:
        event_id: `"<run>:<sequence>"`; the same for every repeat.
        tenant: the tenant of its run.
        schema_version: of the event's body.
        event: the event; its `prev_hash` is not known here.
        stored: body and hash, to check the chain with.
    """

    event_id: str
    tenant: str
    schema_version: int
    event: Event
    stored: Stored


def read_message(message: Any) -> PublishedEvent:
    """What a message of confluent-kafka says.

    Raises:
        KafkaException: it is no message, but tells of an error of the broker or the connection.
        LogIntegrityError: it is none that a relay has sent, or of a newer schema.
    """
    if (error := _error_of(message)) is not None:
        raise require("confluent_kafka", extra="kafka", feature="consuming from Kafka").KafkaException(error)
    try:
        headers = {name: value.decode() for name, value in message.headers() or ()}
        run_id, body = message.key().decode(), message.value()
        digest = bytes.fromhex(headers["hash"])
        event_id, tenant, version = headers["event-id"], headers["tenant"], int(headers["schema-version"])
    except (AttributeError, KeyError, UnicodeDecodeError, ValueError) as error:
        raise LogIntegrityError("?", 0, f"the message was not sent by agentguard: {error!r}") from error
    seq = codec.decode(body).seq
    stored = Stored(seq, body, digest, None)
    return PublishedEvent(event_id, tenant, version, codec.to_event(run_id, stored, b""), stored)


class Repeats:
    """Tells what is new from what was published again: events come at least once, in order for each run.

    Args:
        seen: the newest sequence of each run that was taken in before, as the consumer saved it.
    """

    def __init__(self, seen: Mapping[str, int] | None = None) -> None:
        #: The newest sequence of each run that was taken in; save it with what was made of the events.
        self.seen = dict(seen or {})

    def is_new(self, published: PublishedEvent) -> bool:
        """Whether an event was not taken in yet; from now on it is.

        Raises:
            LogIntegrityError: events of this run are missing before it, as after the topic was cut.
        """
        run_id, seq = published.event.run_id, published.event.seq
        newest = self.seen.get(run_id, 0)
        if seq <= newest:
            return False
        if seq != newest + 1:
            raise LogIntegrityError(run_id, newest + 1, f"the topic goes on with event {seq}")
        self.seen[run_id] = seq
        return True


def new_events(messages: Iterable[Any], repeats: Repeats) -> Iterator[PublishedEvent]:
    """The events in messages of confluent-kafka, without repeats.

    What `enable.partition.eof` adds, and `None` of a `poll` that has timed out, is passed over.

    Raises:
        KafkaException: a message tells of an error of the broker or the connection.
        LogIntegrityError: events are missing, or a message was not sent by a relay.

    Example:
        >>> from agentguard.publishing.consumer import Repeats, new_events
        >>> list(new_events([], Repeats()))
        []
    """
    for message in messages:
        if message is None or _is_end(_error_of(message)):
            continue
        published = read_message(message)
        if repeats.is_new(published):
            yield published


def _error_of(message: Any) -> Any:
    """Return what a message tells of that is no message; other clients' messages tell nothing."""
    error = getattr(message, "error", None)
    return error() if callable(error) else None


def _is_end(error: Any) -> bool:
    return error is not None and bool(error.code() == _PARTITION_END)
