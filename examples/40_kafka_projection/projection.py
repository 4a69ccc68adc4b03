"""What each tenant spends in each hour, as a table in PostgreSQL, from the events in a Kafka topic.

    agentguard relay --publish kafka://localhost:9092/agentguard        # in another terminal
    python projection.py localhost:9092 agentguard postgresql://localhost/reports

It goes on where it was: what was taken in is saved in the transaction that counts it, so neither a crash of
this program nor an event that was published twice counts anything twice; a second copy waits until the first
has ended.  With --rebuild it begins anew at offset 0, and ends with the same table.  With --once it ends when
nothing new is there.

Needs: pip install 'agentguard[cli,kafka,postgres]'
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from agentguard.publishing.consumer import PublishedEvent, Repeats, new_events

#: The events that charge what a step used.
CHARGES = ("step_completed", "step_failed", "step_resolved")

TABLES = """
CREATE TABLE IF NOT EXISTS spend (
    tenant text, hour timestamptz, usd numeric NOT NULL, PRIMARY KEY (tenant, hour)
);
CREATE TABLE IF NOT EXISTS seen (run_id text PRIMARY KEY, seq bigint NOT NULL);
CREATE TABLE IF NOT EXISTS progress (part integer PRIMARY KEY, next_offset bigint NOT NULL);
"""
ADD = """
INSERT INTO spend VALUES (%s, %s, %s)
ON CONFLICT (tenant, hour) DO UPDATE SET usd = spend.usd + excluded.usd
"""
SEE = "INSERT INTO seen VALUES (%s, %s) ON CONFLICT (run_id) DO UPDATE SET seq = excluded.seq"
GO_ON = """
INSERT INTO progress VALUES (%s, %s)
ON CONFLICT (part) DO UPDATE SET next_offset = excluded.next_offset
"""


def spend(events: Iterable[PublishedEvent]) -> dict[tuple[str, datetime], Any]:
    """USD by tenant and hour."""
    found: dict[tuple[str, datetime], Any] = defaultdict(int)
    for tenant, event in ((each.tenant, each.event) for each in events):
        if event.type in CHARGES and event.usage is not None and event.usage.usd:
            hour = datetime.fromtimestamp(event.at_ns // 3_600_000_000_000 * 3600, UTC)
            found[tenant, hour] += event.usage.usd
    return found


def take_in(database: psycopg.Connection, messages: list[Any], repeats: Repeats) -> None:
    """Count some messages, and note how far this came, in one transaction."""
    before = dict(repeats.seen)
    with database.transaction(), database.cursor() as cursor:
        spent = spend(new_events(messages, repeats))
        cursor.executemany(ADD, [(tenant, hour, usd) for (tenant, hour), usd in spent.items()])
        cursor.executemany(SEE, [(run, seq) for run, seq in repeats.seen.items() if before.get(run) != seq])
        cursor.executemany(GO_ON, [(message.partition(), message.offset() + 1) for message in messages])


def follow(servers: str, topic: str, database: psycopg.Connection, *, once: bool) -> None:
    """Take in what is there, and what comes."""
    database.execute(TABLES)
    repeats = Repeats(dict(database.execute("SELECT run_id, seq FROM seen").fetchall()))
    progress = dict(database.execute("SELECT part, next_offset FROM progress").fetchall())
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "spend",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",  # else it would go on at the end, and pass over what is there
        }
    )
    parts = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    ends = {
        part: consumer.get_watermark_offsets(TopicPartition(topic, part), timeout=30)[1] for part in parts
    }
    if any(progress.get(part, 0) > end for part, end in ends.items()):
        sys.exit(f"{topic} has less than was taken in: it was made again, so begin anew, by --rebuild")
    consumer.assign([TopicPartition(topic, part, progress.get(part, OFFSET_BEGINNING)) for part in parts])
    try:
        while not once or any(progress.get(part, 0) < end for part, end in ends.items()):
            messages: list[Any] = consumer.consume(1000, timeout=0.5)
            if messages:  # an error among them is raised: it is never passed over
                take_in(database, messages, repeats)
                progress |= {message.partition(): message.offset() + 1 for message in messages}
    finally:
        consumer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Spend by tenant and hour.")
    parser.add_argument("servers", help="of Kafka, as host:port")
    parser.add_argument("topic")
    parser.add_argument("database", help="where the table goes, as postgresql://...")
    parser.add_argument("--rebuild", action="store_true", help="begin anew at offset 0")
    parser.add_argument("--once", action="store_true", help="end when nothing new is there")
    options = parser.parse_args()
    with psycopg.connect(options.database, autocommit=True) as database:
        database.execute("SELECT pg_advisory_lock(hashtext('spend'))")
        if options.rebuild:
            database.execute("DROP TABLE IF EXISTS spend, seen, progress")
        follow(options.servers, options.topic, database, once=options.once)
        for tenant, hour, usd in database.execute("SELECT * FROM spend ORDER BY tenant, hour"):
            print(f"{tenant:20} {hour:%Y-%m-%d %H}:00  {usd.normalize():f} USD")


if __name__ == "__main__":
    sys.exit(main())
