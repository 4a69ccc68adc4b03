"""`agentguard approve`: let a step that waits run."""

from __future__ import annotations

from agentguard.cli import exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.options import (
    ActorOption,
    AskedOption,
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
    asked: AskedOption = None,
    reason: ReasonOption = None,
    actor: ActorOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a step that waits run."""
    lookup.use(store, home)
    decide(run_id, key, reason, actor, granted=True, asked=asked, as_json=as_json)


def decide(
    typed: str,
    key: str | None,
    reason: str | None,
    actor: str | None,
    *,
    granted: bool,
    asked: int | None,
    as_json: bool,
) -> None:
    """Let a waiting step run, or refuse it."""
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        if key is None:
            key, asked = _only_question(guard, run_id, asked)
        act = guard.approve if granted else guard.deny
        act(run_id, key, asked=asked, reason=reason, actor=actor)
    if as_json:
        output.print_json({"run_id": run_id, "key": key, "decision": "granted" if granted else "denied"})
    else:
        print(output.one_line(f"{'approved' if granted else 'denied'} {key} of run {run_id}"))


def _only_question(guard: Guard, run_id: str, asked: int | None) -> tuple[str, int]:
    """Return the key of the only step that waits, and the number of its question, or of the one `asked`."""
    found = [(waits.key, waits.seq) for waits in guard.approvals() if waits.run_id == run_id]
    if not found:
        raise exit_codes.UsageError(f"no step of run {run_id} waits; it is {guard.summary(run_id).state}")
    if len(found) > 1:
        waiting = ", ".join(key for key, _ in found)
        raise exit_codes.UsageError(
            f"{len(found)} steps of run {run_id} wait; name one by its KEY; waiting are {waiting}"
        )
    key, seq = found[0]
    return key, seq if asked is None else asked
