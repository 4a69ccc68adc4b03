"""The relay to Kafka: how many events a second, and how long after its append an event is there."""

from __future__ import annotations

import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from agentguard import Guard, guarded_step
from agentguard.publishing.consumer import read_message
from agentguard.publishing.kafka import KafkaPublisher, reader_name, tenants_of
from agentguard.publishing.outbox import Outbox
from benchmarks import _measure as m
from benchmarks._rows import Row
from tests import kafka

#: Events a second while the lag is measured.
_RATE = 1000


@guarded_step(capture="none")
def nothing() -> None: ...


def measure(*, quick: bool) -> list[Row]:
    """The rows on the relay, to a real broker where there is one, else to librdkafka's mock cluster."""
    with (
        tempfile.TemporaryDirectory(prefix="agentguard-") as folder,
        _broker(Path(folder)) as (kind, servers),
    ):
        with Guard.open(f"sqlite:///{folder}/a.db", kill_switch="memory", telemetry=False) as guard:
            rate, count = _throughput(guard, servers, 5_000 if quick else 50_000)
        with Guard.open(f"sqlite:///{folder}/b.db", kill_switch="memory", telemetry=False) as guard:
            lags = _lags(guard, servers, 2 if quick else 10)
    return [
        Row(
            name="kafka-events",
            what="relay to Kafka, events a second",
            value=rate,
            unit="1/s",
            limit=20_000,
            sense="at least",
            facts={"events": count, "broker": kind},
        ),
        Row(
            name="kafka-lag",
            what="append to the consumer that has it, at 1,000 events a second, p50",
            value=m.percentile(lags, 0.5),
            unit="ms",
            limit=100,
            facts={"events": len(lags), "p99 ms": m.percentile(lags, 0.99), "broker": kind},
        ),
    ]


@contextmanager
def _broker(folder: Path) -> Iterator[tuple[str, str]]:
    if list(kafka.JARS.glob("kafka_*.jar")):
        with kafka.real(folder) as server:
            yield f"Apache Kafka {kafka.VERSION}", server.servers
    else:
        with kafka.mock() as servers:
            yield "mock cluster", servers


def _outbox(guard: Guard, url: str) -> Outbox:
    store = guard.components.store
    tenant_of = tenants_of(store)
    return Outbox(store, lambda: KafkaPublisher(url, tenant_of), reader_name(url))


def _throughput(guard: Guard, servers: str, steps: int) -> tuple[float, int]:
    outbox = _outbox(guard, f"kafka://{servers}/{uuid.uuid4().hex}")
    with guard.run("first"):
        nothing()
    # The topic is there and the producer has its id, for which a broker that has just begun keeps it waiting.
    first = outbox.publish_page()
    with guard.run("many"):
        for _ in range(steps):
            nothing()
    guard.components.store.tail(after=3 * steps)  # positions are given when somebody asks: not part of this
    start = time.perf_counter()
    while outbox.publish_page():
        pass
    count = outbox.published - first
    return count / (time.perf_counter() - start), count


def _lags(guard: Guard, servers: str, seconds: int) -> list[float]:
    """Milliseconds from an event's time to the moment when a consumer has it."""
    topic = uuid.uuid4().hex
    url = f"kafka://{servers}/{topic}"
    with guard.run("first"):
        nothing()
    outbox = _outbox(guard, url)
    outbox.publish_page()
    consumer = Consumer({"bootstrap.servers": servers, "group.id": topic, "fetch.wait.max.ms": 10})
    parts = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    ends = {part: consumer.get_watermark_offsets(TopicPartition(topic, part))[1] for part in parts}
    consumer.assign([TopicPartition(topic, part, end) for part, end in ends.items()])
    relay = threading.Thread(target=outbox.run)
    agent = threading.Thread(target=_work, args=(guard, seconds))
    relay.start()
    agent.start()
    found: list[float] = []
    while len(found) < seconds * _RATE * 0.9:
        messages = consumer.consume(1000, timeout=0.01)
        now = time.time_ns()
        found += [(now - _at(message)) / 1e6 for message in messages if message.error() is None]
    outbox.stop()
    agent.join()
    relay.join()
    consumer.close()
    return found


def _work(guard: Guard, seconds: int) -> None:
    """Two events for each step, at the rate that is measured."""
    with guard.run("steady"):
        start = time.monotonic()
        for number in range(seconds * _RATE // 2):
            time.sleep(max(0, start + number * 2 / _RATE - time.monotonic()))
            nothing()


def _at(message: Any) -> int:
    return read_message(message).event.at_ns
