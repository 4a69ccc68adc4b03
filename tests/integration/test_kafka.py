"""Events on Kafka: at least once, in order for each run, and never in an agent's way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentguard import Guard, Usage, guarded_step
from agentguard.budget.model import Budget
from agentguard.errors import LogIntegrityError, StoreUnavailableError
from agentguard.events import codec
from agentguard.events.codec import Stored, chain, genesis
from agentguard.killswitch import relay_process
from agentguard.protocols import PublishingError, abilities_of
from agentguard.publishing.consumer import Repeats, new_events, read_message
from agentguard.publishing.kafka import KafkaPublisher, parse_target, reader_name, tenants_of, topic_of
from agentguard.publishing.outbox import Outbox
from tests import kafka
from tests.kit import wait_until
from tests.postgres import execute, login
from tests.relays import end_relays

PROJECTION = Path(__file__).parents[2] / "examples/40_kafka_projection/projection.py"


@guarded_step(usage=Usage(usd="0.25"))
def pay() -> None: ...


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store as the relay that a test starts finds it; on PostgreSQL by a login that may publish."""
    if request.param == "sqlite":
        yield f"sqlite:///{home}/agentguard.db"
        return
    url: str = request.getfixturevalue("postgres_url")
    name = f"{url.partition('?')[0].rpartition('/')[2]}_publisher"
    execute(url, f"CREATE ROLE {name} LOGIN IN ROLE agentguard_operator")
    as_publisher = login(url, name)
    monkeypatch.setenv("AGENTGUARD_STORE", as_publisher)
    yield as_publisher
    execute(url, f"DROP ROLE {name}")


@pytest.fixture
def guard(store_url: str) -> Iterator[Guard]:
    with Guard.open(store_url, telemetry=False) as guard:
        yield guard


@pytest.fixture(scope="module")
def mocked() -> Iterator[str]:
    with kafka.mock() as servers:
        yield servers


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka.Kafka]:
    """A real broker that the tests of this file share."""
    with kafka.real(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(params=["mock", "real"])
def servers(request: pytest.FixtureRequest) -> str:
    if request.param == "mock":
        mocked: str = request.getfixturevalue("mocked")
        return mocked
    server: kafka.Kafka = request.getfixturevalue("broker")
    return server.servers


@pytest.fixture
def topic() -> str:
    return f"t{random.getrandbits(48):x}"


def outbox(guard: Guard, url: str) -> Outbox:
    store = guard.components.store
    tenant_of = tenants_of(store)
    return Outbox(store, lambda: KafkaPublisher(url, tenant_of), reader_name(url))


def work(guard: Guard, runs: int, steps: int, tenant: str = "acme") -> int:
    """Some runs; gives how many events they have."""
    for _ in range(runs):
        with guard.run("work", tenant=tenant):
            for _ in range(steps):
                pay()
    return runs * (2 * steps + 3)


def of_store(guard: Guard) -> dict[str, list[bytes]]:
    """The bodies of every run's events."""
    store = guard.components.store
    rows = store.rows(limit=1000)
    return {row.run_id: [stored.body for stored in store.read(row.run_id)] for row in rows}


def of_messages(messages: list[Any]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for published in new_events(messages, Repeats()):
        found.setdefault(published.event.run_id, []).append(published.stored.body)
    return found


def test_every_event_arrives_in_order_with_its_headers(guard: Guard, servers: str, topic: str) -> None:
    count = sum(len(bodies) for bodies in of_store(guard).values()) + work(guard, runs=5, steps=4)
    published = outbox(guard, f"kafka://{servers}/{topic}")
    while published.publish_page():
        pass
    count = sum(len(bodies) for bodies in of_store(guard).values())
    messages = kafka.consume(servers, topic, count)
    assert published.published == len(messages) == count
    assert of_messages(messages) == of_store(guard)
    heads: dict[str, bytes] = {}
    for message in messages:
        each = read_message(message)
        run_id = each.event.run_id
        assert each.event_id == f"{run_id}:{each.event.seq}"
        assert (each.tenant, each.schema_version) == ("acme", 1)
        heads[run_id] = chain(heads.get(run_id, genesis(run_id)), each.stored.body)
        assert each.stored.hash == heads[run_id], "a consumer can check the chain"


def test_an_agents_login_cannot_publish_and_is_told_why(postgres_url: str, mocked: str, topic: str) -> None:
    name = f"{postgres_url.partition('?')[0].rpartition('/')[2]}_agents"
    execute(postgres_url, f"CREATE ROLE {name} LOGIN IN ROLE agentguard_agent")
    try:
        with Guard.open(login(postgres_url, name), telemetry=False) as guard:
            with pytest.raises(StoreUnavailableError, match="permission denied for table reader_position"):
                outbox(guard, f"kafka://{mocked}/{topic}").publish_page()
    finally:
        execute(postgres_url, f"DROP ROLE {name}")


def test_a_topic_for_each_tenant(guard: Guard, mocked: str, topic: str) -> None:
    for tenant in ("acme", "evil"):
        work(guard, runs=1, steps=1, tenant=tenant)
    outbox(guard, f"kafka://{mocked}/{topic}.{{tenant}}").publish_page()
    for tenant in ("acme", "evil"):
        messages = kafka.consume(mocked, f"{topic}.{tenant}", 5)
        assert {read_message(message).tenant for message in messages} == {tenant}


def test_a_tenant_of_any_name_has_a_topic_of_its_own(guard: Guard, servers: str, topic: str) -> None:
    tenants = ["acme & co", "acme & CO", "acme__ co", "Ünï/kod", "..", "x" * 200, "x" * 199, "globex"]
    tenants += ["acme.eu", "acme_eu", "acme-eu"]
    tenants += [topic_of("{tenant}", tenant) for tenant in tenants]  # who names himself like another's topic
    tenants = list(dict.fromkeys(tenants))
    for tenant in tenants:
        work(guard, runs=1, steps=1, tenant=tenant)
    pattern = f"{'t' * 80}{topic}.{{tenant}}"
    outbox(guard, f"kafka://{servers}/{pattern}").publish_page()
    topics = [topic_of(pattern, tenant) for tenant in tenants]
    assert len(set(topics)) == len(tenants)
    assert f"{'t' * 80}{topic}.globex" in topics
    for tenant, of_tenant in zip(tenants, topics, strict=True):
        messages = kafka.consume(servers, of_tenant, 5)
        assert {read_message(message).tenant for message in messages} == {tenant}


def test_an_event_that_is_too_large_is_named_until_more_is_allowed(
    guard: Guard, mocked: str, topic: str
) -> None:
    with guard.run("large", run_id="large", metadata={"text": "x" * 1_100_000}):
        pass
    url = f"kafka://{mocked}/{topic}"
    with pytest.raises(PublishingError, match=r"event large:1 of 1,100,\d+ bytes"):
        outbox(guard, url).publish_page()
    assert outbox(guard, f"{url}?message.max.bytes=2000000").publish_page() == 3
    assert [message.key() for message in kafka.consume(mocked, topic, 3)] == [b"large"] * 3


def test_a_relay_that_died_before_it_saved_its_position_repeats_and_leaves_nothing_out(
    guard: Guard, servers: str, topic: str
) -> None:
    url = f"kafka://{servers}/{topic}"
    work(guard, runs=2, steps=2)
    first = outbox(guard, url)
    positions = first._positions

    class Dies:
        position = positions.position

        def save_position(self, reader: str, position: int) -> None:
            raise KeyboardInterrupt

    first._positions = Dies()
    with pytest.raises(KeyboardInterrupt):
        first.publish_page()
    work(guard, runs=1, steps=2)
    second = outbox(guard, url)
    while second.publish_page():
        pass
    total = sum(len(bodies) for bodies in of_store(guard).values())
    messages = kafka.consume(servers, topic, total + 14)
    assert len({read_message(message).event_id for message in messages}) == total
    assert of_messages(messages) == of_store(guard)


def test_a_position_goes_on_and_never_back(guard: Guard) -> None:
    positions = abilities_of(guard.components.store).positions
    assert positions is not None
    assert positions.position("r") == 0
    for saved, found in ((5, 5), (3, 5), (9, 9)):
        positions.save_position("r", saved)
        assert positions.position("r") == found
    assert positions.position("other") == 0
    readers = abilities_of(guard.components.store).readers
    assert readers is not None
    positions.save_position("q", 2)
    assert readers.positions() == {"q": 2, "r": 9}


def test_a_store_that_keeps_no_position_is_refused() -> None:
    with Guard.in_memory(telemetry=False) as guard, pytest.raises(ValueError, match="memory://.*no position"):
        outbox(guard, "kafka://localhost:9092/topic")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "kafka://host:9092",
            "kafka:///topic",
            "http://host/topic",
            "kafka://host/a/b",
            "kafka://h:1/t?acks=0",
        ),
        *("kafka://host/a%20b", "kafka://host/..", "kafka://host/%C3%BC", f"kafka://host/{'t' * 250}"),
        *("kafka://ann:secret@host:9092/topic", "kafka://host:port/topic", "kafka://host:1,:2/topic"),
        *("kafka://host/a.{tenat}", f"kafka://host/{'t' * 200}.{{tenant}}"),
    ],
)
def test_a_url_that_names_no_topic_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="kafka|acks"):
        parse_target(url)


def test_an_option_that_librdkafka_does_not_know_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no.such.option"):
        KafkaPublisher("kafka://localhost:1/topic?no.such.option=1", lambda run_id: "acme")


def test_events_that_are_missing_before_another_are_noticed() -> None:
    def published(seq: int) -> Any:
        body = codec.encode(codec.Record(seq=seq, type="value", at_ns=1))
        headers = [("event-id", b"r:1"), ("schema-version", b"1"), ("tenant", b"t"), ("hash", b"00")]

        class Message:
            def headers(self) -> Any:
                return headers

            def key(self) -> bytes:
                return b"r"

            def value(self) -> bytes:
                return body

            def error(self) -> None:
                return None

        return Message()

    repeats = Repeats({"r": 3})
    assert [each.event.seq for each in new_events([published(2), published(4), published(3)], repeats)] == [4]
    assert repeats.seen == {"r": 4}
    with pytest.raises(LogIntegrityError, match="goes on with event 6"):
        list(new_events([published(6)], repeats))


def test_what_a_consumer_gives_beside_events_is_no_damaged_log(
    guard: Guard, mocked: str, topic: str, request: pytest.FixtureRequest
) -> None:
    client = pytest.importorskip("confluent_kafka")
    work(guard, runs=1, steps=1)
    outbox(guard, f"kafka://{mocked}/{topic}").publish_page()
    settings = {"bootstrap.servers": mocked, "group.id": topic, "enable.auto.commit": False, "log_level": 0}
    consumer = client.Consumer(settings | {"enable.partition.eof": True, "auto.offset.reset": "error"})
    request.addfinalizer(consumer.close)
    parts = list(consumer.list_topics(topic, timeout=10).topics[topic].partitions)

    def come(from_offset: int) -> list[Any]:
        consumer.assign([client.TopicPartition(topic, part, from_offset) for part in parts])
        messages = [consumer.poll(0)]
        while sum(message is not None and message.error() is not None for message in messages) < len(parts):
            messages.append(consumer.poll(10))
        return messages

    assert len(list(new_events(come(0), Repeats()))) == sum(map(len, of_store(guard).values()))
    with pytest.raises(client.KafkaException, match="_AUTO_OFFSET_RESET"):
        list(new_events(come(10**6), Repeats()))


# --- faults --------------------------------------------------------------------------------------


@contextmanager
def relaying(url: str, home: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start relays as a deployment does; all are ended with the block."""
    words = [sys.executable, "-m", "agentguard.cli", "relay", "--publish", url, "--home", str(home)]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(words))
        return started[-1]

    yield start
    for relay in started:
        relay.terminate()
        relay.wait(60)


def test_a_relay_that_is_killed_again_and_again_leaves_nothing_out(
    guard: Guard, home: Path, servers: str, topic: str
) -> None:
    positions = abilities_of(guard.components.store).positions
    assert positions is not None
    url = f"kafka://{servers}/{topic}"
    with relaying(url, home) as start:
        for _ in range(3):
            before = positions.position(reader_name(url))
            relay = start()
            work(guard, runs=3, steps=10)
            wait_until(lambda before=before: positions.position(reader_name(url)) > before, 60)
            work(guard, runs=3, steps=10)
            relay.kill()
            relay.wait()
        start()
        total = sum(len(bodies) for bodies in of_store(guard).values())
        last = guard.components.store.tail(0, limit=10_000)[-1][1].position
        wait_until(lambda: positions.position(reader_name(url)) == last, 60)
    messages = kafka.consume(servers, topic, total)
    assert of_messages(messages) == of_store(guard)


def ends_when_asked(process: subprocess.Popen[bytes]) -> bool:
    """Whether SIGTERM is handled by a process, and does not end it as it stands."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_on_a_host_whose_kills_are_relayed_already_it_publishes_alone(
    postgres_url: str, mocked: str, topic: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENTGUARD_KILL_SWITCH")  # so that they lie where the events do
    monkeypatch.setenv("AGENTGUARD_STORE", postgres_url)
    url = f"kafka://{mocked}/{topic}"
    with relaying(url, home) as start, Guard.open(telemetry=False) as guard:
        try:
            total = work(guard, runs=1, steps=1)
            [folder] = (home / "relay").iterdir()
            of_kills = relay_process.pid(folder)
            for _ in range(2):
                relay = start()
                kafka.consume(mocked, topic, total)
                wait_until(lambda relay=relay: ends_when_asked(relay))  # type: ignore[misc]
                relay.terminate()
                assert relay.wait(60) == 0
                total += work(guard, runs=1, steps=1)
            assert relay_process.pid(folder) == of_kills is not None
        finally:
            end_relays(home)


def test_a_relay_ends_with_code_0_when_it_is_asked_to(
    guard: Guard, home: Path, mocked: str, topic: str
) -> None:
    with relaying(f"kafka://{mocked}/{topic}", home) as start:
        relay = start()
        work(guard, runs=1, steps=1)
        kafka.consume(mocked, topic, 5)
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(60) == 0


def test_a_broker_that_is_killed_and_started_again_gets_everything_and_no_agent_waits(
    guard: Guard, home: Path, tmp_path: Path, topic: str
) -> None:
    with kafka.real(tmp_path) as server:
        url = f"kafka://{server.servers}/{topic}?message.timeout.ms=2000"
        with relaying(url, home) as start:
            start()
            count = work(guard, runs=2, steps=5)
            kafka.consume(server.servers, topic, count)
            server.kill()
            work(guard, runs=5, steps=5)  # no agent is in the way of a broker that is gone
            server.start()
            work(guard, runs=1, steps=5)
            total = sum(len(bodies) for bodies in of_store(guard).values())
            positions = abilities_of(guard.components.store).positions
            assert positions is not None
            last = guard.components.store.tail(0, limit=10_000)[-1][1].position
            wait_until(lambda: positions.position(reader_name(url)) == last, 120)
            messages = kafka.consume(server.servers, topic, total)
    found = of_messages(messages)
    assert found == of_store(guard)


def test_a_publisher_whose_broker_is_away_says_so_and_the_position_stays(guard: Guard) -> None:
    work(guard, runs=1, steps=1)
    url = "kafka://127.0.0.1:1/topic?message.timeout.ms=300&log_level=0"
    with pytest.raises(PublishingError, match=r"127\.0\.0\.1:1/topic.*not delivered"):
        outbox(guard, url).publish_page()
    positions = abilities_of(guard.components.store).positions
    assert positions is not None
    assert positions.position(reader_name(url)) == 0


# --- the example ---------------------------------------------------------------------------------


def test_the_projection_rebuilt_from_offset_0_says_what_the_store_says(
    guard: Guard, servers: str, topic: str, empty_postgres: str
) -> None:
    import psycopg

    url = f"kafka://{servers}/{topic}"
    tenants = {"acme": 3, "evil": 5}
    for tenant in tenants:
        guard.set_tenant_budget(tenant, Budget(usd="1000"))

    def project(*options: str) -> dict[str, Decimal]:
        words = [sys.executable, str(PROJECTION), servers, topic, empty_postgres, "--once", *options]
        subprocess.run(words, check=True, env=os.environ, timeout=120)
        with psycopg.connect(empty_postgres) as database:
            return dict(database.execute("SELECT tenant, sum(usd) FROM spend GROUP BY tenant").fetchall())

    def spent() -> dict[str, Decimal]:
        return {each.tenant: each.spent.usd for each in guard.tenants()}

    for _ in range(2):
        for tenant, steps in tenants.items():
            work(guard, runs=2, steps=steps, tenant=tenant)
        box = outbox(guard, url)
        while box.publish_page():
            pass
        assert project() == spent()
    assert spent() == {"acme": Decimal("3.00"), "evil": Decimal("5.00")}
    box._positions.save_position("again", 0)
    again = Outbox(
        guard.components.store, lambda: KafkaPublisher(url, tenants_of(guard.components.store)), "again"
    )
    again.publish_page()
    assert project() == spent(), "everything published twice is counted once"
    assert project("--rebuild") == spent()


def test_of_two_projections_at_once_one_counts_and_the_other_takes_over(
    guard: Guard, mocked: str, topic: str, empty_postgres: str
) -> None:
    box = outbox(guard, f"kafka://{mocked}/{topic}")
    words = [sys.executable, str(PROJECTION), mocked, topic, empty_postgres]
    both: list[subprocess.Popen[bytes]] = []

    def all_is_counted() -> bool:
        work(guard, runs=1, steps=3, tenant="acme")  # while others are taken in
        while box.publish_page():
            pass
        [acme] = guard.tenants()
        wait_until(lambda: execute(empty_postgres, "SELECT to_regclass('spend') IS NOT NULL") == [(True,)])
        wait_until(lambda: execute(empty_postgres, "SELECT sum(usd) FROM spend") == [(acme.spent.usd,)])
        return True

    guard.set_tenant_budget("acme", Budget(usd="1000"))
    work(guard, runs=1, steps=1, tenant="acme")
    while box.publish_page():
        pass
    try:
        both.append(subprocess.Popen(words))
        assert all_is_counted()
        both.append(subprocess.Popen(words))
        assert all_is_counted()
        waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until(lambda: execute(empty_postgres, waits))
        both[0].kill()
        assert all_is_counted()
        assert both[1].poll() is None
    finally:
        for process in both:
            process.kill()
            process.wait()


def test_a_topic_that_was_made_again_or_cut_is_not_passed_over(
    guard: Guard, mocked: str, topic: str, empty_postgres: str
) -> None:
    box = outbox(guard, f"kafka://{mocked}/{topic}")
    work(guard, runs=1, steps=1, tenant="acme")
    while box.publish_page():
        pass
    words = [sys.executable, str(PROJECTION), mocked, topic, empty_postgres, "--once"]
    subprocess.run(words, check=True, env=os.environ, timeout=120)
    execute(empty_postgres, "UPDATE progress SET next_offset = next_offset + 1000")
    done = subprocess.run(words, check=False, env=os.environ, timeout=120, capture_output=True, text=True)
    assert done.returncode
    assert "begin anew, by --rebuild" in done.stderr


def test_a_message_of_somebody_else_is_named() -> None:
    class Message:
        def headers(self) -> None:
            return None

        def key(self) -> bytes:
            return b"r"

        def value(self) -> bytes:
            return b"{}"

    with pytest.raises(LogIntegrityError, match="not sent by agentguard"):
        read_message(Message())


def test_what_is_published_is_never_a_payload(guard: Guard, mocked: str, topic: str) -> None:
    with guard.run("secret", inputs={"note": "in the payload alone"}) as run:
        pay()
    outbox(guard, f"kafka://{mocked}/{topic}").publish_page()
    messages = kafka.consume(mocked, topic, 5)
    stored: list[Stored] = list(guard.components.store.read(run.id))
    assert any(b"in the payload alone" in (each.payload or b"") for each in stored)
    assert not any(b"in the payload alone" in message.value() for message in messages)
