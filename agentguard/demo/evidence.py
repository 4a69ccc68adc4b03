"""What a stranger finds on the disk afterwards: the logs, their proof, and a forgery caught."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from agentguard._home import sqlite_url
from agentguard.demo import forgery
from agentguard.demo.scenes import DATABASE, open_guard
from agentguard.demo.stage import Script
from agentguard.events import codec
from agentguard.guard import Guard
from agentguard.runs.summary import RunSummary


def check_evidence(home: Path, runs: list[RunSummary], script: Script) -> None:
    """Read everything back, verify it, and verify an edited copy."""
    with open_guard(home) as guard:
        _read_back(guard, runs, script)
        _verify(guard, runs, script)
        edited = _middle_of(guard, runs[1].run_id)
    _forge(home, runs[1].run_id, edited, script)


def _read_back(guard: Guard, runs: list[RunSummary], script: Script) -> None:
    script.scene(
        "What is on record",
        "The guard was closed.  A fresh one opens the database and folds each run's summary from its "
        "events alone.",
    )
    for run in runs:
        script.stage.summary(run)
        script.stage.log(run, list(guard.components.store.read(run.run_id)))
        script.holds(f"{run.name}: the log adds up to this summary", guard.reconstruct(run.run_id) == run)


def _verify(guard: Guard, runs: list[RunSummary], script: Script) -> None:
    script.scene(
        "Is the log what was written?",
        "`verify` recomputes every hash, and holds each run against the head that it reported when it ended.",
    )
    report = guard.verify(anchors={run.run_id: run.head for run in runs})
    script.stage.report(report)
    script.holds("intact", bool(report))
    script.holds("held against anchors", report.anchored)


def _middle_of(guard: Guard, run_id: str) -> int:
    log = guard.components.store.read(run_id)
    return forgery.middle_outcome([(s.seq, codec.decode(s.body).type) for s in log])


def _forge(home: Path, run_id: str, seq: int, script: Script) -> None:
    script.scene(
        "Somebody edits the log",
        f"In a copy of the database, event {seq} of the polisher's run is to say that the review cost "
        "$0.005 and not $0.025.",
    )
    copy = home / "edited.db"
    forgery.copy(home / DATABASE, copy)
    old, new = b'"nano_usd":25000000', b'"nano_usd":5000000'
    refused = False
    try:
        forgery.edit(copy, run_id, seq, old, new)
    except sqlite3.IntegrityError as error:
        refused = True
        script.stage.say(f"the database refuses: {error}")
    script.holds("the edit is refused while the triggers are there", refused)
    triggers = forgery.drop_triggers(copy)
    forgery.edit(copy, run_id, seq, old, new)
    script.stage.say(f"so the {triggers} triggers are dropped, and the event is edited")
    with Guard.open(sqlite_url(copy), kill_switch="memory", telemetry=False) as guard:
        report = guard.verify()
    script.stage.report(report)
    script.expect(
        "named",
        f"run {run_id}, event {seq}",
        ", ".join(f"run {f.run_id}, event {f.seq}" for f in report.faults),
    )
