"""SQLite files whose rows are whole and whose indexes or schema are not: nobody goes on as if nothing were there."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from agentguard import Guard, LogIntegrityError, StoreUnavailableError, guarded_step
from agentguard.cli import main

#: Enough for an index of several pages, whose upper entries are in a page above.
RUNS = [f"job-{n:07}" for n in range(300)]
INDEX = {2, 10}


@guarded_step
def pay(value: int) -> int:
    return value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / "whole.db"
    with Guard.open(f"sqlite:///{file}", kill_switch="memory", telemetry=False) as guard:
        with guard.run("outer", run_id="outer"), guard.run("inner", run_id="inner"):
            pay(1)
        for run_id in RUNS:
            with guard.run("job", run_id=run_id):
                pass
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("VACUUM")  # which leaves no old copies of entries
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file.read_bytes()


@pytest.fixture
def file(home: Path, whole: bytes) -> Path:
    file = home / "agentguard.db"
    home.mkdir(exist_ok=True, mode=0o700)
    file.write_bytes(whole)
    file.chmod(0o600)
    return file


def opened() -> Guard:
    return Guard.open(kill_switch="memory", telemetry=False)


def damage(file: Path, kinds: set[int], old: bytes, new: bytes) -> None:
    """Write other bytes over the first of those in b-tree pages of a kind: 2 and 10 are an index's."""
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    for page in range(size, len(data), size):
        if data[page] in kinds and (at := data.find(old, page, page + size)) >= 0:
            data[at : at + len(new)] = new
            file.write_bytes(data)
            return
    raise AssertionError(f"{old!r} is in no such page")


@pytest.mark.parametrize("hidden", [RUNS[0], RUNS[1], RUNS[137], RUNS[-1], "inner"])
@pytest.mark.parametrize("at", [0, 3, -1])
@pytest.mark.parametrize("byte", [b" ", b"5", b"\xff"])
def test_a_run_that_its_index_hides_is_a_fault_and_is_not_begun_anew(
    file: Path, hidden: str, at: int, byte: bytes
) -> None:
    entry = bytearray(hidden.encode())
    entry[at] = byte[0]
    damage(file, INDEX, hidden.encode(), bytes(entry))
    with opened() as guard:
        report = guard.verify()
        assert hidden in {fault.run_id for fault in report.faults}
        assert all("index" in fault.problem for fault in report.faults)
        for ask in (guard.summary, guard.history, guard.verify):
            with pytest.raises(LogIntegrityError, match="agentguard verify"):
                ask(hidden)
        for if_exists in ("recover", "error"):
            with (
                pytest.raises(LogIntegrityError, match="agentguard verify"),
                guard.run("job", run_id=hidden, if_exists=if_exists),
            ):
                pay(1)
        assert len(guard.runs(limit=1000)) == len(RUNS) + 2


@pytest.mark.parametrize("column", ["tenant", "state"])
def test_an_index_of_another_column_that_hides_runs_is_a_fault(file: Path, column: str) -> None:
    """An index that was made when the rows held something else."""
    with closing(sqlite3.connect(file)) as connection, connection:
        (kept,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = ?", (f"run_by_{column}",)
        ).fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = sql || ' WHERE number > 7' WHERE name = ?", (f"run_by_{column}",)
        )
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"REINDEX run_by_{column}")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (kept, f"run_by_{column}"))
    with opened() as guard:
        faults = guard.verify().faults
        assert {fault.run_id for fault in faults} == {"outer", "inner", *RUNS[:5]}
        assert f"index by {column}" in faults[0].problem


def test_an_index_with_an_entry_too_many_is_a_fault(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE run SET fed = 0")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ' WHERE fed = 0', '') WHERE name = 'run_not_fed'"
        )
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE run SET fed = 1 WHERE run_id = 'inner'")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = sql || ' WHERE fed = 0' WHERE name = 'run_not_fed'"
        )
    with opened() as guard:
        (fault,) = guard.verify().faults
        assert fault.run_id == "?"
        assert "run_not_fed" in fault.problem


def test_doctor_and_verify_tell_of_a_hidden_run_and_reindex_mends_it(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(file, INDEX, b"job-0000137", b"job-0000939")
    assert main(["doctor", "--json"]) == 1
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["indexes"]["status"] == "FAULT"
    assert "job-0000137" in checks["indexes"]["detail"]
    assert main(["verify"]) == 1
    assert "run job-0000137" in capsys.readouterr().out
    assert main(["verify", "job-0000137"]) == 1
    capsys.readouterr()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("REINDEX")
    assert main(["verify"]) == 0
    assert main(["verify", "job-0000137"]) == 0


@pytest.mark.parametrize("at", [0, 28, 56])
def test_a_schema_that_is_no_text_is_an_error_of_the_store(
    file: Path, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(file.read_bytes())
    start = data.index(b"CREATE INDEX run_by_tenant") + 13  # of its name on
    data[start + at % 30] = 0xFF
    data[start + 4 + at % 17] = 0xFE
    file.write_bytes(data)
    with opened() as guard:
        for ask in (
            guard.verify,
            guard.runs,
            lambda: guard.summary("inner"),
            lambda: guard.run("r").__enter__(),
        ):
            with pytest.raises(StoreUnavailableError, match="damaged"):
                ask()
    for command in (["verify"], ["runs"], ["doctor"], ["show", "inner"]):
        assert main(command) != 0
        assert "damaged" in "".join(capsys.readouterr())
