"""What `verify` and `doctor` do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.text import Text

from agentguard.audit import verify as audit
from agentguard.cli import doctor as examining
from agentguard.cli import exits, listing, lookup, output
from agentguard.errors import RunNotFoundError
from agentguard.events.model import CONTROL_RUN_ID, Head
from agentguard.guard import Guard

_ANCHOR = re.compile(r"(?P<run>.+)=(?P<seq>[1-9][0-9]*):(?P<hash>[0-9a-f]{64})")
_STYLES = {examining.OK: "green", examining.NOTE: "yellow", examining.FAULT: "bold red"}


def verify(typed: str | None, anchors: Sequence[str], *, as_json: bool) -> int:
    """Verify a run, or everything, and give the exit code."""
    heads = dict(_anchor(text) for text in anchors)
    with _logs(typed) as guard:
        report = _report(guard, typed, {_whole_id(guard, run): head for run, head in heads.items()})
    if as_json:
        output.print_json(listing.report_data(report))
    else:
        console = output.console()
        for line in listing.report_lines(report):
            console.print(line, soft_wrap=True)
    return exits.OK if report else exits.FAULT


def _anchor(text: str) -> tuple[str, Head]:
    match = _ANCHOR.fullmatch(text.strip())
    if match is None:
        raise exits.UsageError(
            f"--anchor {text!r} is not RUN=SEQ:HASH; RUN is an id, SEQ a number from 1, HASH 64 hex "
            "digits, as `agentguard summary` prints the head"
        )
    return match["run"], Head(int(match["seq"]), match["hash"])


@contextmanager
def _logs(typed: str | None) -> Iterator[Guard]:
    """The store; an empty one where nothing has run yet and no run is named."""
    if typed in (None, CONTROL_RUN_ID) and not lookup.store_is_there():
        with Guard.in_memory(telemetry=False) as guard:
            yield guard
        return
    with lookup.reading() as guard:
        yield guard


def _report(guard: Guard, typed: str | None, heads: Mapping[str, Head]) -> audit.VerifyReport:
    store = guard.parts.store
    # From the file, since neither a damaged page nor a damaged log may keep us from saying so.
    log = lookup.control_log(guard)
    if typed is None:
        return audit.verify_all(store, heads, log.read, log.announced)
    run_id = lookup.find_log(guard, typed)
    if others := heads.keys() - {run_id}:
        raise exits.UsageError(f"--anchor names {', '.join(others)}, and only {run_id} is verified")
    if run_id == CONTROL_RUN_ID:
        return audit.verify(store, [], heads, log.read, log.announced)
    return audit.verify(store, [row] if (row := store.row(run_id)) is not None else [], heads)


def _whole_id(guard: Guard, typed: str) -> str:
    """The anchored run's id; one that is gone stays as typed, since just that is to be found."""
    try:
        return lookup.find_log(guard, typed)
    except RunNotFoundError:
        return typed


def doctor(*, repair: bool, accept_loss: bool, rebuild_ledger: bool, as_json: bool) -> int:
    """Examine everything and give the exit code."""
    if accept_loss and not repair:
        raise exits.UsageError("--accept-loss goes with --repair")
    findings = list(examining.examine(repair=repair, accept_loss=accept_loss, rebuild_ledger=rebuild_ledger))
    ok = not any(finding.status == examining.FAULT for finding in findings)
    if as_json:
        output.print_json({"ok": ok, "checks": [finding._asdict() for finding in findings]})
    else:
        console = output.console()
        for check, status, detail in findings:
            line = Text().append(f"{status:<6}", style=_STYLES[status]).append(f"{check:<14}", style="bold")
            console.print(line.append(output.one_line(detail)), soft_wrap=True)
    return exits.OK if ok else exits.FAULT
