"""`agentguard approve`: let a step that waits run."""

from __future__ import annotations

from agentguard.cli import exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import (
    ActorOption,
    HomeOption,
    JsonOption,
    KeyArgument,
    ReasonOption,
    RunArgument,
    StoreOption,
)
from agentguard.guard import Guard


@app.command(epilog="--json: {run_id, key, decision}.")
def approve(
    *,
    run_id: RunArgument,
    key: KeyArgument = None,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a step that waits run."""
    lookup.use(store, home)
    decide(run_id, key, reason, actor, granted=True, as_json=as_json)


def decide(
    typed: str, key: str | None, reason: str | None, actor: str | None, *, granted: bool, as_json: bool
) -> None:
    """Let a waiting step run, or refuse it."""
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        key = key or _only_key(guard, run_id)
        act = guard.approve if granted else guard.deny
        act(run_id, key, reason=reason, actor=actor)
    if as_json:
        output.print_json({"run_id": run_id, "key": key, "decision": "granted" if granted else "denied"})
    else:
        print(output.one_line(f"{'approved' if granted else 'denied'} {key} of run {run_id}"))


def _only_key(guard: Guard, run_id: str) -> str:
    keys = [asked.key for asked in guard.approvals() if asked.run_id == run_id]
    if len(keys) != 1:
        waiting = f"; waiting are {', '.join(keys)}" if keys else ""
        raise exit_codes.UsageError(f"{len(keys)} steps of run {run_id} wait; name one by its KEY{waiting}")
    return keys[0]
