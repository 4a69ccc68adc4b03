"""Faults of the files under a home, done for real: a cut or newer database, a broken or deleted kill page."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import agentguard
from agentguard import (
    Guard,
    KillSwitchTriggeredError,
    KillSwitchUnavailableError,
    LogIntegrityError,
    RunState,
    StoreUnavailableError,
)
from tests.integration.faults import agree, tool

SOURCE = Path(agentguard.__file__).parents[1]

KILLS = "from agentguard import Guard; Guard.open(telemetry=False).kill(run='r', reason='gone')"


# --- a database that is not what it was --------------------------------------------------------------


def test_a_truncated_database_is_refused_and_named(home):
    with Guard.open(telemetry=False) as guard:
        for number in range(20):
            with guard.run("r", run_id=f"r{number}", inputs="x" * 2000):
                tool([])
    path = home / "agentguard.db"
    whole = path.read_bytes()
    assert not Path(f"{path}-wal").exists()
    for kept in (len(whole) // 3, 4096 * 2, 5000, 99):
        path.write_bytes(whole[:kept])
        began: list[str] = []
        with (
            Guard.open(telemetry=False) as guard,
            pytest.raises((StoreUnavailableError, LogIntegrityError)) as caught,
            guard.run("s"),
        ):
            tool(began)
        assert str(path) in str(caught.value)
        assert not began
        assert path.read_bytes() == whole[:kept], "what is left must not be made worse"
    path.write_bytes(whole)
    with Guard.open(telemetry=False) as guard:
        agree(guard, "r19", 1)
        with guard.run("s"):
            tool([])


def test_a_database_of_a_newer_schema_refuses_runs_and_questions(home):
    with Guard.open(telemetry=False) as guard, guard.run("r", run_id="r"):
        tool([])
    raw = sqlite3.connect(home / "agentguard.db")
    (version,) = raw.execute("PRAGMA user_version").fetchone()
    raw.execute("PRAGMA user_version = 99")
    with Guard.open(telemetry=False) as guard:
        for use in (lambda: guard.run("s").__enter__(), guard.runs, guard.verify):
            with pytest.raises(StoreUnavailableError, match=r"schema 99 .*upgrade agentguard"):
                use()
    raw.execute(f"PRAGMA user_version = {version}")
    raw.close()
    with Guard.open(telemetry=False) as guard:
        agree(guard, "r", 1)


# --- the kill page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["overwritten", "short", "folder"])
def test_a_corrupted_page_in_mid_run_refuses_the_next_step_until_it_is_mended(home, damage):
    page = home / "kill.page"
    began: list[str] = []
    with Guard.open(telemetry=False) as guard:
        with guard.run("r", run_id="r") as run:
            tool(began)
            whole = page.read_bytes()
            with page.open("r+b") as file:  # in place, as a stray write would
                file.write(b"\xff" * 64)
            if damage != "overwritten":
                page.unlink()
                page.mkdir() if damage == "folder" else page.write_bytes(whole[:100])
            for _ in range(2):
                with pytest.raises(KillSwitchUnavailableError, match=r"kill\.page.*agentguard doctor"):
                    tool(began)
            with (
                Guard.open(telemetry=False) as later,
                pytest.raises(KillSwitchUnavailableError, match=r"kill\.page"),
                later.run("s", detached=True),
            ):
                tool(began)
            assert len(began) == 1
            assert run.state is RunState.RUNNING
            if damage == "folder":
                page.rmdir()
            assert guard.components.switch.repair() == 0
            tool(began)
        agree(guard, "r", 2)
        assert len(began) == 2


def test_a_page_deleted_in_mid_run_is_made_again_and_a_kill_still_lands(home, eventually):
    began: list[str] = []
    with Guard.open(telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError, match="gone"), guard.run("r", run_id="r") as run:
            tool(began)
            (home / "kill.page").unlink()
            tool(began)
            subprocess.run(
                [sys.executable, "-c", KILLS],
                check=True,
                timeout=60,
                env={**os.environ, "PYTHONPATH": str(SOURCE)},
            )
            eventually(lambda: run.stop is not None)
            with pytest.raises(KillSwitchTriggeredError, match="gone"):
                tool(began)
        assert len(began) == 2
        assert (home / "kill.page").exists()
        agree(guard, "r", 2)
