"""What agentguard stored in its first month opens, verifies, replays, recovers and exports, whatever has come since.

`tests/data/stored_2026_11` holds the programs, and what they left behind as text: a database, its control log, an
export of both, a cassette, a signed checkpoint, and the exit codes of commands.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from agentguard import Guard, KillSwitchTriggeredError, RunState, StepOutcomeUnknownError
from agentguard.audit.checkpoint import read_checkpoint
from agentguard.cli import main
from agentguard.testing import cassettes

DATA = Path(__file__).parents[1] / "data" / "stored_2026_11"
NAME = "stored_2026_11_programs"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text())


@pytest.fixture
def programs() -> Iterator[ModuleType]:
    """The programs, under the name that is on record."""
    spec = importlib.util.spec_from_file_location(NAME, DATA / "programs.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[NAME]


@pytest.fixture
def database(home: Path, programs: ModuleType) -> Iterator[Guard]:
    """A guard on the database and the control log."""
    programs.restore(home)
    with Guard.open(telemetry=False) as guard:
        yield guard


@pytest.fixture(params=["database", "export"])
def stored(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """The database, and an export of all of it."""
    if request.param == "database":
        yield request.getfixturevalue("database")
        return
    with Guard.open(f"file://{DATA}/all.jsonl", telemetry=False) as guard:
        yield guard


def facts(guard: Guard, run_id: str) -> dict[str, Any]:
    summary = guard.summary(run_id)
    return {
        "state": str(summary.state),
        "steps": summary.steps,
        "usage": {name: amount for name, amount in summary.usage.amounts().items() if amount},
        "termination": summary.termination,
        "head": [summary.head.seq, summary.head.hash],
        "types": [event.type for event in guard.history(run_id)],
    }


def test_stored_logs_verify_and_read_the_same(stored: Guard) -> None:
    report = stored.verify()
    assert report, report
    assert report.events == EXPECTED["events"]
    assert {row.run_id: facts(stored, row.run_id) for row in stored.runs()} == EXPECTED["runs"]
    assert [event.type for event in stored.history("control")] == EXPECTED["control"]
    assert {kill.reason: kill.cleared for kill in stored.kills()} == {"fire drill": True, "enough": False}
    for row in stored.runs():
        # Rows of then did not say what a run was forked from, and what cannot be replayed, as its log does.
        told = msgspec.structs.replace(
            stored.reconstruct(row.run_id), forked_from=row.forked_from, unreplayable=row.unreplayable
        )
        assert not row.state.final or told == row


def test_stored_logs_are_what_a_stored_checkpoint_signed(stored: Guard) -> None:
    pytest.importorskip("cryptography")
    heads = read_checkpoint(DATA / "checkpoint", EXPECTED["public_key"])
    assert heads.keys() == EXPECTED["runs"].keys() | {"control"}
    report = stored.verify(anchors=heads)
    assert report, report
    assert report.anchored


def test_a_stored_run_replays(stored: Guard, programs: ModuleType) -> None:
    with stored.replay("shop-0000001") as run:
        assert run.inputs == {"name": "shop"}
        seen = programs.shop(stored)
    assert [repr(thing) for thing in seen] == EXPECTED["seen"]
    assert programs.RAN == []


def test_a_stored_fork_replays(stored: Guard, programs: ModuleType) -> None:
    with stored.replay("forked-0000001"):
        programs.shop_again(stored)
    assert programs.RAN == []


def test_a_stored_kill_is_delivered_in_a_replay(stored: Guard, programs: ModuleType) -> None:
    with pytest.raises(KillSwitchTriggeredError, match="enough"), stored.replay("killed-0000001"):
        programs.left(stored)


def test_a_stored_cassette_replays(guard: Guard, programs: ModuleType) -> None:
    run_id = cassettes.read(DATA / "shop.cassette", guard.components.store)
    with guard.replay(run_id):
        seen = programs.shop(guard)
    when = 7  # times are no part of a cassette
    assert [repr(thing) for thing in seen[:when]] == EXPECTED["seen"][:when]
    assert [repr(thing) for thing in seen[when + 1 :]] == EXPECTED["seen"][when + 1 :]


def test_a_stored_run_that_died_in_a_nested_run_is_carried_on(database: Guard, programs: ModuleType) -> None:
    with database.recover("crashed-0000001", take_over=True) as run:
        seen = programs.crashed(database)
    nested = seen[1]
    assert seen[0] == 10
    assert seen[2:] == [Decimal("0.1"), Decimal("-0.1"), str(run.spent.usd)]
    assert programs.RAN == ["charge"]  # the one that was cut off
    assert database.summary(nested).state is RunState.COMPLETED
    assert database.summary("crashed-0000001").state is RunState.COMPLETED
    assert database.verify()


def test_a_stored_doubt_pauses_and_is_resolved(database: Guard, programs: ModuleType) -> None:
    with pytest.raises(StepOutcomeUnknownError), database.recover("doubtful-0000001", take_over=True):
        programs.doubtful(database)
    assert database.summary("doubtful-0000001").state is RunState.PAUSED
    database.resolve("doubtful-0000001", "main/refund#1", "completed", result="refunded 5")
    with database.recover("doubtful-0000001", take_over=True):
        seen = programs.doubtful(database)
    assert seen == [Decimal("0.2"), "refunded 5", Decimal("0.3")]
    assert programs.RAN == ["charge"]


@pytest.mark.parametrize("name", ["drained", "paused"])
def test_a_stored_run_that_was_let_go_is_carried_on(database: Guard, programs: ModuleType, name: str) -> None:
    run_id = f"{name}-0000001"
    with database.recover(run_id, take_over=True) as run:
        if name == "paused":
            assert run.state is RunState.PAUSED
            run.resume()
        assert programs.left(database) == [Decimal("0.4"), Decimal("0.5")]
    assert programs.RAN == ["charge"]
    assert database.summary(run_id).state is RunState.COMPLETED


def test_stored_tenants_keep_their_budget_and_what_was_charged_to_it(database: Guard) -> None:
    spent = {account.tenant: str(account.spent.usd) for account in database.tenants()}
    assert spent == EXPECTED["tenants"]


def test_stored_logs_export_as_they_did(database: Guard, tmp_path: Path) -> None:
    database.export(None, tmp_path / "all.jsonl")
    then, now = ((folder / "all.jsonl").read_text().splitlines() for folder in (DATA, tmp_path))
    assert json.loads(now[0]).keys() == json.loads(then[0]).keys()
    assert now[1:-1] == then[1:-1]  # between the time of the export and its digest


def test_commands_end_on_stored_data_as_they_did(home: Path, programs: ModuleType, capfd: Any) -> None:
    programs.restore(home)
    ended: Callable[[list[str]], int] = main
    assert [(argv, ended(argv)) for argv in programs.COMMANDS] == list(
        zip(programs.COMMANDS, EXPECTED["exit_codes"], strict=True)
    )
    assert "Traceback" not in capfd.readouterr().err
