"""What `agentguard doctor` finds beside the store: kill page, kill server, hosts, publishers and workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from agentguard._secrets.urls import public_url
from agentguard.cli.findings import FAULT, NOTE, OK, Finding
from agentguard.console import health
from agentguard.errors import AgentGuardError, KillSwitchUnavailableError, LogIntegrityError
from agentguard.events import codec
from agentguard.guard import Guard
from agentguard.killswitch import waker
from agentguard.killswitch.control import check_chain
from agentguard.killswitch.index import KillIndex
from agentguard.killswitch.model import Kill
from agentguard.killswitch.network import open_log
from agentguard.killswitch.page import PageKillSwitch


def kill_server(server: str) -> Iterator[Finding]:
    """How the server that has the kills stands, and the hosts that hear of them by it."""
    where = public_url(server)
    try:
        with closing(open_log(server)) as log:
            index = KillIndex()
            seq = 0
            for stored in check_chain(log.read()):
                index.add(codec.decode(stored.body))
                seq = stored.seq
            yield Finding("kill server", OK, f"{where}: {seq} control records, chain intact")
            yield from _in_force(index.kills())
            for host in (report for report in log.reports() if not report.ended):
                said = f"{host.name} heard {host.silent:.0f} s ago, {len(host.acknowledged)} live processes"
                if host.fresh:
                    yield Finding("relay", OK, said)
                else:
                    yield Finding("relay", NOTE, f"{said}; steps there are refused: agentguard relay")
    except LogIntegrityError as error:
        yield Finding("kill server", FAULT, f"{where}: record {error.seq}: {error.problem}; restore it")
    except (AgentGuardError, OSError, ValueError) as error:
        yield Finding("kill server", FAULT, f"{where}: {error}")


def kill_page(home: Path, *, is_copy: bool) -> Iterator[Finding]:
    """How the page of this host and its control log stand; `is_copy`: of what a server has."""
    if not _has_kill_files(home):
        yield Finding("kill switch", OK, f"no kill page under {home} yet; the first run or kill makes it")
        return
    switch = PageKillSwitch(home)
    try:
        head = switch.verify()
        yield Finding("control log", OK, f"{head.seq} records, chain intact")
        if not (home / "kill.page").exists():
            yield Finding("kill page", NOTE, "missing; the next run makes it again from the control log")
            return
        live = switch.participants()
        pids = f" (pid {', '.join(str(process.pid) for process in live)})" if live else ""
        yield Finding("kill page", OK, f"agrees with the control log; {len(live)} live processes{pids}")
        if not is_copy:
            yield from _in_force(switch.kills())
    except LogIntegrityError as error:
        problem = f"record {error.seq}: {error.problem}; restore {home / 'control.log'}"
        yield Finding("control log", FAULT, problem)
    except KillSwitchUnavailableError as error:
        yield Finding("kill page", FAULT, str(error))
    finally:
        switch.close()


def repair_page(home: Path, *, accept_loss: bool) -> Iterator[Finding]:
    """Make the page anew from the control log; `accept_loss`: also where it shows that records were lost."""
    if not _has_kill_files(home):
        return
    switch = PageKillSwitch(home)
    try:
        generation = switch.repair(accept_loss=accept_loss)
        yield Finding("repair", OK, f"the kill page was rebuilt from {generation} control records")
    except KillSwitchUnavailableError as error:
        yield Finding("repair", FAULT, str(error))
    finally:
        switch.close()


def live_files(home: Path) -> Iterator[Finding]:
    """What processes that are gone have left beside the page."""
    live = home / "live"
    if not live.is_dir():
        return
    files = {path.name for path in live.iterdir()}
    alive = waker.live_processes(live)
    stale = [name for name in files if not any(name.startswith(f"{p.pid}.{p.start}.") for p in alive)]
    if stale:
        yield Finding("live files", NOTE, f"{len(stale)} left by dead processes; the next kill removes them")
    else:
        yield Finding("live files", OK, f"{len(files)}, none of dead processes")


def helpers(guard: Guard) -> Iterator[Finding]:
    """How the parts of a deployment stand that runs do not wait for: publishers, queue and workers."""
    for part in health.helpers(guard):
        said = f"{part.name}: {part.detail}" if part.name else part.detail
        yield Finding(part.kind, OK, said) if part.ok else Finding(part.kind, NOTE, said)


def _in_force(kills: Iterable[Kill]) -> Iterator[Finding]:
    for kill in kills:
        if kill.cleared:
            continue
        target = f"{kill.scope} {kill.target}".rstrip()
        option = {"run": f" --run {kill.target}", "tenant": f" --tenant {kill.target}"}.get(kill.scope, "")
        said = f"{target} is killed by {kill.actor}: {kill.reason}"
        yield Finding("kill", NOTE, f"{said}; to let later runs start: agentguard revive{option}")


def _has_kill_files(home: Path) -> bool:
    return (home / "kill.page").exists() or (home / "control.log").exists()
