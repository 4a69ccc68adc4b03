"""A conversation is stored once, and nothing else of a run can tell: on every store."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentguard import Budget, BudgetExceededError, Guard, ReplayDivergenceError, Run
from agentguard._encoding import VALUE_SCHEME
from agentguard.audit.reading import asked_arguments, read_whole
from agentguard.cli import main
from agentguard.fragments import JsonFields, JsonFragment, JsonFragments, fragmented
from agentguard.runs.state import RunState
from agentguard.testing import cassettes

PAGE = Path(__file__).parents[2] / "docs" / "export-format.md"
CALLS = 8
KEY = "sk-proj-abcdefghijklmnopqrstuvwx"  # gitleaks:allow


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def guard(request: pytest.FixtureRequest, home: Path) -> Iterator[Guard]:
    if request.param == "memory":
        opened = Guard.in_memory(telemetry=False)
    elif request.param == "sqlite":
        opened = Guard.open(telemetry=False)
    else:
        opened = Guard.open(request.getfixturevalue("postgres_url"), telemetry=False, store_timeout=10)
    with opened as guard:
        yield guard


@pytest.fixture
def sqlite(home: Path) -> Iterator[Guard]:
    with Guard.open(telemetry=False) as guard:
        yield guard


def messages(count: int, *, tag: str = "") -> list[Any]:
    return [{"role": "user", "content": f"message {number} of {count > 0} {tag}"} for number in range(count)]


def answer(said: Any, tools: Any = None) -> str:
    return "an answer"


def ask(run: Run, said: list[Any], **options: Any) -> Any:
    return run.apply("chat", answer, (JsonFragments.of(said), ["search"]), kind="llm", **options)


def talk(run: Run, calls: int = CALLS, *, tag: str = "") -> None:
    for count in range(1, calls + 1):
        ask(run, messages(2 * count, tag=tag))


def a_run(guard: Guard, calls: int = CALLS) -> str:
    with guard.run("chat", budget=Budget(steps=999)) as run:
        talk(run, calls)
    return run.id


def payloads(guard: Guard, run_id: str) -> list[bytes]:
    """What is stored of the arguments."""
    return [
        stored.payload or b""
        for stored in guard.components.store.read(run_id)
        if b'"type":"step_started"' in stored.body
    ]


def arguments(guard: Guard, run_id: str) -> list[Any]:
    """What people are shown of them."""
    log = read_whole(guard.components.store, run_id)
    return [
        msgspec.json.decode(stored.payload or b"null")
        for stored in log
        if b'"type":"step_started"' in stored.body
    ]


def test_each_message_is_stored_once_and_each_call_reads_whole(guard: Guard) -> None:
    run_id = a_run(guard)
    stored = b"".join(payloads(guard, run_id))
    assert [stored.count(b"message %d of" % number) for number in range(2 * CALLS)] == [1] * (2 * CALLS)
    expected = [[[messages(2 * count), ["search"]], {}] for count in range(1, CALLS + 1)]
    assert arguments(guard, run_id) == expected
    assert guard.verify(run_id)
    assert guard.verify()


def test_what_grows_is_what_is_new(guard: Guard) -> None:
    sizes = [len(b"".join(payloads(guard, a_run(guard, calls)))) for calls in (50, 200)]
    assert sizes[1] < 4.4 * sizes[0]


def test_equal_conversations_have_equal_digests(guard: Guard) -> None:
    """Whoever stored the messages, in whatever order they were first asked with."""
    with guard.run("chat") as run:
        for count in (4, 2, 4, 2):
            ask(run, messages(count))
    digests = [event.data["args"] for event in guard.history(run.id) if event.type == "step_started"]
    assert digests[:2] == digests[2:]
    assert digests[0] != digests[1]


def test_a_changed_message_begins_a_new_line_of_messages(guard: Guard) -> None:
    first, other = messages(6), messages(6)
    other[2] = {"role": "user", "content": "a summary"}
    with guard.run("chat") as run:
        ask(run, first)
        ask(run, other)
        ask(run, first)
    assert [call[0][0] for call in arguments(guard, run.id)] == [first, other, first]
    stored = b"".join(payloads(guard, run.id))
    assert [stored.count(b"message %d of" % number) for number in (0, 1, 5)] == [1, 1, 2]
    assert guard.verify(run.id)


def test_several_conversations_in_one_call_and_by_name_and_in_fields(guard: Guard) -> None:
    said, heard = messages(3), messages(5)
    with guard.run("chat") as run:
        for _ in range(2):
            request = fragmented({"model": "m", "messages": said, "tools": [{"name": "t"}]})
            assert isinstance(request, JsonFields)
            kwargs = {"heard": JsonFragments.of(heard), "none": JsonFragments()}
            run.apply("chat", lambda request, **_: "fine", (request,), kwargs, kind="llm")
    request = {"model": "m", "messages": said, "tools": [{"name": "t"}]}
    assert arguments(guard, run.id) == [[[request], {"heard": heard, "none": []}]] * 2
    assert len(payloads(guard, run.id)[1].splitlines()) == 1
    assert guard.verify(run.id)


def test_threads_that_share_a_conversation_leave_a_log_that_verifies(guard: Guard) -> None:
    with guard.run("chat", budget=Budget(steps=200)) as run:
        start = threading.Barrier(4)

        def work() -> None:
            start.wait(60)
            for count in range(1, CALLS + 1):
                ask(run, messages(count))

        threads = [threading.Thread(target=run.bind(work)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = sorted([messages(count) for count in range(1, CALLS + 1)] * 4, key=len)
    assert sorted((call[0][0] for call in arguments(guard, run.id)), key=len) == expected
    assert guard.verify(run.id)


def test_a_call_that_was_refused_leaves_its_messages_to_the_next(guard: Guard) -> None:
    """What was not appended is not taken to be on record."""
    with guard.run("chat") as run:
        with pytest.raises(BudgetExceededError), run.scope("poor", budget=Budget(steps=0)):
            ask(run, messages(4))
        ask(run, messages(4))
    assert arguments(guard, run.id) == [[[messages(4), ["search"]], {}]]
    assert guard.verify(run.id)


def test_an_erased_run_holds_no_message_and_still_verifies(guard: Guard) -> None:
    run_id = a_run(guard)
    assert guard.erase(run_id, actor="ann") == 2 * CALLS
    assert payloads(guard, run_id) == [b""] * CALLS
    assert guard.verify(run_id)


@pytest.mark.parametrize("level", ["digest", "none"])
def test_nothing_is_stored_where_nothing_is_to_be_captured(level: str, home: Path) -> None:
    with Guard.open(telemetry=False, capture=level) as guard:
        run_id = a_run(guard)
        assert payloads(guard, run_id) == [b""] * CALLS
        assert guard.verify(run_id)
        started = [event.data for event in guard.history(run_id) if event.type == "step_started"]
    assert ["args" in data for data in started] == [level == "digest"] * CALLS


def test_secrets_in_messages_are_not_on_record(guard: Guard) -> None:
    with guard.run("chat") as run:
        ask(run, [*messages(2), {"role": "user", "content": f"my key is {KEY}"}, *messages(2)])
    assert KEY.encode() not in b"".join(payloads(guard, run.id))
    assert "**********" in str(arguments(guard, run.id))
    assert guard.verify(run.id)


# --- replay, recover, fork -----------------------------------------------------------------------


def test_a_replay_serves_it_and_shows_the_message_that_differs(guard: Guard) -> None:
    run_id = a_run(guard)
    with guard.replay(run_id) as run:
        talk(run)
    with pytest.raises(ReplayDivergenceError) as caught, guard.replay(run_id) as run:
        talk(run, 3)
        ask(run, [*messages(7), {"role": "user", "content": "another"}])
    assert caught.value.kind == "arguments"
    assert caught.value.expected[0][0] == messages(8)
    assert caught.value.found[0][0][-1] == {"role": "user", "content": "another"}
    (note,) = caught.value.__notes__
    assert '-        "content": "message 7 of True "' in note
    assert "message 6" not in note.replace('         "content": "message 6', "")


def test_a_recovered_run_stores_no_message_again(sqlite: Guard) -> None:
    program = f"""
import os
from agentguard import Budget, Guard
from tests.integration.test_conversations import talk
guard = Guard.open(telemetry=False)
with guard.run("chat", run_id="r", budget=Budget(steps=99)) as run:
    talk(run, {CALLS // 2})
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PAGE.parents[1])
    with sqlite.recover("r") as run:
        talk(run)
    assert run.state is RunState.COMPLETED
    stored = b"".join(payloads(sqlite, "r"))
    assert [stored.count(b"message %d of" % number) for number in range(2 * CALLS)] == [1] * (2 * CALLS)
    assert sqlite.verify("r")


def test_an_attached_process_stores_no_message_again(sqlite: Guard) -> None:
    with sqlite.run("chat", run_id="r", budget=Budget(steps=99)) as run:
        talk(run, 2)
        program = f"""
from agentguard import Guard
from tests.integration.test_conversations import talk
with Guard.open(telemetry=False) as guard, guard.attach("r", branch="other") as run:
    talk(run, {CALLS})
"""
        subprocess.run([sys.executable, "-c", program], check=True, cwd=PAGE.parents[1])
        talk(run, CALLS)
    stored = b"".join(payloads(sqlite, "r"))
    assert [stored.count(b"message %d of" % number) for number in range(2 * CALLS)] == [1] * (2 * CALLS)
    assert sqlite.verify("r")


def test_a_fork_is_served_and_has_its_messages_in_its_own_log(guard: Guard) -> None:
    run_id = a_run(guard)
    at = [event.seq for event in guard.history(run_id) if event.type == "step_completed"][3]
    with guard.fork(run_id, at=at) as run:
        talk(run, 4)
        ask(run, messages(9, tag="other"))
    assert arguments(guard, run.id) == [[[messages(9, tag="other"), ["search"]], {}]]
    assert guard.verify()
    assert guard.diff(run_id, run.id).differences[0].kind == "arguments"
    with guard.replay(run.id) as again:
        talk(again, 4)
        ask(again, messages(9, tag="other"))


def test_repeats_are_counted_by_the_whole_conversation(guard: Guard) -> None:
    with pytest.raises(BudgetExceededError), guard.run("chat", budget=Budget(repeats=3)) as run:
        for count in (2, 4, 2, 6, 2):
            ask(run, messages(count))
    assert run.spent.steps == 4


def test_an_approval_shows_the_conversation_and_binds_to_it(
    guard: Guard, eventually: Callable[[Callable[[], object]], None]
) -> None:
    with guard.run("chat") as run:
        ask(run, messages(2))
        thread = threading.Thread(target=run.bind(lambda: ask(run, messages(4), approval=True)))
        thread.start()
        eventually(guard.approvals)
        key, store = guard.approvals()[0].key, guard.components.store
        eventually(lambda: asked_arguments(store, run.id, key) is not None)
        assert msgspec.json.decode(asked_arguments(store, run.id, key) or b"")[0][0] == messages(4)
        guard.approve(run.id, key, actor="ann")
        thread.join()
    assert arguments(guard, run.id)[1][0][0] == messages(4)
    assert guard.verify(run.id)


def test_two_runs_are_compared_by_what_was_said(guard: Guard) -> None:
    one, two = a_run(guard, 3), a_run(guard, 3)
    assert not guard.diff(one, two)
    with guard.run("chat", budget=Budget(steps=99)) as run:
        talk(run, 2)
        ask(run, messages(6, tag="other"))
    (difference,) = guard.diff(one, run.id).differences
    assert (difference.kind, difference.a[0][0]) == ("arguments", messages(6))


# --- on its way out ------------------------------------------------------------------------------


def test_a_stranger_verifies_its_export(sqlite: Guard, tmp_path: Path) -> None:
    sqlite.export(a_run(sqlite), tmp_path / "run.jsonl")
    assert stranger(tmp_path, lambda payload: payload) == ""
    with Guard.open(f"file://{tmp_path / 'run.jsonl'}") as exported:
        assert exported.verify()
        (run,) = exported.runs()
        assert arguments(exported, run.run_id)[-1][0][0] == messages(2 * CALLS)


def stranger(folder: Path, change: Callable[[bytes], bytes]) -> str:
    """What the program on the page has to say of an export, the arguments of whose third call were changed."""
    code = re.search(r"<!-- verifier -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    (folder / "verify.py").write_text(code[1])
    lines = (folder / "run.jsonl").read_text().splitlines()
    at = [number for number, line in enumerate(lines) if '"type":"step_started"' in line][2]
    head, _, event = lines[at].partition(',"event":')
    entry = json.loads(head + "}")
    changed = json.dumps(entry | {"payload": change(entry["payload"].encode()).decode()})
    lines[at] = f'{changed[:-1]},"event":{event}'
    (folder / "changed.jsonl").write_text("".join(f"{line}\n" for line in lines))
    command = [sys.executable, "-I", "-S", str(folder / "verify.py"), str(folder / "changed.jsonl")]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_show_prints_the_conversation(sqlite: Guard, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = a_run(sqlite)
    assert main(["show", run_id, "--payloads", "--json"]) == 0
    events = json.loads(capsys.readouterr().out)["events"]
    shown = [event["payload"] for event in events if event["type"] == "step_started"]
    assert shown[-1][0][0] == messages(2 * CALLS)


def test_a_cassette_keeps_it_as_it_was_said(guard: Guard, tmp_path: Path) -> None:
    run_id = a_run(guard)
    cassettes.write(guard.components.store, run_id, tmp_path / "chat.jsonl")
    assert "message 3 of True" in (tmp_path / "chat.jsonl").read_text()
    with Guard.in_memory(telemetry=False) as other:
        assert cassettes.read(tmp_path / "chat.jsonl", other.components.store) == run_id
        assert other.verify(run_id)
        assert arguments(other, run_id) == arguments(guard, run_id)
        with other.replay(run_id) as run:
            talk(run)


# --- tampering -----------------------------------------------------------------------------------


def _lines(payload: bytes, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    first, *lines = payload.split(b"\n")
    return b"\n".join([first, *change(lines)])


TAMPERED: dict[str, Callable[[bytes], bytes]] = {
    "a word": lambda payload: payload.replace(b"message", b"massage", 1),
    "the last message is gone": lambda payload: _lines(payload, lambda lines: lines[:-1]),
    "the first message is gone": lambda payload: _lines(payload, lambda lines: lines[1:]),
    "all are gone": lambda payload: payload.split(b"\n")[0],
    "the order of the lines": lambda payload: _lines(payload, lambda lines: lines[::-1]),
    "one more": lambda payload: _lines(payload, lambda lines: [*lines, b"0" * 64 + b'"more"']),
    "one more that follows": lambda payload: _lines(payload, lambda lines: [*lines, lines[0]]),
    "no message": lambda payload: payload + b"\n",
    "another start": lambda payload: _lines(payload, lambda lines: [b"f" * 64 + lines[0][64:], *lines[1:]]),
    "the first line": lambda payload: payload.replace(b"search", b"serach", 1),
    "no JSON": lambda payload: payload.replace(b'"call":', b'"call":{', 1),
    "the call alone": lambda payload: b'[[[],["search"]],{}]',
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_verify_finds_every_change_of_a_message_where_it_was_made(
    sqlite: Guard, change: Callable[[bytes], bytes]
) -> None:
    run_id = a_run(sqlite)
    with closing(sqlite3.connect(sqlite.components.store.path)) as file, file:  # type: ignore[attr-defined]
        file.execute("DROP TRIGGER event_stays_as_it_is")
        rows = file.execute(
            "SELECT key, payload FROM event WHERE instr(body, CAST('step_started' AS BLOB))"
        ).fetchall()
        key, payload = rows[2]
        assert change(payload) != payload
        file.execute("UPDATE event SET payload = ? WHERE key = ?", (change(payload), key))
    (fault,) = sqlite.verify(run_id).faults
    assert (fault.run_id, fault.seq) == (run_id, key & 0xFFFFFFFF)
    assert main(["show", run_id, "--payloads", "--json"]) in {0, 4}


def test_a_stranger_finds_every_change_of_what_was_said(sqlite: Guard, tmp_path: Path) -> None:
    sqlite.export(a_run(sqlite), tmp_path / "run.jsonl")
    for name, change in TAMPERED.items():
        if not name.startswith(("one more", "the order of the lines")):  # which change nothing that was said
            assert "Error" in stranger(tmp_path, change), name


def test_a_result_that_looks_like_a_conversation_is_a_result(guard: Guard) -> None:
    looks = {"conversations": [[[0, 0], "f" * 64]], "call": [[None], {}]}
    with guard.run("chat") as run:
        assert run.call("tool", lambda: looks) == looks
        ask(run, [looks])
    assert guard.verify(run.id)
    assert arguments(guard, run.id)[1][0][0] == [looks]
    with guard.replay(run.id) as again:
        assert again.call("tool", dict) == looks
        ask(again, [looks])


def test_a_fragment_alone_is_no_conversation(guard: Guard) -> None:
    with guard.run("chat") as run:
        run.apply("chat", answer, (JsonFragment(messages(2)),), kind="llm")
    assert payloads(guard, run.id) == [msgspec.json.encode([[messages(2)], {}])]


def test_a_log_of_before_goes_on_as_it_began(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its conversations inside the calls, so that their digests are those on record."""
    with Guard.open(telemetry=False) as guard:
        monkeypatch.setattr("agentguard.sessions.live.VALUE_SCHEME", 2)
        run_id = a_run(guard, 3)
        monkeypatch.setattr("agentguard.sessions.live.VALUE_SCHEME", VALUE_SCHEME)
        assert arguments(guard, run_id) == [
            msgspec.json.decode(payload) for payload in payloads(guard, run_id)
        ]
        with guard.replay(run_id) as run:
            talk(run, 3)
        at = guard.summary(run_id).head.seq
        with guard.fork(run_id, at=at) as run:
            talk(run, 4)
        assert payloads(guard, run.id) == [msgspec.json.encode([[messages(8), ["search"]], {}])]
        assert guard.verify()
