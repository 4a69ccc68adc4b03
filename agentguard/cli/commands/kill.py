"""`agentguard kill` and `agentguard revive`: what has to work when nothing else does.

Standard library and the page alone, so that they start fast and no missing extra is in the way.  Only what
comes after the kill is recorded needs more: the store, to say what goes on; and a switch on a server, its
driver.

    exit code   kill                                        revive
    0           recorded, every live process acted, and     recorded
                nothing goes on in the runs that were hit
    1           failed, or not confirmed                    failed
    2           usage                                       usage
    3           recorded, but no live process is attached,  there was nothing to revive
                or the store has no such run, or no live
                run of that tenant
    4           recorded, but not all acted in time, or a body of a killed run goes on, or nobody can
                tell whether one does: the store cannot be asked, or its process is not heard of;
                with `--hard`, a process is still there
    5           the kill switch cannot be used              the same
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agentguard._home import STORE_VARIABLE, default_home
from agentguard.cli import exit_codes, kill_options, kill_target
from agentguard.cli.kill_target import printable
from agentguard.errors import AgentGuardError, KillSwitchUnavailableError
from agentguard.killswitch.kill_requests import in_force, kill_data, revive_data
from agentguard.killswitch.page import PageKillSwitch
from agentguard.tenancy import UNSET

if TYPE_CHECKING:
    from agentguard.cli import aftermath
    from agentguard.killswitch.model import Acknowledgements

_NOT_CONFIRMED = "not confirmed; nothing was recorded"
#: How long, in seconds, bodies are given to end before it is said that they go on.
_GRACE = 1.0
#: How many runs the answer lists.
_MOST_LINES = 20


def main(argv: list[str]) -> int:
    """Run `kill …` or `revive …`, and return the exit code."""
    parser = kill_options.parser()
    try:
        options = parser.parse_args(argv)
        home = options.home or default_home()
        _complete(parser, options)
        runs = kill_target.file_of(home) or _store_runs(home)
        requests = _requests(parser, options, home, runs)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else exit_codes.USAGE
    try:
        if not _confirmed(requests, options, home):
            print(_NOT_CONFIRMED, file=sys.stderr)
            return exit_codes.FAULT
        switch = _open_switch(home)
        try:
            return _worst(_carry_out(switch, request, options, home, runs) for request in requests)
        finally:
            switch.close()
    except (AgentGuardError, OSError, RuntimeError) as error:
        print(f"agentguard {options.command}: {error}", file=sys.stderr)
        return exit_codes.UNAVAILABLE if isinstance(error, KillSwitchUnavailableError) else exit_codes.FAULT


def _store_runs(home: Path) -> kill_target.Runs:
    from agentguard.cli.aftermath import StoreRuns

    return StoreRuns(home)


class _Request(NamedTuple):
    """One kill or revive to record; `known`: whether the store has the run, None if nobody can tell."""

    event_type: str
    data: dict[str, Any]
    known: bool | None = None


def _requests(
    parser: argparse.ArgumentParser, options: argparse.Namespace, home: Path, runs: kill_target.Runs
) -> list[_Request]:
    """Return what was asked for: a request for each run that was named, else one for the tenant or all."""
    make = kill_data if options.command == "kill" else revive_data
    named = [options.run] if options.run is not UNSET else options.runs
    if named and options.tenant is not UNSET:
        parser.error("name runs or a tenant, not both")
    try:
        if not named:
            return [_Request(*make(options.reason, tenant=options.tenant, actor=options.actor))]
        targets = [target for typed in named for target in _targets(parser, typed, options, home, runs)]
        return [
            _Request(*make(options.reason, run=target.run_id, actor=options.actor), target.known)
            for target in targets
        ]
    except (TypeError, ValueError) as error:
        parser.error(str(error))


def _targets(
    parser: argparse.ArgumentParser,
    typed: str,
    options: argparse.Namespace,
    home: Path,
    runs: kill_target.Runs,
) -> list[kill_target.Target]:
    """Return the run that `typed` is the id of, or begins the id of; else the live runs of that name."""
    if not typed:
        raise ValueError("run is ''; leave it out to mean everything")
    try:
        target = kill_target.find(typed, runs)
    except kill_target.AmbiguousError as error:
        parser.error(str(error))
    if target.known is not False or options.command != "kill":
        return [target]
    from agentguard.cli import aftermath

    rows = aftermath.named(typed, home)
    if rows and not options.yes:
        some = ", ".join(row.run_id for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
        said = f"{len(rows)} live {'run is' if len(rows) == 1 else 'runs are'} named {typed!r}: {some}"
        if not sys.stdin.isatty():
            parser.error(f"{said}; say --yes to kill by name where nobody can be asked")
        if _ask(f"{said}.  Type 'kill {len(rows)}' to go on: ") != f"kill {len(rows)}":
            parser.exit(exit_codes.FAULT, f"{_NOT_CONFIRMED}\n")
    return [kill_target.Target(row.run_id, known=True) for row in rows] or [target]


def _carry_out(
    switch: PageKillSwitch,
    request: _Request,
    options: argparse.Namespace,
    home: Path,
    runs: kill_target.Runs,
) -> int:
    if options.command == "revive":
        return _revive(switch, request.event_type, request.data, options)
    if options.hard:
        return _kill_hard(switch, request.event_type, request.data, options, home)
    return _kill(switch, request, options, home, runs)


def _worst(codes: Iterable[int]) -> int:
    """Return the exit code that says most: not acted, not found, failed, unavailable."""
    order = (exit_codes.OK, exit_codes.NOT_FOUND, exit_codes.UNACKNOWLEDGED, exit_codes.FAULT)
    return max(codes, key=lambda code: order.index(code) if code in order else len(order))


def _open_switch(home: Path) -> PageKillSwitch:
    """The switch that runs under this home use: the page, or the server that the environment names."""
    url = os.environ.get("AGENTGUARD_KILL_SWITCH") or ""
    if not url and (store := os.environ.get(STORE_VARIABLE, "")).startswith("postgresql://"):
        url = store
    if "://" not in url.removesuffix("://"):
        return PageKillSwitch(home)
    from agentguard.killswitch.network import NetworkKillSwitch

    try:
        return NetworkKillSwitch(url, home)
    except ValueError as error:
        raise KillSwitchUnavailableError(f"AGENTGUARD_KILL_SWITCH: {error}") from error


def _kill(
    switch: PageKillSwitch,
    request: _Request,
    options: argparse.Namespace,
    home: Path,
    store: kill_target.Runs,
) -> int:
    data, known = request.data, request.known
    # Asked first: afterwards they have ended.
    asked = store.covered(data)
    covered = asked or []
    live = [run for run in covered if not run.dead and not run.ended]
    nobody = data["scope"] == "tenant" and asked is not None and not live
    generation = switch.record(request.event_type, data)
    reached = switch.acknowledgements(generation, options.timeout)
    late = [process.pid for process in switch.unacknowledged(generation)]
    closed = kill_target.close_dead(covered, home, lambda: _open_switch(home))
    hosts = _hosts(switch, generation)
    may_go_on = [run for run in covered if not run.dead or (run.unheard and data["scope"] == "run")]
    runs, problem = _what_goes_on(may_go_on, options, home)
    problem = problem or store.problem
    if options.json:
        facts = {**reached._asdict(), "unacknowledged_pids": late, **({"hosts": hosts} if hosts else {})}
        if closed:
            facts["buried"] = len(closed)
        if known is not None:
            facts["known"] = known
        if data["scope"] == "tenant" and asked is not None:
            facts["live_runs"] = len(live)
        if runs:
            facts["runs"] = [run.to_data() for run in runs]
        if problem:
            facts["problem"] = problem
        _print_json(options, switch, data, generation, facts)
    else:
        _print_reach(data, known, generation, f"{_reach(reached, late)}{_ended(closed)}", hosts)
        _print_runs(runs)
    _warn(data, known=known, nobody=nobody and reached.live > 0 and not closed, problem=problem)
    if any(run.in_flight for run in runs):
        return exit_codes.UNACKNOWLEDGED
    if not reached.live or known is False or nobody:
        return exit_codes.NOT_FOUND
    return exit_codes.UNACKNOWLEDGED if problem or reached.acknowledged < reached.live else exit_codes.OK


def _print_reach(
    data: dict[str, Any], known: bool | None, generation: int, reach: str, hosts: list[dict[str, Any]]
) -> None:
    """Say whom the kill has reached; of a run that the store does not have, nobody had anything to stop."""
    which = f"{_target(data)} (generation {generation})"
    if known is False:
        print(f"recorded a kill of {which}, which the store does not have")
        return
    print(f"killed {which}: {reach}")
    _print_hosts(hosts)


def _warn(data: dict[str, Any], *, known: bool | None, nobody: bool, problem: str | None) -> None:
    """Say on stderr what makes it doubtful that the kill hit what was meant."""
    target = data["target"]
    said = []
    if known is False:
        said.append(f"the store has no run {target}; is the id right?")
    if nobody:
        said.append(
            f"the store has no live run of tenant {target}; is the name right? What starts later is stopped"
        )
    if problem:
        whether = (
            f"run {target} exists, and whether it stops" if data["scope"] == "run" else "anything goes on"
        )
        said.append(f"the kill is recorded as typed; nobody can tell whether {whether}: {problem}")
    for text in said:
        print(f"agentguard kill: {printable(text)}", file=sys.stderr)


def _what_goes_on(
    runs: Sequence[kill_target.LiveRun], options: argparse.Namespace, home: Path
) -> tuple[list[aftermath.Covered], str | None]:
    """Return how the runs that were hit stand, and what kept the store from telling."""
    if not runs:
        return [], None
    from agentguard.cli import aftermath

    try:
        return aftermath.what_goes_on(runs, home, options.timeout if options.wait else _GRACE), None
    except (AgentGuardError, OSError, ValueError) as error:
        return [], str(error)


def _print_runs(runs: Sequence[aftermath.Covered]) -> None:
    going_on = [run for run in runs if run.in_flight]
    for run in (going_on + [run for run in runs if not run.in_flight])[:_MOST_LINES]:
        print(f"  {printable(str(run))}")
    if len(runs) > _MOST_LINES:
        print(f"  and {len(runs) - _MOST_LINES} more")
    if any(run.unheard_s is None for run in going_on):
        print("  a sync body ends at its next check: --wait waits for it, --hard ends its process")


def _kill_hard(
    switch: PageKillSwitch, event_type: str, data: dict[str, Any], options: argparse.Namespace, home: Path
) -> int:
    from agentguard.cli import hard_kill

    kill = hard_kill.HardKill(switch, data, home)
    try:
        if not hard_kill.confirmed(kill, options, _ask):
            print(_NOT_CONFIRMED, file=sys.stderr)
            return exit_codes.FAULT
        before = kill.holding()
        generation = switch.record(event_type, data)
        hard = kill.enforce(generation, options.grace)
    finally:
        kill.close()
    for problem in kill.problems:
        print(f"agentguard kill: {problem}", file=sys.stderr)
    if options.json:
        signalled = {name: [process.pid for process in sent] for name, sent in hard.signalled.items()}
        left = [process.pid for process in hard.left]
        facts = {
            "live": len(before),
            "signalled": signalled,
            "still_there": left,
            "other_runs": [run._asdict() for run in hard.others],
            "problems": kill.problems,
        }
        _print_json(options, switch, data, generation, facts)
    else:
        reach = hard_kill.describe(hard) if before or hard.signalled else "no live process holds such a run"
        print(f"killed {_target(data)} (generation {generation}): {reach}")
        for run in hard.others:
            print(f"  {printable(str(run))}: ended with its process")
    if kill.problems:
        return exit_codes.FAULT
    if hard.left:
        return exit_codes.UNACKNOWLEDGED
    return exit_codes.OK if before or hard.signalled else exit_codes.NOT_FOUND


def _revive(
    switch: PageKillSwitch, event_type: str, data: dict[str, Any], options: argparse.Namespace
) -> int:
    cleared = in_force(switch.kills(), data)
    generation = switch.record(event_type, data) if cleared else None
    if options.json:
        _print_json(options, switch, data, generation, {"cleared": len(cleared)})
    elif cleared:
        reasons = ", ".join(f"{kill.reason!r} by {kill.actor}" for kill in cleared)
        print(f"revived {_target(data)} (generation {generation}): cleared {reasons}")
    else:
        print(f"nothing to revive: no kill of {_target(data)} is in force")
    return exit_codes.OK if cleared else exit_codes.NOT_FOUND


def _print_hosts(hosts: list[dict[str, Any]]) -> None:
    for host in hosts:
        counts = f"{host['live']} live, {host['acknowledged']} acknowledged"
        silent = f"; not heard for {host['silent_s']:.0f} s, and not waited for" if "silent_s" in host else ""
        print(f"  {printable(host['name'])}: {counts}{silent}")


def _hosts(switch: PageKillSwitch, generation: int) -> list[dict[str, Any]]:
    """Return whom a kill has reached on each host; nothing where there is but one."""
    hosts = []
    for report in switch.hosts():
        live, acknowledged, _ = report.count(generation)
        facts = {"name": report.name, "live": live, "acknowledged": acknowledged}
        hosts.append(facts if report.fresh else {**facts, "silent_s": report.silent})
    return hosts


def _reach(reached: Acknowledgements, late: list[int]) -> str:
    if not reached.live:
        return "no live process is attached; what starts later is stopped"
    counts = f"{reached.live} live, {reached.acknowledged} acknowledged"
    if reached.live > reached.acknowledged and not late:
        return f"{counts} after {reached.seconds * 1000:.0f} ms"
    if not late:
        return f"{counts} in {reached.seconds * 1000:.1f} ms"
    pids = ", ".join(map(str, late))
    return f"{counts} after {reached.seconds * 1000:.0f} ms; still to act: pid {pids}"


def _ended(closed: Sequence[kill_target.LiveRun]) -> str:
    """Say of how many runs the killer has written the end itself."""
    waited = sum(run.waits for run in closed)
    died = len(closed) - waited
    said = f"; ended {died} whose process had died" if died else ""
    return f"{said}; ended {waited} that waited for a process" if waited else said


def _target(data: dict[str, Any]) -> str:
    return f"{data['scope']} {data['target']}".rstrip()


def _print_json(
    options: argparse.Namespace,
    switch: PageKillSwitch,
    data: dict[str, Any],
    generation: int | None,
    facts: dict[str, Any],
) -> None:
    action = {"action": options.command, "home": str(switch.home), "generation": generation}
    print(json.dumps({**action, **data, **facts}))


def _confirmed(requests: Sequence[_Request], options: argparse.Namespace, home: Path) -> bool:
    """Ask before everything is stopped; where nobody can be asked, `--yes` has to say so."""
    everything = any(request.data["scope"] == "global" for request in requests)
    if options.command != "kill" or options.hard or options.yes or not everything:
        return True
    if not sys.stdin.isatty():
        print(
            f"agentguard kill: this stops every run of every tenant under {home}; say --yes, or name runs "
            "or a tenant",
            file=sys.stderr,
        )
        return False
    return (
        _ask(f"This stops every run of every tenant under {home}.  Type 'kill all' to go on: ") == "kill all"
    )


def _complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ask for what is missing where somebody is there to answer."""
    if options.reason is None and options.command == "revive":
        options.reason = "revived"
    if options.reason is None:
        if not sys.stdin.isatty():
            parser.error("--reason is required")
        options.reason = _ask("Reason: ")


def _ask(question: str) -> str:
    # Not by input(), which would put the question among the output that --json is for.
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()
