"""Exports: verified by a stranger from the file alone, and read back as a guard."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard import (
    AgentGuardError,
    Budget,
    Guard,
    KillSwitchUnavailableError,
    LogIntegrityError,
    StoreUnavailableError,
    guarded_step,
)
from agentguard.errors import RunNotFoundError
from agentguard.events.codec import chain, encode, genesis
from agentguard.events.model import Record
from agentguard.testing import FakeClock, FakeIds

PAGE = Path(__file__).parents[2] / "docs" / "export-format.md"
#: Everything that could be mistaken for the frame of a line.
AWKWARD = 'né\n"},"event":{"seq":9,"hash":"}\u2028\\"'


class Reversed:
    """A codec whose bytes are no text."""

    @staticmethod
    def encode(value: str) -> bytes:
        return b"\xff\x00" + value.encode()

    @staticmethod
    def decode(payload: bytes) -> str:
        return payload[2:].decode()


@guarded_step
def echo(text: str) -> str:
    return text


@guarded_step(codec=Reversed)
def binary(text: str) -> str:
    return text


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program on the page, as it stands there."""
    code = re.search(r"<!-- verifier -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    file = tmp_path_factory.mktemp("stranger") / "verify.py"
    file.write_text(code[1])
    return file


@pytest.fixture
def guard(home: Path) -> Iterator[Guard]:
    with Guard.open(telemetry=False, ids=FakeIds(), clock=FakeClock()) as guard:
        yield guard


@pytest.fixture
def runs(guard: Guard) -> list[str]:
    """Two runs, one of them with payloads of every kind, and a kill of another run."""
    with guard.run(
        "first", tenant="acme", inputs={"q": AWKWARD}, metadata={AWKWARD: 1, "args": "x"}
    ) as first:
        echo(AWKWARD)
        binary(AWKWARD)
        assert first.call("nested", lambda: echo("x")) == "x"
    with guard.run("second", budget=Budget(steps=5)) as second:
        echo("plain")
    guard.kill(run="nobody", reason=AWKWARD, actor="ann")
    return [first.id, second.id]


def ask(verifier: Path, file: Path) -> subprocess.CompletedProcess[str]:
    """The stranger's verdict: another process, without our package."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(verifier), str(file)], capture_output=True, text=True, check=False
    )


def test_the_verifier_on_the_page_is_short_and_imports_nothing_of_ours(verifier: Path) -> None:
    lines = verifier.read_text().strip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 20
    assert re.findall(r"^(?:import|from) .*$", verifier.read_text(), re.MULTILINE) == [
        "import base64, hashlib, json, sys"
    ]


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(("what", "size"), [("run-1", (1, 11)), ("control", (1, 1)), (None, (3, 17))])
def test_a_stranger_verifies_an_export_from_the_file_alone(
    guard: Guard, verifier: Path, tmp_path: Path, what: str | None, size: tuple[int, int]
) -> None:
    file = tmp_path / "export.jsonl"
    assert guard.export(what, file) == size
    verdict = ask(verifier, file)
    logs, events = size
    assert verdict.stdout == f"intact: {events} events of {logs} logs\n", verdict.stderr
    assert verdict.returncode == 0


def test_it_holds_the_bytes_and_hashes_of_the_store_verbatim(
    guard: Guard, runs: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "run.jsonl"
    guard.export(runs[0], file)
    lines = [line for line in file.read_bytes().split(b"\n") if line.startswith(b'{"hash":')]
    for line, stored in zip(lines, guard.components.store.read(runs[0]), strict=True):
        assert line.endswith(b',"event":' + stored.body + b"}")
        assert json.loads(line)["hash"] == stored.hash.hex()


def test_a_file_is_private_and_replaced_only_when_it_is_complete(
    guard: Guard, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text("what was there")
    with pytest.raises(RunNotFoundError):
        guard.export("nobody", file)
    assert file.read_text() == "what was there"
    monkeypatch.setattr(os, "fsync", _disk_full)
    with pytest.raises(OSError, match="disk full"):
        guard.export(runs[0], file)
    assert file.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [file], "no part of it is left behind"
    monkeypatch.undo()
    guard.export(runs[0], file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def _disk_full(descriptor: int) -> None:
    raise OSError("disk full")


def test_a_pipe_is_written_to_and_not_replaced(guard: Guard, runs: list[str], tmp_path: Path) -> None:
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        guard.export(runs[0], pipe)
        read = reader.communicate()[0]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    guard.export(runs[0], file)
    assert read.splitlines()[1:] == file.read_bytes().splitlines()[1:]  # the first line says when


def test_it_can_be_written_to_an_open_file(guard: Guard, runs: list[str], tmp_path: Path) -> None:
    sink = io.BytesIO()
    guard.export(runs[0], sink)
    guard.export(runs[0], tmp_path / "run.jsonl")
    assert sink.getvalue() == (tmp_path / "run.jsonl").read_bytes()
    assert not sink.closed


def test_a_log_is_written_as_it_is_read(
    guard: Guard, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never more than one event is held: each is written before the next is asked for."""
    store, order = guard.components.store, []
    read = store.read

    def watched(run_id: str, after: int = 0) -> Any:
        for stored in read(run_id, after):
            order.append(f"read {stored.seq}")
            yield stored

    class Sink:
        def write(self, data: bytes) -> None:
            if data.startswith(b'{"hash"'):
                order.append(f"write {len([o for o in order if o.startswith('write')]) + 1}")

    monkeypatch.setattr(store, "read", watched)
    guard.export(runs[1], Sink())
    # What is read after that tells whether it was forked from another run.
    assert order[:10] == [f"{what} {seq}" for seq in range(1, 6) for what in ("read", "write")]
    assert not any(act.startswith("write") for act in order[10:])


def test_an_erased_run_is_exported_without_payloads_and_still_verifies(
    guard: Guard, runs: list[str], verifier: Path, tmp_path: Path
) -> None:
    guard.erase(runs[0])
    file = tmp_path / "run.jsonl"
    guard.export(runs[0], file)
    assert b'"payload' not in file.read_bytes().replace(b'"payload_erased"', b"")
    assert ask(verifier, file).returncode == 0
    with Guard.open(f"file://{file}", telemetry=False) as exported:
        assert exported.verify()


def test_a_live_run_can_be_exported(guard: Guard, verifier: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    with guard.run("live") as run:
        echo("a")
        assert guard.export(run.id, file) == (1, 4)
        echo("b")
    assert ask(verifier, file).returncode == 0
    with Guard.open(f"file://{file}", telemetry=False) as exported:
        summary = exported.summary(run.id)
        assert (summary.state, summary.steps) == ("RUNNING", 1)
        assert exported.verify()


# --- what is found -------------------------------------------------------------------------------


def edit(lines: list[bytes]) -> None:
    lines[4] = lines[4].replace(b'"attempt":1', b'"attempt":2')


def delete(lines: list[bytes]) -> None:
    del lines[4]
    lines[-1] = lines[-1].replace(b'"events":11', b'"events":10')


def insert(lines: list[bytes]) -> None:
    lines.insert(4, lines[4])


def reorder(lines: list[bytes]) -> None:
    lines[4], lines[5] = lines[5], lines[4]


def truncate(lines: list[bytes]) -> None:
    del lines[-1]


def cut_in_half(lines: list[bytes]) -> None:
    del lines[7:]


def rename(lines: list[bytes]) -> None:
    lines[1] = lines[1].replace(b'"run_id":"run-1"', b'"run_id":"run-7"')


def change_payload(lines: list[bytes]) -> None:
    lines[2] = lines[2].replace(b'"payload":"{', b'"payload":"{ ')


def change_binary_payload(lines: list[bytes]) -> None:
    at = next(n for n, line in enumerate(lines) if b"payload_base64" in line)
    lines[at] = lines[at].replace(b'"payload_base64":"', b'"payload_base64":"AAAA')


def wrong_count(lines: list[bytes]) -> None:
    lines[-1] = lines[-1].replace(b'"events":11', b'"events":10')


TAMPERINGS = [edit, delete, insert, reorder, truncate, cut_in_half, rename, change_payload]
TAMPERINGS += [change_binary_payload, wrong_count]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_tampering_is_found_by_the_stranger_and_by_us(
    guard: Guard, runs: list[str], verifier: Path, tmp_path: Path, tamper: Callable[[list[bytes]], None]
) -> None:
    file = tmp_path / "run.jsonl"
    guard.export(runs[0], file)
    lines = file.read_bytes().splitlines(keepends=True)
    before = list(lines)
    tamper(lines)
    assert lines != before
    file.write_bytes(b"".join(lines))
    assert ask(verifier, file).returncode != 0
    with Guard.open(f"file://{file}", telemetry=False) as exported:
        report = exported.verify()
        assert not report
        assert report.faults[0].run_id in ("run-1", "run-7")


def test_a_full_rewrite_is_found_against_an_anchor_alone(
    guard: Guard, runs: list[str], verifier: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.jsonl"
    anchor = guard.summary(runs[1]).head
    guard.export(runs[1], file)
    header, run, *events, end = file.read_bytes().splitlines()
    head, forged = genesis(runs[1]), [header]
    for line in events:
        body = line.partition(b',"event":')[2][:-1].replace(b'"echo"', b'"oche"')
        head = chain(head, body)
        payload = (
            b'"payload":%s,' % json.dumps(json.loads(line)["payload"]).encode()
            if b'"payload"' in line
            else b""
        )
        forged.append(b'{"hash":"%s",%s"event":%s}' % (head.hex().encode(), payload, body))
    forged.insert(1, run.replace(anchor.hash.encode(), head.hex().encode()))
    file.write_bytes(b"\n".join([*forged, end, b""]))
    assert ask(verifier, file).returncode == 0
    with Guard.open(f"file://{file}", telemetry=False) as exported:
        assert exported.verify()
        report = exported.verify(anchors={runs[1]: anchor})
        assert report.faults[0].problem == "it is not the event that the anchor names"


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (4, b'{"hash":"zz","event":{"seq":3,"type":"x","at_ns":1}}\n'),
        (4, b'{"hash":"00"}\n'),
        (4, b"\xff\xfe\n"),
        (4, b"\n"),
        (4, b'{"hash":"00","payload_base64":"!","event":{"seq":3}}\n'),
    ],
    ids=["no hash", "no event", "no text", "empty", "no base64"],
)
def test_a_line_that_is_no_event_is_named(
    guard: Guard, runs: list[str], tmp_path: Path, number: int, line: bytes
) -> None:
    file = tmp_path / "run.jsonl"
    guard.export(runs[0], file)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number] = line
    file.write_bytes(b"".join(lines))
    with Guard.open(f"file://{file}", telemetry=False) as exported:
        assert exported.verify().faults[0][:2] == (runs[0], number - 1)
        with pytest.raises(LogIntegrityError) as caught:
            exported.history(runs[0])
        assert (caught.value.run_id, caught.value.seq) == (runs[0], number - 1)


NO_EXPORT = {
    "a text": b"hello\n",
    "empty": b"",
    "of a newer format": b'{"agentguard_export":2}\n',
    "an event before a run": b'{"agentguard_export":1}\n{"hash":"00","event":{}}\n',
    "a run without an id": b'{"agentguard_export":1}\n{"run":{}}\n',
    "a run without a summary": b'{"agentguard_export":1}\n{"run":{"run_id":"r"}}\n',
    "a salt that is none": b'{"agentguard_export":1}\n{"run":{"run_id":"control","salt":"zz"}}\n',
    "a wrong last line": b'{"agentguard_export":1}\n{"end":5}\n',
}


@pytest.mark.parametrize("content", NO_EXPORT.values(), ids=NO_EXPORT)
def test_what_is_no_export_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.jsonl"
    file.write_bytes(content)
    with (
        Guard.open(f"file://{file}", telemetry=False) as guard,
        pytest.raises(StoreUnavailableError) as caught,
    ):
        guard.runs()
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("rewrite", "named"),
    [
        (lambda text: text.replace(b"\n", b"\r\n"), "CRLF"),
        (lambda text: text.replace(b"\n", b"\r\n", 1), "CRLF"),
        (lambda text: b"\xef\xbb\xbf" + text, r"byte order mark \(UTF-8\)"),
        (lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"), r"byte order mark \(UTF-8\)"),
        (lambda text: text.decode().encode("utf-16"), r"byte order mark \(UTF-16\)"),
        (lambda text: text.decode().encode("utf-32"), r"byte order mark \(UTF-32\)"),
    ],
    ids=["crlf", "one crlf", "bom", "bom and crlf", "utf-16", "utf-32"],
)
def test_what_a_text_tool_did_to_an_export_is_named(
    guard: Guard,
    runs: list[str],
    tmp_path: Path,
    rewrite: Callable[[bytes], bytes],
    named: str,
) -> None:
    file = tmp_path / "run.jsonl"
    guard.export(runs[0], file)
    file.write_bytes(rewrite(file.read_bytes()))
    with (
        Guard.open(f"file://{file}", telemetry=False) as opened,
        pytest.raises(StoreUnavailableError, match=named),
    ):
        opened.verify()


def test_a_crlf_in_the_middle_of_an_export_is_named_with_its_event(
    guard: Guard, runs: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "run.jsonl"
    guard.export(runs[0], file)
    head, mark, rest = file.read_bytes().partition(b'"seq":2,')
    file.write_bytes(head + mark + rest.replace(b"\n", b"\r\n", 1))
    with Guard.open(f"file://{file}", telemetry=False) as opened:
        (fault,) = opened.verify().faults
    assert fault.seq == 2
    assert "CRLF" in fault.problem


# --- reading it back -----------------------------------------------------------------------------


def test_an_export_answers_what_its_store_answered(guard: Guard, runs: list[str], tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    guard.export(None, file)
    anchors = {run_id: guard.summary(run_id).head for run_id in runs}
    with Guard.open(f"file://{file}", telemetry=False) as exported:
        for run_id in runs:
            history = [_without_position(event) for event in guard.history(run_id)]
            assert [_without_position(event) for event in exported.history(run_id)] == history
            assert exported.summary(run_id) == exported.reconstruct(run_id) == guard.summary(run_id)
        assert exported.runs() == guard.runs()
        assert exported.runs(tenant="acme") == guard.runs(tenant="acme")
        assert exported.runs(state="RUNNING") == []
        assert exported.runs(limit=1) == guard.runs(limit=1)
        assert exported.kills() == guard.kills()
        assert len(exported.history("control")) == 1
        assert exported.verify(anchors=anchors).anchored
        assert not exported.diff(runs[0], runs[0])
        with exported.replay(runs[1]):
            assert echo("plain") == "plain"


def _without_position(event: Any) -> list[Any]:
    return [getattr(event, name) for name in event.__struct_fields__ if name != "position"]


def test_events_of_an_export_can_be_followed_by_position(
    guard: Guard, runs: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "all.jsonl"
    guard.export(None, file)
    with Guard.open(f"file://{file}", telemetry=False) as exported:
        events = exported.events()
        assert [(event.run_id, event.seq) for event in events] == [
            (run_id, event.seq) for run_id in runs for event in guard.history(run_id)
        ]
        assert exported.events(after=events[7].position, limit=3) == events[8:11]
        assert {event.run_id for event in exported.events(tenant="acme")} == {runs[0]}
        assert exported.events(after=events[-1].position) == []


def test_children_of_a_run_are_found_in_an_export(guard: Guard, tmp_path: Path) -> None:
    with guard.run("outer") as outer, guard.run("inner") as inner:
        echo("a")
    guard.export(None, tmp_path / "all.jsonl")
    with Guard.open(f"file://{tmp_path / 'all.jsonl'}", telemetry=False) as exported:
        assert [row.run_id for row in exported.components.store.children(outer.id)] == [inner.id]
        after = exported.components.store.read(inner.id, after=3)
        assert [stored.seq for stored in after] == [4, 5]
        last = exported.components.store.last(inner.id)
        assert last is not None
        assert last.hash.hex() == guard.summary(inner.id).head.hash


WRITING: dict[str, Callable[[Guard], Any]] = {
    "run": lambda guard: guard.run("new").__enter__(),
    "attach": lambda guard: guard.attach("run-1").__enter__(),
    "fork": lambda guard: guard.fork("run-1", at=3).__enter__(),
    "kill": lambda guard: guard.kill(reason="why"),
    "revive": lambda guard: guard.revive(),
    "pause": lambda guard: guard.pause("run-1"),
    "resume": lambda guard: guard.resume("run-1"),
    "erase": lambda guard: guard.erase("run-1"),
    "prune": lambda guard: guard.prune(0),
    "set_tenant_budget": lambda guard: guard.set_tenant_budget("acme", Budget(usd=1)),
    "store.create": lambda guard: guard.components.store.create(guard.components.store.rows()[0], []),
    "store.append": lambda guard: guard.components.store.append(1, []),
    "store.update_row": lambda guard: guard.components.store.update_row(guard.components.store.rows()[0]),
    "store.erase": lambda guard: guard.components.store.erase("run-1"),
    "store.prune": lambda guard: guard.components.store.prune(0),
    "store.accounts": lambda guard: guard.components.store.accounts(["tenant:acme"]),
}


@pytest.mark.parametrize("write", WRITING.values(), ids=WRITING)
def test_an_export_is_read_only(
    guard: Guard, runs: list[str], tmp_path: Path, write: Callable[[Guard], Any]
) -> None:
    file = tmp_path / "all.jsonl"
    guard.export(None, file)
    before = file.read_bytes()
    with (
        Guard.open(f"file://{file}", telemetry=False) as exported,
        pytest.raises((StoreUnavailableError, KillSwitchUnavailableError), match=r"read-only|is an export"),
    ):
        write(exported)
    assert file.read_bytes() == before


def test_an_export_of_one_run_has_an_empty_control_log(guard: Guard, runs: list[str], tmp_path: Path) -> None:
    guard.export(runs[0], tmp_path / "run.jsonl")
    with Guard.open(f"file://{tmp_path / 'run.jsonl'}", telemetry=False) as exported:
        assert exported.history("control") == []
        assert exported.kills() == []
        assert exported.acknowledged(1) == (0, 0, 0.0)
        assert exported.verify()


def test_a_url_names_an_absolute_path_or_one_below_the_current_directory(
    guard: Guard, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    guard.export(runs[0], "my run.jsonl")
    for url in (
        "file:///my%20run.jsonl",
        f"file://{tmp_path}/my%20run.jsonl",
        f"file:////{tmp_path}/my run.jsonl",
    ):
        with Guard.open(url, telemetry=False) as exported:
            assert [run.run_id for run in exported.runs()] == [runs[0]]
    for url in ("file://", "file:///", "file://run.jsonl", "file://host/run.jsonl"):
        with pytest.raises(ValueError, match="names no file"):
            Guard.open(url).runs()
    with pytest.raises(StoreUnavailableError, match="nowhere"):
        Guard.open("file:///nowhere.jsonl").runs()


def test_a_closed_export_refuses(guard: Guard, runs: list[str], tmp_path: Path) -> None:
    guard.export(runs[0], tmp_path / "run.jsonl")
    exported = Guard.open(f"file://{tmp_path / 'run.jsonl'}", telemetry=False)
    store = exported.components.store
    assert exported.runs()
    exported.close()
    for read in (store.rows, lambda: list(store.read(runs[0]))):
        with pytest.raises(StoreUnavailableError, match="closed"):
            read()


def test_a_home_is_not_touched_to_read_an_export(
    guard: Guard, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard.export(runs[0], tmp_path / "run.jsonl")
    monkeypatch.setenv("AGENTGUARD_HOME", str(tmp_path / "other-home"))
    with Guard.open(f"file://{tmp_path / 'run.jsonl'}", telemetry=False) as exported:
        assert exported.verify()
    assert not (tmp_path / "other-home").exists()


def test_an_event_of_a_newer_schema_is_exported_as_it_is(
    guard: Guard, runs: list[str], tmp_path: Path
) -> None:
    """Bytes are never decoded on the way, so an export outlives the library that wrote it."""
    store = guard.components.store
    row = store.row(runs[0])
    last = store.last(runs[0])
    assert row is not None
    assert last is not None
    body = encode(Record(last.seq + 1, "of_the_future", 1, v=99))
    store.append(
        row.number, [last._replace(seq=last.seq + 1, body=body, hash=chain(last.hash, body), payload=None)]
    )
    assert guard.export(runs[0], tmp_path / "run.jsonl").events == 12
    with (
        Guard.open(f"file://{tmp_path / 'run.jsonl'}", telemetry=False) as exported,
        pytest.raises(AgentGuardError, match="newer"),
    ):
        exported.history(runs[0])
