"""The runs that a worker takes part in: one for each workflow execution, joined at its first activity."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentguard import Budget, Guard, Run, RunStopped
from agentguard_temporal._mapping import metadata_of, run_id_of

if TYPE_CHECKING:
    from temporalio.activity import Info

#: How many runs without an activity here stay joined, so that their logs are not read again.
_MOST_IDLE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How the run of a workflow execution is created; a callable is asked with the first activity's `Info`.

    Raises:
        TypeError: one is of the wrong type; the message names it.
    """

    guard: Guard
    budget: Budget | Callable[[Info], Budget] | None = None
    tenant: str | Callable[[Info], str] | None = None
    account: str | Callable[[Info], str] | None = None
    account_budget: Budget | None = None
    interrupt_threads: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.guard, Guard):
            raise TypeError(f"guard must be a Guard, not {type(self.guard).__name__}")
        for name, kind in (("budget", Budget), ("tenant", str), ("account", str)):
            given = getattr(self, name)
            if given is not None and not isinstance(given, kind) and not callable(given):
                raise TypeError(
                    f"{name} must be a {kind.__name__}, or a callable that gives one, "
                    f"not {type(given).__name__}"
                )

    def join(self, info: Info) -> Run:
        """Return the run of an activity's workflow execution, joined."""
        run = self.guard.run(
            info.workflow_type or "workflow",
            run_id=run_id_of(info),
            if_exists="join",
            budget=self.budget(info) if callable(self.budget) else self.budget,
            tenant=self.tenant(info) if callable(self.tenant) else self.tenant,
            account=self.account(info) if callable(self.account) else self.account,
            account_budget=self.account_budget,
            metadata=metadata_of(info),
            interrupt_threads=self.interrupt_threads,
        )
        Context().run(run.__enter__)  # no context of ours: activities of many runs are in this one
        return run


@dataclass
class _Joined:
    run: Run | None = None
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Runs:
    """The joined runs of a worker.  Safe to use from every thread."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._joined: OrderedDict[str, _Joined] = OrderedDict()

    def join(self, info: Info) -> Run:
        """Return the run of an activity, until `leave`; this reads and writes the store."""
        run_id = run_id_of(info)
        with self._lock:
            joined = self._joined.setdefault(run_id, _Joined())
            self._joined.move_to_end(run_id)
            joined.users += 1
        try:
            with joined.lock:
                if joined.run is None:
                    joined.run = self.settings.join(info)
                return joined.run
        except BaseException:
            self.leave(info)
            raise

    def leave(self, info: Info) -> None:
        """Say that an activity has ended; runs that have been idle for longest are left."""
        with self._lock:
            joined = self._joined.get(run_id_of(info))
            if joined is not None:
                joined.users -= 1
            left = []
            idle = [key for key, each in self._joined.items() if not each.users]
            for position, key in enumerate(idle):
                if self._joined[key].run is None or len(idle) - position > _MOST_IDLE:
                    left.append(self._joined.pop(key))
        for each in left:
            _detach(each)

    def ended(self, run_id: str) -> None:
        """Leave a run that has ended."""
        with self._lock:
            joined = self._joined.get(run_id)
            if joined is None or joined.users:
                return
            del self._joined[run_id]
        _detach(joined)

    def close(self) -> None:
        """Leave every run."""
        with self._lock:
            left, self._joined = list(self._joined.values()), OrderedDict()
        for each in left:
            _detach(each)


def _detach(joined: _Joined) -> None:
    if joined.run is not None:
        with contextlib.suppress(RunStopped):
            Context().run(joined.run.__exit__, None, None, None)
