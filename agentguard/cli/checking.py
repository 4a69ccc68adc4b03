"""What `verify` and `doctor` do."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from rich.text import Text

from agentguard import config
from agentguard.audit.verify import Fault, VerifyReport
from agentguard.cli import doctor as examining
from agentguard.cli import exits, listing, lookup, output
from agentguard.errors import LogIntegrityError, RunNotFoundError
from agentguard.events.model import CONTROL_RUN_ID, Head
from agentguard.guard import Guard
from agentguard.killswitch.page import PageKillSwitch

_ANCHOR = re.compile(r"(?P<run>.+)=(?P<seq>[1-9][0-9]*):(?P<hash>[0-9a-f]{64})")
_NOTHING = VerifyReport(faults=(), anchored=True, events=0, runs=0)
_STYLES = {examining.OK: "green", examining.NOTE: "yellow", examining.FAULT: "bold red"}


def verify(typed: str | None, anchors: Sequence[str], *, as_json: bool) -> int:
    """Verify a run, or everything, and give the exit code."""
    heads = dict(_anchor(text) for text in anchors)
    control = heads.pop(CONTROL_RUN_ID, None)
    report = _NOTHING
    if typed != CONTROL_RUN_ID and (typed is not None or heads or lookup.store_is_there()):
        report = _verify_runs(typed, heads)
    if typed in (None, CONTROL_RUN_ID):
        report = _with_control_log(report, control)
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


def _verify_runs(typed: str | None, heads: dict[str, Head]) -> VerifyReport:
    with lookup.reading() as guard:
        heads = {_whole_id(guard, name): head for name, head in heads.items()}
        run_id = None if typed is None else lookup.find_run(guard, typed)
        if run_id is not None and (others := heads.keys() - {run_id}):
            raise exits.UsageError(f"--anchor names {', '.join(others)}, and only {run_id} is verified")
        return guard.verify(run_id, anchors=heads)


def _whole_id(guard: Guard, typed: str) -> str:
    """The anchored run's id; one that is gone stays as typed, since just that is to be found."""
    try:
        return lookup.find_run(guard, typed)
    except RunNotFoundError:
        return typed


def _with_control_log(report: VerifyReport, anchor: Head | None) -> VerifyReport:
    """The report, the control log included; it is read from its file, whatever the page says."""
    switch = PageKillSwitch(config.home())
    seq, faults = 0, list(report.faults)
    try:
        for stored in switch.read():
            seq = stored.seq
            if anchor is not None and seq == anchor.seq and stored.hash.hex() != anchor.hash:
                faults.append(Fault(CONTROL_RUN_ID, seq, "it is not the event that the anchor names"))
        if anchor is not None and seq < anchor.seq:
            problem = f"the log ends before event {anchor.seq}, which an anchor names"
            faults.append(Fault(CONTROL_RUN_ID, seq + 1, problem))
    except LogIntegrityError as error:
        faults.append(Fault(CONTROL_RUN_ID, error.seq, error.problem))
    finally:
        switch.close()
    anchored = report.anchored and (anchor is not None or seq == 0)
    return msgspec.structs.replace(
        report, faults=tuple(faults), events=report.events + seq, anchored=anchored
    )


def doctor(*, repair: bool, accept_loss: bool, as_json: bool) -> int:
    """Examine everything and give the exit code."""
    if accept_loss and not repair:
        raise exits.UsageError("--accept-loss goes with --repair")
    findings = list(examining.examine(repair=repair, accept_loss=accept_loss))
    ok = not any(finding.status == examining.FAULT for finding in findings)
    if as_json:
        output.print_json({"ok": ok, "checks": [finding._asdict() for finding in findings]})
    else:
        console = output.console()
        for check, status, detail in findings:
            line = Text().append(f"{status:<6}", style=_STYLES[status]).append(f"{check:<14}", style="bold")
            console.print(line.append(output.one_line(detail)), soft_wrap=True)
    return exits.OK if ok else exits.FAULT
