"""A program whose own guarded functions are called by joblib's worker processes; it says what came of it as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from joblib import Parallel, delayed

from agentguard import Budget, BudgetExceededError, Guard, NoActiveRunError, guarded_step


@guarded_step
def double(n: int) -> int:
    return 2 * n


def work(run_id: str, n: int) -> int:
    """In a process of its own: it opens its own guard, and joins the run."""
    with Guard.open() as guard, guard.attach(run_id, branch=f"worker-{n}"):
        return double(n)


def main() -> dict[str, Any]:
    pool = Parallel(n_jobs=2)
    with Guard.open() as guard:
        try:
            with guard.run("sums", budget=Budget(steps=3)) as run:
                results = pool(delayed(work)(run.id, n) for n in range(3))
                pool([delayed(work)(run.id, 3)])
        except BudgetExceededError as stop:
            refused = stop.resource
        keys = sorted(event.key or "" for event in guard.history(run.id) if event.type == "step_completed")
        try:
            pool([delayed(double)(1)])
        except NoActiveRunError as error:
            outside = str(error)
        return {"results": results, "refused": refused, "keys": keys, "outside": outside}


if __name__ == "__main__":
    json.dump(main(), sys.stdout)
