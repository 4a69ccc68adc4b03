"""Signed checkpoints: anchors that show what was cut off, rewritten or lost, and that nobody can alter."""

from __future__ import annotations

import base64
import builtins
import json
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentguard import Guard, guarded_step
from agentguard._optional import MissingExtraError
from agentguard.audit import checkpoint
from agentguard.audit.checkpoint import (
    CheckpointError,
    new_key,
    public_key,
    read_checkpoint,
    write_checkpoint,
)
from agentguard.audit.verify import reconstruct
from agentguard.errors import RunNotFoundError
from agentguard.events.model import Head
from agentguard.steps.log import row_of
from agentguard.stores.sqlite import SQLiteEventStore
from agentguard.testing import FakeClock, FakeIds

HEADS = {"b": Head(2, "b" * 64), "a run's id": Head(1, "a" * 64)}


@guarded_step
def echo(text: str) -> str:
    return text


@pytest.fixture
def guard(home: Path) -> Iterator[Guard]:
    with Guard.open(telemetry=False, ids=FakeIds(), clock=FakeClock()) as guard:
        for tenant in ("acme", "other"):
            with guard.run("r", tenant=tenant):
                echo("a")
        guard.kill(run="nobody", reason="why", actor="ann")
        yield guard


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "key.pem"


@pytest.fixture
def public(key: Path) -> str:
    return new_key(key)


def cut_off(home: Path, run_id: str, seq: int) -> None:
    """Truncate a log and make its row fit, as somebody with the file and time can."""
    with sqlite3.connect(home / "agentguard.db") as connection:
        for trigger in ("event_stays", "run_stays", "event_stays_as_it_is"):
            connection.execute(f"DROP TRIGGER {trigger}")
        number = "(SELECT number FROM run WHERE run_id = ?)"
        connection.execute(
            f"DELETE FROM event WHERE key >> 32 = {number} AND key & 4294967295 > ?", (run_id, seq)
        )
    connection.close()
    if seq:
        with closing(SQLiteEventStore(home / "agentguard.db")) as store, store.exclusive("r1"):
            row = store.row(run_id)
            assert row is not None
            row = row_of(row, reconstruct(store, row))
            store._database().writer.run(
                "UPDATE run SET state = ?, ended_ns = ?, summary = ? WHERE run_id = ?",
                (row.state, row.ended_ns, json.dumps(row.summary), run_id),
                wait=1.0,
            )


def test_an_intact_store_verifies_against_its_checkpoint(
    guard: Guard, key: Path, public: str, tmp_path: Path
) -> None:
    signed = guard.checkpoint(tmp_path / "heads", key=key)
    anchors = read_checkpoint(tmp_path / "heads", public)
    assert anchors == signed
    assert anchors.keys() == {"run-1", "run-2", "control"}
    assert anchors["run-1"] == guard.summary("run-1").head
    report = guard.verify(anchors=anchors)
    assert report
    assert report.anchored
    with guard.run("later"):
        echo("a")
    assert guard.verify(anchors=anchors), "a log may grow: an anchor does not say that it ends"


def test_a_truncation_is_found_against_a_checkpoint(
    guard: Guard, key: Path, public: str, tmp_path: Path, home: Path
) -> None:
    guard.checkpoint(tmp_path / "heads", key=key)
    guard.close()
    cut_off(home, "run-2", 3)
    with Guard.open(telemetry=False) as again:
        assert again.verify(), "without an anchor nobody can tell"
        report = again.verify(anchors=read_checkpoint(tmp_path / "heads", public))
    assert [fault[:2] for fault in report.faults] == [("run-2", 4)]


def test_a_lost_run_is_found_against_a_checkpoint(
    guard: Guard, key: Path, public: str, tmp_path: Path, home: Path
) -> None:
    guard.checkpoint(tmp_path / "heads", key=key)
    guard.close()
    cut_off(home, "run-2", 0)
    with sqlite3.connect(home / "agentguard.db") as connection:
        connection.execute("DELETE FROM run WHERE run_id = 'run-2'")
    connection.close()
    with Guard.open(telemetry=False) as again:
        report = again.verify(anchors=read_checkpoint(tmp_path / "heads", public))
    assert [(fault.run_id, fault.problem) for fault in report.faults] == [
        ("run-2", "an anchor names this run, and it is gone")
    ]


def test_a_control_log_that_was_cut_off_is_found_against_a_checkpoint(
    guard: Guard, key: Path, public: str, tmp_path: Path
) -> None:
    anchors = guard.checkpoint(tmp_path / "heads", key=key)
    assert guard.verify("control", anchors=anchors).anchored
    with Guard.in_memory(telemetry=False) as fresh:
        report = fresh.verify("control", anchors=anchors)
    assert [fault[:2] for fault in report.faults] == [("control", 1)]


def test_a_checkpoint_is_of_one_run_or_a_tenant_or_all(
    guard: Guard, key: Path, public: str, tmp_path: Path
) -> None:
    file = tmp_path / "heads"
    assert guard.checkpoint(file, key=key, run_id="run-1").keys() == {"run-1"}
    assert guard.checkpoint(file, key=key, tenant="other").keys() == {"run-2"}
    assert guard.checkpoint(file, key=key, run_id="control").keys() == {"control"}
    assert read_checkpoint(file, public).keys() == {"control"}
    with pytest.raises(RunNotFoundError):
        guard.checkpoint(file, key=key, run_id="nobody")


def test_a_live_run_is_anchored_at_its_newest_event(
    guard: Guard, key: Path, public: str, tmp_path: Path
) -> None:
    with guard.run("live") as run:
        echo("a")
        head = guard.checkpoint(tmp_path / "heads", key=key)[run.id]
        assert head == run.summary().head
        echo("b")
    assert guard.verify(anchors=read_checkpoint(tmp_path / "heads", public))


# --- the file ------------------------------------------------------------------------------------


def test_the_same_heads_time_and_key_give_the_same_file(key: Path, public: str, tmp_path: Path) -> None:
    for name, heads in (("1", HEADS), ("2", dict(reversed(HEADS.items())))):
        write_checkpoint(tmp_path / name, heads, key=key, at_ns=1_500_000_000)
    text = (tmp_path / "1").read_text()
    assert (tmp_path / "2").read_text() == text
    note, _, signature = text.rpartition("\n\n")
    assert note.splitlines() == [
        "agentguard checkpoint",
        "1970-01-01T00:00:01.500000+00:00",
        f"1 {'a' * 64} a run's id",
        f"2 {'b' * 64} b",
    ]
    assert signature.startswith("— agentguard ")
    assert read_checkpoint(tmp_path / "1", public) == HEADS


def test_a_checkpoint_is_a_signed_note_that_others_can_check(key: Path, public: str, tmp_path: Path) -> None:
    """C2SP signed-note: 4 bytes of key id, then Ed25519 over the text up to the empty line."""
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    write_checkpoint(tmp_path / "heads", HEADS, key=key, at_ns=0)
    note, _, last = (tmp_path / "heads").read_bytes().rpartition(b"\n\n")
    signature = base64.b64decode(last.split()[-1])
    name, key_id, encoded = public.split("+", 2)
    assert name == "agentguard"
    assert signature[:4].hex() == key_id
    algorithm, *raw = base64.b64decode(encoded)
    assert algorithm == 1
    ed25519.Ed25519PublicKey.from_public_bytes(bytes(raw)).verify(signature[4:], note + b"\n")


def test_a_signature_has_one_form(key: Path, public: str, tmp_path: Path) -> None:
    """Bits of the last character that mean nothing must be as they were written."""
    file = tmp_path / "heads"
    write_checkpoint(file, HEADS, key=key, at_ns=0)
    text = file.read_text()
    assert text[-2:] == "=\n"
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = alphabet[alphabet.index(text[-3]) + 1]
    assert base64.b64decode(text[-93:-3] + other + "=") == base64.b64decode(text[-93:-1])
    file.write_text(text[:-3] + other + "=\n")
    with pytest.raises(CheckpointError):
        read_checkpoint(file, public)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_checkpoint_of_which_any_byte_was_changed_is_refused(
    key: Path, public: str, tmp_path: Path
) -> None:
    file = tmp_path / "heads"
    write_checkpoint(file, HEADS, key=key, at_ns=0)
    whole = file.read_bytes()
    for at in range(len(whole) - 1):
        file.write_bytes(flip(whole, at))
        with pytest.raises(CheckpointError):
            read_checkpoint(file, public)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda text: text.replace("2 b", "3 b"),
        lambda text: text.replace(f"2 {'b' * 64} b\n", ""),
        lambda text: text.replace("\n\n", f"\n9 {'c' * 64} c\n\n"),
        lambda text: text.partition("\n\n")[0] + "\n",
        lambda text: "",
        lambda text: text.replace("— agentguard ", "— somebody "),
        lambda text: text.replace("— agentguard ", "— agentguard !"),
        lambda text: "agentguard checkpoint\n" + text,
    ],
    ids=["changed", "removed", "added", "unsigned", "empty", "other name", "no base64", "line before"],
)
def test_a_tampered_checkpoint_is_refused(key: Path, public: str, tmp_path: Path, tamper: Any) -> None:
    file = tmp_path / "heads"
    write_checkpoint(file, HEADS, key=key, at_ns=0)
    text = file.read_text()
    tampered = tamper(text)
    assert tampered != text
    file.write_text(tampered)
    with pytest.raises(CheckpointError):
        read_checkpoint(file, public)


def test_a_checkpoint_of_another_key_is_refused(key: Path, public: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "heads", HEADS, key=key, at_ns=0)
    other = new_key(tmp_path / "other.pem")
    with pytest.raises(CheckpointError, match="not signed with the key"):
        read_checkpoint(tmp_path / "heads", other)


def test_what_else_the_key_has_signed_is_no_checkpoint(
    key: Path, public: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "ORIGIN", "something else")
    write_checkpoint(tmp_path / "note", HEADS, key=key, at_ns=0)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(tmp_path / "note", public)
    write_checkpoint(tmp_path / "note", {"a": Head(1, "not a hash")}, key=key, at_ns=0)
    with pytest.raises(CheckpointError, match="no head"):
        read_checkpoint(tmp_path / "note", public)
    (tmp_path / "note").write_bytes(b"\xff\xfe\n\n")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_checkpoint(tmp_path / "note", public)


# --- keys ----------------------------------------------------------------------------------------


def test_a_private_key_is_its_users_alone_and_never_overwritten(key: Path, public: str) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(FileExistsError):
        new_key(key)
    assert key.read_bytes() == before
    assert public_key(key) == public
    assert public_key(before) == public


@pytest.mark.parametrize(
    "wrong", ["", "agentguard", "agentguard+00000000+AAAA", "other+a+b", "a+b+!", "ssh-ed25519 AAAA"]
)
def test_a_text_that_is_no_public_key_is_refused(key: Path, public: str, tmp_path: Path, wrong: str) -> None:
    write_checkpoint(tmp_path / "heads", HEADS, key=key, at_ns=0)
    with pytest.raises(CheckpointError, match="key"):
        read_checkpoint(tmp_path / "heads", wrong)


def test_a_key_that_is_no_ed25519_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("hello")
    with pytest.raises(CheckpointError, match="PEM"):
        public_key(tmp_path / "no.pem")
    other = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "X25519"], capture_output=True, check=False
    ).stdout or pytest.skip("no openssl here")
    with pytest.raises(CheckpointError, match="must be an Ed25519 key"):
        public_key(other)


def test_without_the_extra_a_checkpoint_says_what_to_install(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    really = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ImportError(name)
        return really(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", without)
    for use in (
        lambda: new_key(tmp_path / "key.pem"),
        lambda: guard.checkpoint(tmp_path / "heads", key=b"pem"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'agentguard\[crypto\]'"):
            use()
    assert not (tmp_path / "key.pem").exists()
    assert not (tmp_path / "heads").exists()
