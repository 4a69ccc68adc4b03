"""What `resolve` does."""

from __future__ import annotations

import json
from typing import Any

from agentguard.cli import exits, lookup, output


def resolve(
    typed: str, key: str, outcome: str, result: str | None, actor: str | None, *, as_json: bool
) -> None:
    """Put on record what became of a step."""
    given = _result(outcome, result)
    with lookup.acting() as guard:
        run_id = lookup.find_run(guard, typed)
        guard.resolve(run_id, key, outcome, result=given, actor=actor)
        state = guard.reconstruct(run_id).state
    if as_json:
        output.print_json({"run_id": run_id, "key": key, "outcome": outcome, "state": str(state)})
    else:
        print(
            output.one_line(f"on record: {key} of run {run_id} is to count as {outcome}; the run is {state}")
        )
        if not state.final:
            print(output.one_line(f"  carry it on with: agentguard recover {run_id} --module pkg.mod:fn"))


def _result(outcome: str, text: str | None) -> Any:
    if text is None:
        return None
    if outcome == "retry":
        raise exits.UsageError("--result goes with completed or failed")
    try:
        return json.loads(text)
    except ValueError as error:
        if outcome == "failed":
            return text
        raise exits.UsageError(
            f"--result is no JSON ({error}); text is quoted twice, as in '\"text\"'"
        ) from error
