"""Kafka for tests: librdkafka's mock cluster everywhere, and a real broker where Java and its jars are.

The jars come from Maven coordinates (`tests/kafka-pom.xml`) into a folder outside the checkout, as
`.ci/run` does it.
"""

from __future__ import annotations

import base64
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.postgres import Process
from tests.servers import free_port, missing

VERSION = "4.3.1"
#: Where the jars of the broker are.
JARS = Path(
    os.environ.get("AGENTGUARD_TEST_KAFKA_JARS") or Path.home() / f".cache/agentguard/kafka-{VERSION}"
)
_JVM = ("-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss256k")


class Kafka(Process):
    """One broker that is its own controller, which a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        java = shutil.which("java")
        if java is None or not list(JARS.glob("kafka_*.jar")):
            missing(f"Kafka: java, and its jars in {JARS} (tests/kafka-pom.xml says how)")
        broker, controller = free_port(), free_port()
        self.servers = f"127.0.0.1:{broker}"
        data = folder / "data"
        data.mkdir()
        cluster = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]
        # In the place of a run of its storage tool, which would start another JVM.
        (data / "meta.properties").write_text(f"version=1\ncluster.id={cluster}\nnode.id=0\n")
        listeners = f"PLAINTEXT://{self.servers},CONTROLLER://127.0.0.1:{controller}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": 0,
            "controller.quorum.voters": f"0@127.0.0.1:{controller}",
            "listeners": listeners,
            "advertised.listeners": f"PLAINTEXT://{self.servers}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": data,
            "offsets.topic.num.partitions": 1,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "num.partitions": 3,
            "log.cleaner.dedupe.buffer.size": 2097152,
            # A broker that was killed is refused until its old session has ended.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 300,
        }
        file = folder / "server.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        logging = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        command = [java, *_JVM, logging, "-cp", f"{JARS}/*", "kafka.Kafka", file]
        super().__init__(folder, "kafka", command, self._list)

    def _list(self) -> None:
        from confluent_kafka.admin import AdminClient

        assert AdminClient({"bootstrap.servers": self.servers, "log_level": 0}).list_topics(timeout=2).brokers


@contextmanager
def real(folder: Path) -> Iterator[Kafka]:
    """A broker for as long as the block."""
    server = Kafka(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def mock() -> Iterator[str]:
    """The servers of a mock cluster inside this process."""
    from confluent_kafka import Producer

    cluster = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    (broker,) = cluster.list_topics(timeout=5).brokers.values()
    yield f"{broker.host}:{broker.port}"
    del cluster


def consume(servers: str, topic: str, count: int, seconds: float = 60.0) -> list[Any]:
    """The first `count` messages of a topic."""
    import time

    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

    settings = {"bootstrap.servers": servers, "group.id": uuid.uuid4().hex, "log_level": 0}
    consumer = Consumer({**settings, "enable.auto.commit": False, "fetch.wait.max.ms": 20})
    deadline = time.monotonic() + seconds
    found: list[Any] = []
    try:
        partitions: list[int] = []
        while not partitions:
            assert time.monotonic() < deadline, f"there is no topic {topic}"
            try:
                partitions = list(consumer.list_topics(topic, timeout=5).topics[topic].partitions)
            except KafkaException:
                continue
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} messages came"
            messages = consumer.consume(1000, timeout=0.1)
            found += [message for message in messages if message.error() is None]
    finally:
        consumer.close()
    return found
