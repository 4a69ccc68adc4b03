"""What the heartbeat of a process does: for the runs that live in it, and for those without a process."""

from __future__ import annotations

import contextlib

from msgspec import structs

from agentguard.errors import AgentGuardError
from agentguard.runtime import Runtime
from agentguard.sessions.abandoned import charge_some
from agentguard.sessions.dead import close_dead_runs
from agentguard.steps.flow import check

#: At the first of how many signs of life steps of dead processes are looked for: once a minute.
_LOOKS = 12


def check_bodies(runtime: Runtime) -> None:
    """Check the stop for every body in flight.

    Another process may have stopped their run; and the time of a run may be up, for which async bodies
    have timers of their own, and threads that may be interrupted have not.
    """
    components = runtime.opened
    file = None if components is None else components.abilities.file
    if file is not None:  # once a second, and not at each step
        with contextlib.suppress(AgentGuardError):  # the next step is told
            file.check_file()
    for live_run in runtime.live_runs():
        if live_run.in_flight.bodies and runtime.opened is not None:
            with contextlib.suppress(AgentGuardError):
                live_run.refresh()
            for body in tuple(live_run.in_flight.bodies):
                with contextlib.suppress(AgentGuardError):
                    check(live_run, body.scope)


def beat(runtime: Runtime) -> None:
    """Write one sign of life for every run that this process owns, and look after those of dead processes.

    Also for one that has ended while a body of it goes on: whoever kills it again, from wherever, is told.
    Of dead processes, runs that are killed are closed, and steps that ended ones left in flight are charged.
    """
    components = runtime.opened
    if components is None:  # closed since: a sign of life must not open it again
        return
    now = components.clock.wall()
    for live_run in runtime.live_runs():
        if live_run.owner and (live_run.fold.open or not live_run.fold.state.final):
            row = structs.replace(live_run.row, heartbeat_ns=now)
            with contextlib.suppress(AgentGuardError):
                components.store.update_row(row)
    with contextlib.suppress(AgentGuardError):
        close_dead_runs(components)
    runtime.beats += 1
    if runtime.beats % _LOOKS == 1:
        with contextlib.suppress(AgentGuardError):
            charge_some(runtime, components)
