"""Events as Kafka messages: key and headers, and the producer that a relay sends them with.

key      the run's id, so that a run's events keep their order in one partition
value    the event's body, byte for byte as the store has it; never a payload
headers  event-id "<run>:<sequence>", schema-version, tenant, hash (hex, over the previous hash and
the value)
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote

from agentguard._optional import require
from agentguard._secrets.urls import public_url, url_parts
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.protocols import EventStore, PublishingError

#: Stands for the tenant in the name of a topic.
TENANT = "{tenant}"
#: What Kafka takes for the name of a topic, besides "." and "..".
_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
#: How many characters are kept of a tenant's name that is no part of a topic's, and how such a name ends.
_KEPT: Final = 40
_DIGEST: Final = re.compile(r"-sha256-[0-9a-f]{16}$")
#: How many runs' tenants are remembered.
_RUNS = 10_000
#: librdkafka's own settings that the promise rests on.
_OURS: Mapping[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "linger.ms": 5,
    "queue.buffering.max.messages": 200_000,
    "message.timeout.ms": 30_000,
}
_FIXED = ("bootstrap.servers", "enable.idempotence", "acks")


class KafkaTarget(NamedTuple):
    """Where events go.

    `topic` may have `{tenant}` in it, which makes it a topic for each tenant; `options` are
    librdkafka's, such as `security.protocol`.
    """

    servers: str
    topic: str
    options: Mapping[str, str]


def parse_target(url: str) -> KafkaTarget:
    """The parts of `kafka://host:port[,host:port]/topic?option=value`.

    Raises:
        ValueError: a part is missing, or an option is not the caller's to set.
    """
    parts = url_parts(url)
    topic = unquote(parts.path.strip("/"))
    if parts.scheme != "kafka" or not _are_servers(parts.netloc) or not topic or "/" in topic:
        raise ValueError(f"{public_url(url)!r} is no kafka://host:port/topic")
    if "@" in parts.netloc:
        raise ValueError(
            f"{public_url(url)!r}: user and password go into the options sasl.username and sasl.password"
        )
    if not _is_topic(topic_of(topic, " " * _KEPT)):
        raise ValueError(
            f"{public_url(url)!r}: the name of a topic is 1 to 249 letters (a to z), digits, '.', '_' and '-'"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if fixed := [name for name in _FIXED if name in options]:
        raise ValueError(f"{public_url(url)}: the option {fixed[0]} is not yours to set")
    return KafkaTarget(parts.netloc, topic, options)


def _are_servers(netloc: str) -> bool:
    hosts = netloc.rpartition("@")[2].split(",")
    return all(re.fullmatch(r"(\[[^][]+\]|[^:]+)(:\d+)?", host) for host in hosts)


def topic_of(topic: str, tenant: str) -> str:
    """Return the topic for a tenant: with its name, or where that cannot be, with one made of it.

    No two tenants have one topic.  Kafka refuses some names, and makes no topic `a.b` beside `a_b`.

    Args:
        topic: as in the URL, with `{tenant}` in it or not.
        tenant: whose events are meant.

    Example:
        >>> topic_of("agents.{tenant}", "acme"), topic_of("agents.{tenant}", "acme & co")
        ('agents.acme', 'agents.acme___co-sha256-fe2da327eba628be')
    """
    named = topic.replace(TENANT, tenant)
    if TENANT not in topic or (_is_topic(named) and "." not in tenant and not _DIGEST.search(tenant)):
        return named
    digest = hashlib.sha256(tenant.encode()).hexdigest()[:16]
    return topic.replace(TENANT, f"{re.sub('[^a-zA-Z0-9_-]', '_', tenant[:_KEPT])}-sha256-{digest}")


def _is_topic(name: str) -> bool:
    return _TOPIC.fullmatch(name) is not None and name not in {".", ".."}


def reader_name(url: str) -> str:
    """The name under which the position of this target is saved: servers may come and go, the topic stays."""
    return f"kafka:{parse_target(url).topic}"


class KafkaPublisher:
    """A `Publisher` to one Kafka cluster, by an idempotent producer.

    Args:
        url: as `parse_target` takes it.
        tenant_of: gives the tenant of a run.

    Raises:
        MissingExtraError: confluent-kafka is not installed.
        ValueError: the URL names no topic, or an option that librdkafka does not know.
    """

    def __init__(self, url: str, tenant_of: Callable[[str], str]) -> None:
        kafka = require("confluent_kafka", extra="kafka", feature="publishing to Kafka")
        target = parse_target(url)
        self._url = public_url(url)
        self._topic = target.topic
        self._tenant_of = tenant_of
        self._errors: tuple[type[Exception], ...] = (kafka.KafkaException, BufferError)
        self._failed: str | None = None
        settings = {**_OURS, **target.options, "bootstrap.servers": target.servers}
        try:
            self._producer: Any = kafka.Producer({**settings, "error_cb": self._note})
        except kafka.KafkaException as error:
            raise ValueError(f"{self._url}: {error}") from error

    def publish(self, run_id: str, stored: Stored) -> None:
        """Hand over one event.

        Raises:
            PublishingError: one that was handed over before could not be delivered.
        """
        tenant = self._tenant_of(run_id)
        topic = topic_of(self._topic, tenant)
        event_id = f"{run_id}:{stored.seq}"
        message = {
            "key": run_id,
            "value": stored.body,
            "headers": [
                ("event-id", event_id),
                ("schema-version", str(codec.decode(stored.body).v)),
                ("tenant", tenant),
                ("hash", stored.hash.hex()),
            ],
            "on_delivery": self._delivered,
        }
        while True:
            self._check()
            try:
                self._producer.produce(topic, **message)
            except BufferError:
                self._producer.poll(0.1)  # the queue is full: wait for deliveries
            except self._errors as error:
                size = f"event {event_id} of {len(stored.body):,} bytes"
                raise PublishingError(f"{self._url}: {size}: {error}") from error
            else:
                return

    def flush(self, timeout: float) -> None:
        """Return when everything handed over was delivered.

        Raises:
            PublishingError: some of it was not, in `timeout` seconds.
        """
        left = self._producer.flush(timeout)
        self._check()
        if left:
            self._failed = f"{left} events were not delivered in {timeout:g} s"
            self._producer.purge()
            self._check()

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None and self._failed is None:
            size = f"an event of run {message.key().decode()}, {len(message.value()):,} bytes"
            self._failed = f"{size}, was not delivered: {error}"

    def _note(self, error: Any) -> None:
        if error.fatal():
            self._failed = str(error)

    def _check(self) -> None:
        if self._failed is not None:
            raise PublishingError(f"{self._url}: {self._failed}")


def tenants_of(store: EventStore) -> Callable[[str], str]:
    """What gives the tenant of a run of a store, and remembers it."""
    known: OrderedDict[str, str] = OrderedDict()

    def tenant_of(run_id: str) -> str:
        tenant = known.get(run_id)
        if tenant is None:
            row = store.row(run_id)
            tenant = known[run_id] = "" if row is None else row.tenant
            if len(known) > _RUNS:
                known.popitem(last=False)
        return tenant

    return tenant_of
