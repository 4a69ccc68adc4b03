"""`verify` against every way to tamper with a log, and what it says where it cannot know."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentguard import Budget, Guard, LogIntegrityError, RunStopped, Usage, guarded_step
from agentguard.audit.verify import reconstruct
from agentguard.events import codec
from agentguard.events.model import Head
from agentguard.steps.log import row_of
from tests.kit import wait_until


@guarded_step(usage=Usage(usd="0.1"))
def pay(to: str) -> str:
    return f"paid {to}"


@pytest.fixture
def recorded(sqlite_guard) -> tuple[Guard, str]:
    """A guard, and the id of a run of ten events, the second of three."""
    for name in ("before", "victim", "after"):
        with sqlite_guard.run(name, run_id=name, inputs={"q": name}):
            for to in ("ann", "bob", "eve"):
                pay(to)
    assert sqlite_guard.verify()
    return sqlite_guard, "victim"


class Tamperer:
    """Somebody with write access to the file, for whom triggers are no obstacle."""

    def __init__(self, guard: Guard, run_id: str) -> None:
        self.path = Path(guard.components.store.path)
        self.run_id = run_id

    def __call__(self, *statements: tuple) -> None:
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall():
                connection.execute(f'DROP TRIGGER "{name}"')
            for statement, *parameters in statements:
                connection.execute(statement, parameters)

    @property
    def number(self) -> int:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute("SELECT number FROM run WHERE run_id = ?", (self.run_id,)).fetchone()[0]

    def event(self, seq: int) -> tuple[bytes, bytes, bytes | None]:
        with closing(sqlite3.connect(self.path)) as connection:
            found = connection.execute(
                "SELECT body, hash, payload FROM event WHERE key = ? << 32 | ?", (self.number, seq)
            ).fetchone()
        return tuple(value.encode() if isinstance(value, str) else value for value in found)


def first_fault(guard: Guard, **options) -> tuple[str, int]:
    report = guard.verify(**options)
    assert not report
    assert report.faults[0].problem in str(report)
    assert not guard.verify("victim", **options)
    return report.faults[0][:2]


def test_an_intact_log(recorded):
    guard, run_id = recorded
    report = guard.verify()
    assert report
    assert (report.faults, report.runs, report.anchored) == ((), 3, False)
    assert report.events == sum(len(guard.history(row.run_id)) for row in guard.runs())
    assert "truncation not excluded" in str(report)
    one = guard.verify(run_id, anchors={run_id: guard.summary(run_id).head})
    assert one.anchored
    assert "truncation" not in str(one)


@pytest.mark.parametrize("seq", range(1, 10))
def test_an_edited_event_is_found_at_its_sequence(recorded, seq):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    body = tamper.event(seq)[0]
    edited = body.replace(b'"at_ns":1', b'"at_ns":2')
    assert edited != body
    tamper(("UPDATE event SET body = ? WHERE key = ? << 32 | ?", edited, tamper.number, seq))
    assert first_fault(guard) == (run_id, seq)


def test_an_edited_hash_is_found(recorded):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    tamper(("UPDATE event SET hash = ? WHERE key = ? << 32 | 4", bytes(32), tamper.number))
    assert first_fault(guard) == (run_id, 4)


def test_an_event_edited_with_a_hash_that_fits_is_found_at_the_next(recorded):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    edited = tamper.event(4)[0].replace(b"100000000", b"1")
    digest = codec.chain(tamper.event(3)[1], edited)
    tamper(("UPDATE event SET body = ?, hash = ? WHERE key = ? << 32 | 4", edited, digest, tamper.number))
    assert first_fault(guard) == (run_id, 5)


@pytest.mark.parametrize("seq", [3, 4])
def test_an_edited_payload_is_found(recorded, seq):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    assert tamper.event(seq)[2] is not None
    tamper(("UPDATE event SET payload = ? WHERE key = ? << 32 | ?", b'"forged"', tamper.number, seq))
    assert first_fault(guard) == (run_id, seq)


def test_payloads_that_changed_places_are_found(recorded):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    first, second = tamper.event(4)[2], tamper.event(6)[2]
    update = "UPDATE event SET payload = ? WHERE key = ? << 32 | ?"
    tamper((update, second, tamper.number, 4), (update, first, tamper.number, 6))
    assert first_fault(guard) == (run_id, 4)


@pytest.mark.parametrize("seq", [1, 2, 5, 8])
def test_a_deleted_event_is_found(recorded, seq):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    tamper(("DELETE FROM event WHERE key = ? << 32 | ?", tamper.number, seq))
    assert first_fault(guard) == (run_id, seq)


def test_an_inserted_event_is_found(recorded):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    head = guard.summary(run_id).head
    body = tamper.event(head.seq)[0].replace(b'"seq":9', b'"seq":10')
    forged = codec.chain(bytes(32), body)
    tamper(
        (
            "INSERT INTO event (key, at, body, hash) VALUES (? << 32 | ?, 0, ?, ?)",
            tamper.number,
            head.seq + 1,
            body,
            forged,
        )
    )
    assert first_fault(guard) == (run_id, head.seq + 1)


def test_reordered_events_are_found(recorded):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    swap = "UPDATE event SET key = key + ? WHERE key = ? << 32 | ?"
    tamper((swap, 996, tamper.number, 4), (swap, -2, tamper.number, 6), (swap, -994, tamper.number, 1000))
    assert first_fault(guard) == (run_id, 4)


def test_an_event_of_another_run_is_found(recorded):
    """The chain begins with the run's id."""
    guard, run_id = recorded
    tamper, other = Tamperer(guard, run_id), Tamperer(guard, "before")
    body, digest, payload = other.event(1)
    update = "UPDATE event SET body = ?, hash = ?, payload = ? WHERE key = ? << 32 | 1"
    tamper((update, body, digest, payload, tamper.number))
    assert first_fault(guard) == (run_id, 1)


def test_a_log_cut_off_does_not_fit_the_row_of_a_run_that_has_ended(recorded):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    tamper(("DELETE FROM event WHERE key >> 32 = ? AND key & 4294967295 > 6", tamper.number))
    assert first_fault(guard) == (run_id, 7)


def test_a_log_cut_off_with_its_row_is_found_against_an_anchor_alone(recorded):
    guard, run_id = recorded
    anchor = guard.summary(run_id).head
    tamper = Tamperer(guard, run_id)
    tamper(("DELETE FROM event WHERE key >> 32 = ? AND key & 4294967295 > 6", tamper.number))
    store = guard.components.store
    row = row_of(store.row(run_id), reconstruct(store, store.row(run_id)))
    state = "UPDATE run SET state = ?, ended_ns = ?, summary = ? WHERE number = ?"
    tamper((state, row.state, row.ended_ns, json.dumps(row.summary), tamper.number))
    assert guard.verify(run_id), "nothing in the file says that there was more"
    assert first_fault(guard, anchors={run_id: anchor}) == (run_id, 7)


def test_a_log_rewritten_whole_is_found_against_an_anchor(recorded):
    guard, run_id = recorded
    anchor = guard.summary(run_id).head
    tamper = Tamperer(guard, run_id)
    head, statements = codec.genesis(run_id), []
    for seq in range(1, anchor.seq + 1):
        body = tamper.event(seq)[0].replace(b"100000000", b"1")
        head = codec.chain(head, body)
        statements.append(
            ("UPDATE event SET body = ?, hash = ? WHERE key = ? << 32 | ?", body, head, tamper.number, seq)
        )
    old = guard.components.store.row(run_id).summary["head"]["hash"]
    statements.append(
        ("UPDATE run SET summary = replace(summary, ?, ?) WHERE number = ?", old, head.hex(), tamper.number)
    )
    tamper(*statements)
    assert guard.verify(run_id), "a chain proves nothing against somebody who rewrites all of it"
    report = guard.verify(run_id, anchors={run_id: anchor})
    assert report.faults[0][:2] == (run_id, anchor.seq)
    assert "anchor" in report.faults[0].problem


def test_a_body_that_says_another_sequence_is_found(recorded):
    """Also where hash and row were made to fit."""
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    head = guard.summary(run_id).head
    body = tamper.event(head.seq)[0].replace(b'"seq":%d,' % head.seq, b'"seq":%d,' % (head.seq - 1))
    digest = codec.chain(tamper.event(head.seq - 1)[1], body)
    tamper(
        (
            "UPDATE event SET body = ?, hash = ? WHERE key = ? << 32 | ?",
            body,
            digest,
            tamper.number,
            head.seq,
        ),
        (
            "UPDATE run SET summary = replace(summary, ?, ?) WHERE number = ?",
            head.hash,
            digest.hex(),
            tamper.number,
        ),
    )
    assert first_fault(guard) == (run_id, head.seq)


def test_a_lost_run_is_found_against_an_anchor(recorded):
    guard, run_id = recorded
    anchor = guard.summary(run_id).head
    tamper = Tamperer(guard, run_id)
    number = tamper.number
    tamper(("DELETE FROM event WHERE key >> 32 = ?", number), ("DELETE FROM run WHERE number = ?", number))
    assert guard.verify()
    report = guard.verify(anchors={run_id: anchor})
    assert [fault[:2] for fault in report.faults] == [(run_id, 0)]


@pytest.mark.parametrize(
    "change",
    [
        "state = 'FAILED'",
        "ended_ns = ended_ns + 1",
        "name = 'other'",
        "tenant = 'other'",
        "parent_id = 'before'",
    ],
)
def test_a_row_that_says_otherwise_is_found(recorded, change):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    tamper((f"UPDATE run SET {change} WHERE number = ?", tamper.number))
    assert first_fault(guard)[0] == run_id


def test_one_fault_hides_no_other_run(recorded):
    guard, _ = recorded
    for run_id in ("before", "after"):
        tamper = Tamperer(guard, run_id)
        tamper(("UPDATE event SET hash = ? WHERE key = ? << 32 | 3", bytes(32), tamper.number))
    report = guard.verify()
    assert sorted(fault[:2] for fault in report.faults) == [("after", 3), ("before", 3)]
    assert "(and 1 more)" in str(report)
    assert guard.verify("victim")


def test_reconstruct_refuses_a_broken_chain(recorded):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    edited = tamper.event(4)[0].replace(b"100000000", b"1")
    tamper(("UPDATE event SET body = ? WHERE key = ? << 32 | 4", edited, tamper.number))
    with pytest.raises(LogIntegrityError) as raised:
        guard.reconstruct(run_id)
    assert (raised.value.run_id, raised.value.seq) == (run_id, 4)


def test_a_head_that_is_older_or_newer_than_the_log(recorded):
    guard, run_id = recorded
    for event in guard.history(run_id):
        assert guard.verify(run_id, anchors={run_id: Head(event.seq, event.hash)})
        assert guard.verify(run_id, anchors={run_id: (event.seq, event.hash)})
    assert not guard.verify(run_id, anchors={run_id: (99, "0" * 64)})


@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_byte_of_any_event_counts(data):
    """Flip one bit of a body, a hash or a payload: the first fault is at that event."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/a.db"
        with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
            with suppress(RunStopped), guard.run("victim", run_id="victim", budget=Budget(usd="0.2")):
                for to in ("ann", "bob", "eve"):
                    pay(to)
            # Drawn without looking at the log, whose bytes are others in every run.
            seq = data.draw(st.integers(1, 7), label="seq")
            column = data.draw(st.sampled_from(["body", "hash", "payload"]), label="column")
            place = data.draw(st.integers(0, 10**6), label="place")
            bit = data.draw(st.integers(0, 6), label="bit")
            tamper = Tamperer(guard, "victim")
            parts = dict(zip(("body", "hash", "payload"), tamper.event(seq), strict=True))
            column = column if parts[column] else "body"
            value = bytearray(parts[column])
            value[place % len(value)] ^= 1 << bit
            tamper(
                (f"UPDATE event SET {column} = ? WHERE key = ? << 32 | ?", bytes(value), tamper.number, seq)
            )
            report = guard.verify("victim")
            assert [fault[:2] for fault in report.faults] == [("victim", seq)]


# --- the row beside the log --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("usage", {"usd": "0.1", "steps": 3}),
        ("usage", {"usd": "0.3", "steps": 3, "emails": 1}),
        ("steps", 2),
        ("termination", {"type": "BudgetExceededError", "message": "x"}),
        ("state", "FAILED"),
        ("budget", {"usd": "9"}),
        ("metadata", {"who": "me"}),
        ("warnings", [{"level": "", "resource": "usd"}]),
        ("started_at", "2020-01-01T00:00:00+00:00"),
        ("ended_at", "2020-01-01T00:00:00+00:00"),
        ("duration", 0.0),
        ("name", "other"),
        ("tenant", "other"),
        ("parent_id", "before"),
    ],
)
def test_a_summary_edited_in_the_row_is_found(recorded, field, value):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    summary = guard.components.store.row(run_id).summary
    assert summary[field] != value
    summary[field] = value
    tamper(("UPDATE run SET summary = ? WHERE number = ?", json.dumps(summary), tamper.number))
    assert first_fault(guard)[0] == run_id
    assert field.replace("_", " ") in guard.verify().faults[0].problem


def test_the_row_of_a_live_run_is_held_against_its_log_as_of_its_head(sqlite_guard):
    """What has been appended since the row was written is no fault; what was edited in it is."""
    with sqlite_guard.run("live", run_id="live") as run:
        pay("ann")
        run.pause("wait")
        run.resume()
        pay("bob")
        assert sqlite_guard.verify("live")
        tamper = Tamperer(sqlite_guard, "live")
        tamper(
            (
                "UPDATE run SET summary = replace(summary, '\"steps\":1', '\"steps\":7') WHERE number = ?",
                tamper.number,
            )
        )
        assert sqlite_guard.verify("live").faults[0].run_id == "live"


def test_every_kind_of_run_fits_its_row(sqlite_guard):
    """Scopes, nested runs, failures, stops, values, warnings, late settlements: no false alarm."""
    guard = sqlite_guard
    with (
        suppress(RunStopped),
        guard.run("outer", run_id="outer", budget=Budget(usd="0.5", warn_at=0.5)) as run,
    ):
        run.record("v", lambda: 1)
        with run.scope("part", budget=Budget(steps=5)):
            pay("ann")
        with guard.run("inner", run_id="inner"):
            pay("bob")
        with suppress(ZeroDivisionError):
            run.call("fails", lambda: 1 / 0)
        assert guard.verify(), str(guard.verify())
        for _ in range(9):
            pay("eve")
    report = guard.verify()
    assert report, str(report)
    assert guard.summary("outer").warnings


# --- payloads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [1, 3, 4])
def test_a_payload_deleted_without_an_erasure_on_record_is_found(recorded, seq):
    guard, run_id = recorded
    tamper = Tamperer(guard, run_id)
    assert tamper.event(seq)[2] is not None
    tamper(("UPDATE event SET payload = NULL WHERE key = ? << 32 | ?", tamper.number, seq))
    assert first_fault(guard) == (run_id, seq)
    assert "its payload is gone" in guard.verify().faults[0].problem


def test_what_an_operator_was_shown_is_a_payload_too(sqlite_guard):
    """An approval that hides what it is for is no approval."""
    paying = guarded_step(approval=True)(lambda to: to)
    with sqlite_guard.run("r", run_id="r") as run:
        thread = threading.Thread(target=run.bind(lambda: paying("eve")))
        thread.start()
        wait_until(sqlite_guard.approvals)
        [asked] = sqlite_guard.approvals()
        sqlite_guard.approve("r", asked.key, actor="ann")
        thread.join()
    assert sqlite_guard.verify()
    [seq] = [event.seq for event in sqlite_guard.history("r") if event.type == "approval_requested"]
    tamper = Tamperer(sqlite_guard, "r")
    tamper(("UPDATE event SET payload = NULL WHERE key = ? << 32 | ?", tamper.number, seq))
    fault = sqlite_guard.verify("r").faults[0]
    assert (fault.seq, fault.problem) == (seq, "its payload is gone, and no erasure is on record")


@pytest.mark.parametrize("capture", ["digest", "none"])
def test_a_payload_that_was_never_kept_is_no_fault(tmp_path, capture):
    with Guard.open(
        f"sqlite:///{tmp_path / 'events.db'}", kill_switch="memory", telemetry=False, capture=capture
    ) as guard:
        with guard.run("r", inputs={"q": 1}, budget=Budget(usd=1, repeats=9)) as run:
            pay("ann")
            run.call("list", lambda given: given, [1, 2])
            run.record("value", lambda: {"args": "x", "result": "y"})
        report = guard.verify()
        assert report, str(report)


@pytest.mark.parametrize("garbled", [b"{}", b"no event"], ids=["altered", "not to be decoded"])
def test_a_live_run_with_a_damaged_log_hides_no_other_in_the_list(recorded, garbled):
    guard, _ = recorded
    with guard.run("live", run_id="live"):
        pay("ann")
        with Guard.open(guard.components.store.url, telemetry=False) as other:
            tamper = Tamperer(guard, "live")
            tamper(("UPDATE event SET body = ? WHERE key = ? << 32 | 4", garbled, tamper.number))
            rows = {row.run_id: row for row in other.runs()}
            assert set(rows) == {"live", "before", "victim", "after"}
            assert "event 4" in rows["live"].damaged
            assert (rows["live"].name, rows["live"].state) == ("live", "RUNNING")
            assert "damaged" in str(rows["live"])
            assert [rows[name].damaged for name in ("before", "victim", "after")] == [None] * 3
            assert not other.verify("live")
            with pytest.raises(LogIntegrityError):
                other.summary("live")


# --- rows that say something else ----------------------------------------------------------------


def in_row(text: str, other: str) -> tuple:
    return ("UPDATE run SET summary = replace(summary, ?, ?) WHERE run_id = 'victim'", text, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (in_row('"run_id":"victim"', '"run_id":"before"'), "the row's summary belongs to another run"),
        (in_row('"seq":9', '"seq":99'), "the log ends before event 99"),
        (("UPDATE run SET salt = NULL WHERE run_id = 'victim'",), "it has a payload though"),
        (
            ("DELETE FROM event WHERE key >> 32 = (SELECT number FROM run WHERE run_id = 'victim')",),
            "the log ends before event 9",
        ),
    ],
    ids=["another run's summary", "a head that is not there", "no salt", "no events"],
)
def test_a_row_that_says_something_else_than_its_log_is_found(recorded, change, said):
    guard, run_id = recorded
    Tamperer(guard, run_id)(change)
    report = guard.verify(run_id)
    assert not report
    assert said in str(report.faults[0]), report.faults
    assert guard.verify("before")
