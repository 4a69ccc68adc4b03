"""What `export`, `erase` and `prune` do."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agentguard.audit import erasure
from agentguard.audit import export as exporting
from agentguard.cli import exits, lookup, output, views
from agentguard.errors import LogIntegrityError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE = re.compile(r"(\d{1,9})([smhdw])")


def export(typed: str | None, path: Path | None, *, everything: bool, as_json: bool) -> None:
    """Write one log or all to a file or to standard output."""
    if (typed is None) != everything:
        raise exits.UsageError("name a RUN or `control`, or say --all")
    with lookup.reading() as guard:
        run_id = None if typed is None else lookup.find_log(guard, typed)
        store, now = guard.parts.store, guard.parts.clock.wall()
        control = lookup.control_log(guard).read
        altered: list[LogIntegrityError] = []
        if path is None:
            exporting.export(store, control, run_id, sys.stdout.buffer, now, say=altered.append)
            sys.stdout.buffer.flush()
            views.complain_of(altered)
            return
        runs, events = exporting.export(store, control, run_id, path, now, say=altered.append)
    if as_json:
        output.print_json({"path": str(path), "runs": runs, "events": events})
    else:
        logs = "log" if runs == 1 else "logs"
        print(output.one_line(f"wrote {events:,} events of {runs:,} {logs} to {path}"))
    views.complain_of(altered)


def erase(typed: str, actor: str | None, *, sure: bool, as_json: bool) -> int:
    """Erase the payloads of a run, and give the exit code."""
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        summary = guard.summary(run_id)
        question = f"This erases all that was captured of run {run_id} ({summary.name}), for good."
        if not _confirmed(question, "erase", sure=sure):
            return exits.FAULT
        dropped = guard.erase(run_id, actor=actor)
    if as_json:
        output.print_json({"run_id": run_id, "payloads": dropped})
    else:
        print(output.one_line(f"erased {dropped:,} payloads of run {run_id}; its log still verifies"))
    return exits.OK


def prune(older_than: str, actor: str | None, *, sure: bool, as_json: bool) -> int:
    """Drop old runs, and give the exit code."""
    age = _age(older_than)
    if not lookup.store_is_there():
        return _say_pruned([], age, as_json=as_json)
    with lookup.acting() as guard:
        # One moment for the question and the act.
        cut_ns = erasure.cut_off(age, guard.parts.clock.wall())
        before = datetime.fromtimestamp(cut_ns / 1e9, UTC)
        question = f"This drops every run that ended before {before:%Y-%m-%d %H:%M:%S} UTC, for good."
        if not _confirmed(question, "prune", sure=sure):
            return exits.FAULT
        pruned = guard.prune(before, actor=actor)
    return _say_pruned(pruned, before, as_json=as_json)


def _say_pruned(pruned: list[str], before: datetime | timedelta, *, as_json: bool) -> int:
    if as_json:
        said = before.isoformat() if isinstance(before, datetime) else None
        output.print_json({"before": said, "runs": pruned})
    else:
        print(f"pruned {len(pruned):,} {'run' if len(pruned) == 1 else 'runs'}")
    return exits.OK


def _age(text: str) -> timedelta | datetime:
    match = _AGE.fullmatch(text.strip())
    try:
        if match is not None:
            return timedelta(**{_UNITS[match[2]]: int(match[1])})
        at = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError) as error:
        raise exits.UsageError(
            f"--older-than {text!r} is neither an age like 90d, 12h or 30m, nor a date like 2026-01-31"
        ) from error
    return at if at.tzinfo is not None else at.astimezone()


def _confirmed(question: str, word: str, *, sure: bool) -> bool:
    """Whether somebody at a terminal means it; where nobody is to be asked, --yes has to say so."""
    if sure:
        return True
    if not sys.stdin.isatty():
        raise exits.UsageError(f"nobody is here to be asked; say --yes to {word}")
    # Not by input(), which would put the question among the output that --json is for.
    print(f"{output.printable(question)}  Type '{word}' to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() == word:
        return True
    print("not confirmed; nothing was done", file=sys.stderr)
    return False
