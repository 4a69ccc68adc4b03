"""What is encoded comes back: events, usages, budgets, summaries, values; and any change to a byte shows."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard import Budget, LogIntegrityError, RunState, RunSummary, Usage
from agentguard._encoding import clean_text, encode_call
from agentguard.budget import resources
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.model import Head, Record
from agentguard.runs.branch import MAIN, Branch, key_segment
from agentguard.runs.summary import from_data
from agentguard.runs.termination import stop_from, termination

settings.register_profile("round_trips", deadline=None, max_examples=80)
SETTINGS = settings(settings.get_profile("round_trips"))

TYPES = sorted(value for name, value in vars(ev).items() if name.isupper() and isinstance(value, str))
text = st.text(max_size=20)
int64 = st.integers(0, 2**63 - 1)
counts = st.integers(0, 2**40)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
finite = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
records = st.builds(
    Record,
    seq=st.integers(1, 2**53),
    type=st.sampled_from(TYPES),
    at_ns=int64,
    key=st.none() | text,
    pos=st.integers(0, 2**31),
    name=st.none() | text,
    kind=st.none() | text,
    attempt=st.integers(0, 100),
    duration_ns=st.none() | int64,
    usage=st.none() | st.dictionaries(text, int64, max_size=4),
    spent=st.none() | st.dictionaries(text, int64, max_size=4),
    data=st.none() | st.dictionaries(text, finite, max_size=4),
    trace_id=st.none() | text,
    span_id=st.none() | text,
)


# --- events ----------------------------------------------------------------------------------------


@SETTINGS
@given(records)
def test_a_record_comes_back_as_it_was(record):
    body = codec.encode(record)
    assert codec.decode(body) == record
    assert codec.encode(codec.decode(body)) == body
    assert body.startswith(b'{"seq":%d,"type":"%s",' % (record.seq, record.type.encode()))


@SETTINGS
@given(records, st.binary(min_size=32, max_size=32), text)
def test_an_event_says_what_its_record_says(record, prev, run_id):
    body = codec.encode(record)
    stored = Stored(record.seq, body, codec.chain(prev, body), None, 7)
    event = codec.to_event(run_id, stored, prev)
    for name in (
        "seq",
        "type",
        "at_ns",
        "key",
        "name",
        "kind",
        "attempt",
        "duration_ns",
        "trace_id",
        "span_id",
    ):
        assert getattr(event, name) == getattr(record, name)
    assert (event.run_id, event.position) == (run_id, 7)
    assert event.data == (record.data or {})
    assert (event.usage is None) == (record.usage is None)
    if record.usage is not None:
        assert event.usage.amounts() == {k: n for k, n in record.usage.items() if n}
    assert bytes.fromhex(event.prev_hash) == prev
    assert bytes.fromhex(event.hash) == codec.chain(bytes.fromhex(event.prev_hash), body)
    assert msgspec.json.decode(msgspec.json.encode(event.data)) == event.data


@SETTINGS
@given(records, st.binary(min_size=32, max_size=32), st.data())
def test_any_change_to_a_body_or_its_predecessor_changes_the_hash(record, prev, data):
    body = codec.encode(record)
    position = data.draw(st.integers(0, len(body) - 1))
    changed = bytearray(body)
    changed[position] ^= data.draw(st.integers(1, 255))
    assert codec.chain(prev, bytes(changed)) != codec.chain(prev, body)
    other = bytearray(prev)
    other[data.draw(st.integers(0, 31))] ^= 1
    assert codec.chain(bytes(other), body) != codec.chain(prev, body)


@SETTINGS
@given(text, text)
def test_a_log_is_bound_to_its_run(one, other):
    assert (codec.genesis(one) == codec.genesis(other)) == (one == other)


@SETTINGS
@given(st.binary(max_size=200))
def test_garbage_is_no_record(body):
    try:
        record = codec.decode(body)
    except LogIntegrityError:
        return
    assert codec.decode(codec.encode(record)) == record


def test_a_newer_schema_is_not_read():
    newer = codec.encode(msgspec.structs.replace(Record(1, ev.RUN_CREATED, 0), v=ev.SCHEMA_VERSION + 1))
    with pytest.raises(LogIntegrityError, match="newer"):
        codec.decode(newer)


# --- budgets and usages ----------------------------------------------------------------------------

money = st.decimals(0, 9_000_000, places=9, allow_nan=False, allow_infinity=False)
names = st.sampled_from(["emails", "refunds", "pages"])
usages = st.builds(
    lambda usd, i, o, c, counters: Usage(usd, i, o, c, **counters),
    money,
    counts,
    counts,
    counts,
    st.dictionaries(names, counts, max_size=3),
)
budgets = st.builds(
    lambda fields, calls, counters: Budget(
        **{k: v for k, v in fields.items() if v is not None}, calls=calls, **counters
    ),
    st.fixed_dictionaries(
        {
            "usd": st.none() | money,
            "tokens": st.none() | counts,
            "steps": st.none() | counts,
            "seconds": st.none() | st.floats(0, 10**6),
            "repeats": st.none() | counts,
            "warn_at": st.floats(0.01, 1),
            "enforce": st.booleans(),
        }
    ),
    st.none() | st.dictionaries(text.filter(lambda name: name and name != "kind:"), counts, max_size=2),
    st.dictionaries(names, counts, max_size=3),
)


@SETTINGS
@given(usages)
def test_a_usage_comes_back_from_its_amounts(usage):
    assert Usage.from_amounts(usage.amounts()) == usage
    assert all(isinstance(n, int) for n in usage.amounts().values())


@SETTINGS
@given(usages, usages, usages)
def test_usages_add_up(a, b, c):
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Usage() == a
    assert a <= a + b
    assert (a + b).usd == a.usd + b.usd
    assert (a <= b <= a) == (a == b)


@SETTINGS
@given(budgets)
def test_a_budget_comes_back_from_its_fields(budget):
    fields = msgspec.json.decode(msgspec.json.encode(budget.to_fields()))
    again = Budget.from_fields(fields)
    assert again == budget
    assert again.limits == budget.limits
    assert (again.calls, again.repeats, again.warn_at, again.enforce) == (
        budget.calls,
        budget.repeats,
        budget.warn_at,
        budget.enforce,
    )


@SETTINGS
@given(st.decimals(0, 9_000_000, allow_nan=False, allow_infinity=False))
def test_money_is_rounded_up_as_usage_and_down_as_a_limit(amount):
    step = Decimal("1e-9")
    assert amount <= Usage(usd=amount).usd < amount + step
    assert amount - step < Budget(usd=amount).usd <= amount


@SETTINGS
@given(st.floats(0, 9_000_000))
def test_a_float_is_taken_by_its_shortest_text(amount):
    assert Usage(usd=amount) == Usage(usd=repr(amount))


@SETTINGS
@given(st.integers(0, 2**63 - 1))
def test_public_money_is_exact(nano):
    assert resources.nano_usd(resources.usd(min(nano, 9_223_372_036 * 10**9)), "usd") == min(
        nano, 9_223_372_036 * 10**9
    )


# --- summaries and terminations --------------------------------------------------------------------

moments = st.none() | st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@SETTINGS
@given(
    st.builds(
        RunSummary,
        run_id=text,
        name=text,
        tenant=text,
        state=st.sampled_from(RunState),
        steps=counts,
        usage=usages,
        budget=budgets,
        started_at=moments,
        ended_at=moments,
        duration=st.none() | st.floats(0, 10**6),
        termination=st.none() | st.dictionaries(text, finite, max_size=3),
        head=st.builds(Head, counts, text),
        metadata=st.dictionaries(text, finite, max_size=3),
        parent_id=st.none() | text,
        bounded=st.booleans(),
    )
)
def test_a_summary_comes_back_from_its_row(summary):
    data = msgspec.json.decode(msgspec.json.encode(summary.to_data()))
    assert from_data(data) == summary
    assert isinstance(str(summary), str)


@pytest.mark.parametrize("resource", ["usd", "tokens", "seconds", "emails"])
@SETTINGS
@given(nanos=st.tuples(*[int64] * 4), scope=text, run_id=st.none() | text)
def test_a_budget_stop_comes_back_from_the_log(resource, nanos, scope, run_id):
    from agentguard import BudgetExceededError

    internal = {"usd": "nano_usd"}.get(resource, resource)
    amounts = [resources.public_amount(internal, n) for n in nanos]
    stop = BudgetExceededError(resource, *amounts, scope, run_id)
    again = stop_from(msgspec.json.decode(msgspec.json.encode(termination(stop))))
    assert again.facts() == stop.facts()
    assert str(again) == str(stop)


@SETTINGS
@given(st.sampled_from(["run", "tenant", "global"]), text, st.none() | text, moments, st.none() | text)
def test_a_kill_comes_back_from_the_log(scope, reason, actor, at, run_id):
    from agentguard import KillSwitchTriggeredError

    stop = KillSwitchTriggeredError(scope, reason, actor, at, run_id)
    again = stop_from(msgspec.json.decode(msgspec.json.encode(termination(stop))))
    assert again.facts() == stop.facts()


# --- values and names ------------------------------------------------------------------------------


@SETTINGS
@given(st.lists(plain, max_size=3), st.dictionaries(text, plain, max_size=3))
def test_arguments_can_always_be_encoded(args, kwargs):
    payload = encode_call(args, kwargs)
    positional, named = msgspec.json.decode(payload)
    assert len(positional) == len(args)
    assert len(named) == len(kwargs)


@SETTINGS
@given(st.text(st.characters(codec=None), max_size=50))
def test_any_text_can_be_cleaned(dirty):
    clean = clean_text(dirty)
    clean.encode()
    assert clean_text(clean) == clean
    if not any(0xD800 <= ord(c) <= 0xDFFF for c in dirty):
        assert clean == dirty


@SETTINGS
@given(text, text)
def test_names_in_keys_never_collide(one, other):
    assert (key_segment(one) == key_segment(other)) == (one == other)
    assert not set(key_segment(one)) & {"/", "#"}


@SETTINGS
@given(st.lists(st.tuples(st.sampled_from(["call", "child"]), text.filter(bool)), max_size=12))
def test_keys_and_branches_never_collide(moves):
    seen: set[str] = set()
    branches = [Branch(MAIN)]
    for kind, name in moves:
        if kind == "call":
            key = branches[-1].next_key(key_segment(name))
            assert key not in seen
            seen.add(key)
        else:
            child = branches[-1].child(name)
            assert child.path not in seen
            seen.add(child.path)
            branches.append(child)
