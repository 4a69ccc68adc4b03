"""The short ways of a step give what the long ones give."""

from __future__ import annotations

import pytest

from agentguard import Budget, Guard, Usage
from agentguard.budget.account import ONE_STEP, Account, Request
from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored, chain, digester, genesis, payload_digest
from agentguard.protocols import HeadMovedError, RunRow
from agentguard.steps.options import step_spec
from agentguard.stores.memory import MemoryEventStore


def event(seq, previous):
    body = b'{"seq":%d}' % seq
    return Stored(seq, body, chain(previous, body), b"payload %d" % seq)


def log_of_three():
    events = [event(1, genesis("r"))]
    for seq in (2, 3):
        events.append(event(seq, events[-1].hash))
    return events


def opened(store, events):
    row = RunRow(run_id="r", name="n", tenant="t", state="RUNNING", created_ns=1, salt=b"s")
    return store.create(row, events)


def append_one(store, number, stored):
    with store.lock_for("r1"):
        store.append_one(number, *stored[:4])


def test_both_ways_of_appending_leave_the_same_log():
    events = log_of_three()
    long, short = MemoryEventStore(), MemoryEventStore()
    for store in (long, short):
        assert opened(store, events[:1]) == 1
    long.append(1, events[1:2])
    long.append(1, events[2:])
    append_one(short, 1, events[1])
    append_one(short, 1, events[2])
    assert list(long.read("r")) == list(short.read("r"))
    assert long.tail() == short.tail()
    assert [stored.position for stored in short.read("r")] == [1, 2, 3]


@pytest.mark.parametrize("seq", [0, 1, 3, 4])
def test_the_short_way_refuses_what_is_not_the_next_event(seq):
    store = MemoryEventStore()
    number = opened(store, log_of_three()[:1])
    with pytest.raises(HeadMovedError):
        append_one(store, number, Stored(seq, b"{}", b"h"))
    assert [stored.seq for stored in store.read("r")] == [1]


def test_the_short_way_refuses_an_unknown_run():
    with pytest.raises(HeadMovedError):
        append_one(MemoryEventStore(), 7, Stored(1, b"{}", b"h"))


def test_the_short_way_is_taken_back_with_its_block():
    store, events = MemoryEventStore(), log_of_three()
    number = opened(store, events[:1])
    with pytest.raises(KeyError), store.exclusive("r1"):
        append_one(store, number, events[1])
        raise KeyError
    assert [stored.seq for stored in store.read("r")] == [1]


def test_the_short_way_refuses_when_live_runs_fill_the_store():
    store, events = MemoryEventStore(max_events=2), log_of_three()
    number = opened(store, events[:2])
    with pytest.raises(StoreUnavailableError, match="full"):
        append_one(store, number, events[2])


@pytest.mark.parametrize("salt", [b"", b"s" * 32])
@pytest.mark.parametrize("payload", [b"", b"[[1],{}]", b"x" * 10_000])
def test_a_digester_gives_payload_digests(salt, payload):
    digest = digester(salt)
    assert [digest(payload), digest(b"other"), digest(payload)] == [
        payload_digest(salt, payload),
        payload_digest(salt, b"other"),
        payload_digest(salt, payload),
    ]


def test_settling_what_was_reserved_equals_settling_the_same_amounts():
    request = Request({"steps": 1, "emails": 3}, "mail", "tool")
    accounts = [Account("run", Budget(steps=5, emails=9)) for _ in range(2)]
    for account, usage in zip(accounts, (request.reserve, dict(request.reserve)), strict=True):
        account.reserve(request)
        account.settle(request.reserve, usage)
    assert accounts[0].to_data() == accounts[1].to_data()


@pytest.mark.parametrize("warn_at", [0.001, 0.29, 0.5, 0.8, 1])
@pytest.mark.parametrize("limit", [0, 1, 3, 10, 100])
def test_a_reservation_says_that_a_limit_is_near_exactly_from_warn_at_on(limit, warn_at):
    account = Account("run", Budget(steps=limit, warn_at=warn_at))
    for used in range(1, limit + 1):
        assert account.reserve(Request(ONE_STEP, "a", "tool")) == (used >= limit * warn_at)
        assert bool(account.crossed(ONE_STEP)) == (used >= limit * warn_at)


@pytest.mark.parametrize(
    ("options", "examined"),
    [
        ({}, False),
        ({"usage": Usage(emails=1)}, False),
        ({"effect": "read", "durability": "process"}, False),
        ({"kind": "llm", "reserve": Usage(usd=1)}, True),
        ({"key": "once"}, True),
        ({"approval": True}, True),
        ({"reserve": lambda: Usage(emails=1)}, True),
    ],
    ids=["plain", "fixed-usage", "read", "llm", "key", "approval", "reserve-of-the-call"],
)
def test_a_step_is_examined_where_its_options_ask_for_it(options, examined):
    assert step_spec("work", None, options).examined is examined


def test_a_step_that_nothing_is_special_about_has_no_facts_on_record():
    async def work():
        return 1

    spec = step_spec("work", work, {"effect": "idempotent", "key": "k"})
    assert spec.facts == {"effect": "idempotent", "async": True, "keyed": True}
    with Guard.in_memory(telemetry=False) as guard:
        with guard.run("plain") as run:
            run.call("work", lambda: 1)
        assert guard.history(run.id)[2].data == {}
