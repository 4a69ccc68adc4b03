"""What a run's log adds up to.  Live and read back, the same code applies the same records.

`start` and `close` do all that a step's start and outcome mean; the live path calls them with the record
that it has just appended, and `apply` with one that was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Required

import msgspec

from agentguard.budget.account import ONE_STEP, Account, Amounts, Request
from agentguard.budget.model import Budget
from agentguard.budget.named import NamedAccount
from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events import data as d
from agentguard.events import model as ev
from agentguard.events.data import data_of
from agentguard.events.model import Record
from agentguard.runs.branch import UNNAMED, scope_part
from agentguard.runs.state import RunState, check_move
from agentguard.runs.termination import COMPLETED

RUN_PATH = "run"


class OpenStep(msgspec.Struct, frozen=True, gc=False):
    """A step in flight: what it holds, and where."""

    request: Request
    scope: str
    attempt: int
    outside_accounts: tuple[str, ...] = ()


class ApprovalState(d.Approval, total=False):
    """The newest event of a step that waits, or waited, for an approval."""

    #: Its type.
    state: Required[str]
    name: Required[str | None]
    #: Its number and its time.
    seq: Required[int]
    at_ns: Required[int]


class ScopeFold:
    """A scope as the log knows it."""

    __slots__ = ("accounts", "closed", "key", "opened_ns", "parent", "path", "shared", "stop")

    def __init__(self, key: str, path: str, accounts: tuple[Account, ...], parent: str) -> None:
        self.key = key
        self.path = path
        #: Its own account and those around it, innermost first, the run's last.
        self.accounts = accounts
        self.parent = parent
        self.stop: d.Termination | None = None
        self.closed = False
        #: Whether other logs charge this level too, so that its account lies in the store.
        self.shared = False
        #: The run's running time when the scope was opened; its `seconds` count from there.
        self.opened_ns = 0


class RunFold:
    """The state of a run as of event `seq`.  Pure.  Threads that share one hold a lock."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.name = ""
        self.tenant = ""
        self.parent_id: str | None = None
        self.metadata: dict[str, object] = {}
        #: The span that it was created in, by trace id and span id.
        self.began_in: tuple[str, str] | None = None
        self.state = RunState.CREATED
        self.budget = Budget()
        #: The account that its steps are charged to beside its own levels, and those of other runs too.
        self.named_account: NamedAccount | None = None
        self.seq = 0
        self.hash = codec.genesis(run_id)
        self.epoch = 1
        self.account = Account(RUN_PATH, self.budget)
        #: Scopes by key; the run itself is the scope with the empty key.
        self.scopes: dict[str, ScopeFold] = {}
        self.open: dict[str, OpenStep] = {}
        #: How many attempts a step with a `key=` of its own has had, and whether it completed.
        self.keyed: dict[str, tuple[int, bool]] = {}
        self.steps = 0
        #: How many results on record cannot be handed out again.
        self.unreplayable = 0
        self.created_ns = 0
        self.started_ns: int | None = None
        self.ended_ns: int | None = None
        self.running_ns = 0
        #: When the run became RUNNING, and the newest event, by the writer's wall clock.
        self._running_from_ns = 0
        self._last_ns = 0
        #: What the present, or last, pause says of itself.
        self.pause: d.RunPaused = {}
        #: What the last resume says of itself.
        self.resumed: d.RunResumed = {}
        #: The number of the event of the present, or last, pause.
        self.paused_seq = 0
        #: When it began, by the writer's wall clock.
        self.paused_ns = 0
        self.termination: d.Termination | None = None
        self.warnings: list[dict[str, object]] = []
        self.warned: set[tuple[str, str]] = set()
        #: The newest state of each kind of alert that was told of the run.
        self.alerts: dict[str, str] = {}
        #: Where code went on calling after its stop, and what was done about it.
        self.swallowed: list[d.StopSwallowed] = []
        #: Steps that wait, or waited, for an approval, by key.
        self.approvals: dict[str, ApprovalState] = {}
        #: How values are encoded; logs that do not say are of the first scheme.
        self.value_scheme = 1
        #: Whether payloads were erased: none is taken after that.
        self.erased = False
        #: The kill switch's generation when the run was created.
        self.generation = 0
        self.seed = ""
        #: The run that this one was forked from, and the first one of such a line; or nothing.
        self.forked_from: str | None = None
        self.origin = ""
        #: False once a step accepted overshoot: usage known only afterwards, nothing reserved.
        self.bounded = True
        #: True once a step was called in a branch that has its number by arrival.
        self.needs_branch_names = False
        self._set_budget(self.budget)

    def _set_budget(self, budget: Budget) -> None:
        self.budget = budget
        self.account = Account(RUN_PATH, budget)
        self.scopes[""] = ScopeFold("", RUN_PATH, (self.account,), "")
        self._budgets_changed()

    def _budgets_changed(self) -> None:
        budgets = [scope.accounts[0].budget for scope in self.scopes.values()]
        #: Whether any level can refuse, or counts repeats: else a step skips the question.
        self.limited = any(not budget.unlimited for budget in budgets)
        self.counts_repeats = any(budget.repeats is not None for budget in budgets)

    def apply_stored(self, stored: codec.Stored) -> Record:
        """Apply an event that was read, whose hash was verified, or is not needed.

        Raises:
            LogIntegrityError: it is no event, or cannot come after what is before it.
        """
        try:
            record = codec.decode(stored.body)
            self.apply(record, stored.hash)
        except LogIntegrityError as error:
            raise LogIntegrityError(self.run_id, stored.seq, error.problem) from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            problem = f"it cannot come after what is before it ({error!r})"
            raise LogIntegrityError(self.run_id, stored.seq, problem) from error
        return record

    # --- reading -------------------------------------------------------------------------------

    def spent_after(self, usage: Amounts) -> Amounts:
        """Return the run's total once `usage` is added."""
        spent = self.account.spent.copy()
        for resource, amount in usage.items():
            spent[resource] = spent.get(resource, 0) + amount
        return spent

    def running_until_last_event(self) -> int:
        """Return the running time up to the last event, in nanoseconds."""
        return self.running_until(self._last_ns)

    def running_until(self, at_ns: int) -> int:
        """Return the running time up to a wall-clock time, or to the last event if that is later."""
        if self.state is not RunState.RUNNING:
            return self.running_ns
        return self.running_ns + max(0, max(at_ns, self._last_ns) - self._running_from_ns)

    def chain(self, scope: str) -> list[ScopeFold]:
        """Return a scope and those around it, innermost first."""
        levels = [self.scopes[scope]]
        while levels[-1].key:
            levels.append(self.scopes[levels[-1].parent])
        return levels

    def inside(self, scope: str) -> set[str]:
        """Return the keys of a scope and of all scopes inside it."""
        # A list, since a kill asks from a thread of its own while others open scopes.
        return {key for key in list(self.scopes) if any(s.key == scope for s in self.chain(key))}

    # --- applying ------------------------------------------------------------------------------

    def apply(self, record: Record, digest: bytes) -> None:
        """Take in the next record of the log, whose hash is `digest`."""
        if record.type == ev.STEP_STARTED:
            self.start(record, digest, _request_of(record))
        elif record.type in _OUTCOMES:
            self.close(record, digest)
        else:
            handler = _HANDLERS.get(record.type)
            if handler is not None:
                handler(self, record, record.data or {})
            self._pass(record, digest)

    def _pass(self, record: Record, digest: bytes) -> None:
        self.seq = record.seq
        self.hash = digest
        self._last_ns = record.at_ns

    def start(self, record: Record, digest: bytes, request: Request) -> bool:
        """Take in a `step_started`: the step holds what it asks for at every level of this log.

        Return whether a limit of it is near now.
        """
        scope = ""
        outside_accounts: tuple[str, ...] = ()
        key = record.key or ""
        if record.data is not None:
            data = data_of(record, d.StepStarted)
            scope = data.get("scope", "")
            outside_accounts = tuple(data.get("windows", ()))
            if "unbounded" in data:
                self.bounded = False
            if "keyed" in data:
                self.keyed[key] = (record.attempt, False)
        near = False
        for account in self.scopes[scope].accounts:
            if account.reserve(request):
                near = True
        self.open[key] = OpenStep(request, scope, record.attempt, outside_accounts)
        if key.startswith(UNNAMED):
            self.needs_branch_names = True
        self.steps += 1
        self.seq = record.seq
        self.hash = digest
        self._last_ns = record.at_ns
        return near

    def close(self, record: Record, digest: bytes) -> None:
        """Take in a `step_completed`, `step_failed` or `step_resolved`.

        The step gives back what it held and is charged what it used.  One whose body never ran gives
        everything back.
        """
        key = record.key or ""
        data = data_of(record, d.StepResolved)
        if "unreplayable" in data:
            self.unreplayable += 1
        if self.keyed and key in self.keyed:
            done = record.type == ev.STEP_COMPLETED or data.get("as") == "completed"
            self.keyed[key] = (record.attempt or self.keyed[key][0], done)
        step = self.open.pop(key, None)
        if step is not None:  # else a resolution of a step whose failure is already on record
            unentered = data.get("body_ran") is False
            for account in self.scopes[step.scope].accounts:
                if unentered:
                    account.release(step.request)
                else:
                    account.settle(step.request.reserve, record.usage or {})
            if unentered:
                self.steps -= 1
        self.seq = record.seq
        self.hash = digest
        self._last_ns = record.at_ns

    def _move(self, to_state: RunState) -> None:
        check_move(self.run_id, self.state, to_state)
        self.state = to_state

    def _created(self, record: Record, data: d.RunCreated) -> None:
        self.name = record.name or ""
        self.tenant = data["tenant"]
        self.parent_id = data.get("parent")
        self.metadata = data.get("metadata", {})
        if record.trace_id is not None and record.span_id is not None:
            self.began_in = record.trace_id, record.span_id
        self.generation = data.get("generation", 0)
        self.seed = data.get("seed", "")
        self.value_scheme = data.get("values", 1)
        self.created_ns = record.at_ns
        if "account" in data:
            self.named_account = NamedAccount.from_data(data["account"])
        self._set_budget(Budget.from_fields(data.get("budget", {})))

    def _budget_set(self, record: Record, data: d.RunBudgetSet) -> None:
        self.budget = Budget.from_fields(data["budget"])
        self.account.limit_by(self.budget)
        self.warned = {(level, resource) for level, resource in self.warned if level != RUN_PATH}
        self._budgets_changed()

    def _run_started(self, record: Record, data: Mapping[str, object]) -> None:
        self._move(RunState.RUNNING)
        self.started_ns = self._running_from_ns = record.at_ns

    def _forked(self, record: Record, data: d.RunForked) -> None:
        self.forked_from = data["origin"]
        self.origin = data["root"]
        self.account.charge(record.usage or {})
        self.account.calls.update(data.get("calls", {}))
        self.account.repeats.update(data.get("repeats", {}))
        self.keyed.update({key: (attempt, done) for key, (attempt, done) in data.get("keyed", {}).items()})
        for given in data.get("scopes", ()):
            scope = self._add_scope(given["key"], given["around"], Account.from_data(given["account"]))
            scope.stop, scope.closed = given["stop"], given.get("closed", False)

    def _paused(self, record: Record, data: d.RunPaused) -> None:
        self._move(RunState.PAUSED)
        self.pause = data
        self.paused_seq = record.seq
        self.paused_ns = record.at_ns
        self.running_ns = data.get("running_ns", self.running_ns)

    def _resumed(self, record: Record, data: d.RunResumed) -> None:
        self._move(RunState.RUNNING)
        self.resumed = data
        self._running_from_ns = record.at_ns

    def _recovered(self, record: Record, data: d.RunRecovered) -> None:
        self.epoch = data["epoch"]
        self._running_from_ns = record.at_ns
        self.running_ns = data.get("running_ns", self.running_ns)

    def _ended(self, record: Record, data: d.RunEnded) -> None:
        self._move(_TERMINAL[record.type])
        self.ended_ns = record.at_ns
        self.termination = data.get("termination", COMPLETED)
        self.running_ns = data.get("running_ns", self.running_ns)

    def _refused(self, record: Record, data: d.ScopeStopped) -> None:
        if (scope := data.get("stops")) and scope in self.scopes:
            self.scopes[scope].stop = data["termination"]
        asked = self.approvals.get(record.key or "")
        if asked is not None and asked["state"] == ev.APPROVAL_REQUESTED:
            del self.approvals[record.key or ""]  # nobody waits for an answer any more

    def _scope_opened(self, record: Record, data: d.ScopeOpened) -> None:
        around = self.scopes[data.get("scope", "")]
        key = record.key or ""
        if "run" in data:
            # From here on other logs charge these levels too: their accounts move to the store.
            for level in self.chain(around.key):
                level.shared = True
            return
        path = scope_part(record.name or "")
        if around.key:
            path = f"{around.path}/{path}"
        scope = self._add_scope(key, around.key, Account(path, Budget.from_fields(data.get("budget", {}))))
        scope.opened_ns = data.get("running_ns", 0)

    def _add_scope(self, key: str, around: str, account: Account) -> ScopeFold:
        scope = ScopeFold(key, account.path, (account, *self.scopes[around].accounts), around)
        self.scopes[key] = scope
        self._budgets_changed()
        return scope

    def _scope_closed(self, record: Record, data: d.NestedRunClosed) -> None:
        if record.usage:  # a nested run: what it used counts here and at every level around
            for account in self.scopes[data.get("scope", "")].accounts:
                account.charge(record.usage)
        elif (scope := self.scopes.get(record.key or "")) is not None:
            scope.closed = True

    def _approval(self, record: Record, data: d.Approval) -> None:
        self.approvals[record.key or ""] = {
            **data,
            "state": record.type,
            "name": record.name,
            "seq": record.seq,
            "at_ns": record.at_ns,
        }

    def _valued(self, record: Record, data: d.Value) -> None:
        if "unreplayable" in data:
            self.unreplayable += 1

    def _warned(self, record: Record, data: d.BudgetWarning) -> None:
        self.warned.add((data["level"], data["resource"]))
        self.warnings.append(dict(data))

    def _alerted(self, record: Record, data: d.AlertTold) -> None:
        self.alerts[data["kind"]] = data["state"]

    def _stop_swallowed(self, record: Record, data: d.StopSwallowed) -> None:
        self.swallowed.append(data)

    def _erased(self, record: Record, data: Mapping[str, object]) -> None:
        self.erased = True


def repeat_id(name: str, digest: str | None) -> str | None:
    """Return what identifies equal calls: name and arguments."""
    return None if digest is None else f"{name}:{digest}"


def repeat_of(record: Record) -> str | None:
    """Return what identifies the calls that equal a `step_started`."""
    return _request_of(record).repeat


def _request_of(record: Record) -> Request:
    """Return what a step on record asked for."""
    data, name = data_of(record, d.StepStarted), record.name or ""
    repeat = repeat_id(name, data.get("repeat", data.get("args")))
    return Request(data.get("reserve", ONE_STEP), name, record.kind or "", repeat=repeat)


_OUTCOMES = frozenset((ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED))
_TERMINAL = {
    ev.RUN_COMPLETED: RunState.COMPLETED,
    ev.RUN_FAILED: RunState.FAILED,
    ev.RUN_KILLED: RunState.KILLED,
}
_HANDLERS: dict[str, Callable[[RunFold, Record, Any], None]] = {
    ev.RUN_CREATED: RunFold._created,
    ev.RUN_STARTED: RunFold._run_started,
    ev.RUN_BUDGET_SET: RunFold._budget_set,
    ev.RUN_FORKED: RunFold._forked,
    ev.RUN_PAUSED: RunFold._paused,
    ev.RUN_RESUMED: RunFold._resumed,
    ev.RUN_RECOVERED: RunFold._recovered,
    ev.RUN_COMPLETED: RunFold._ended,
    ev.RUN_FAILED: RunFold._ended,
    ev.RUN_KILLED: RunFold._ended,
    ev.STEP_REFUSED: RunFold._refused,
    ev.VALUE: RunFold._valued,
    ev.SCOPE_OPENED: RunFold._scope_opened,
    ev.SCOPE_CLOSED: RunFold._scope_closed,
    ev.BUDGET_WARNING: RunFold._warned,
    ev.STOP_SWALLOWED: RunFold._stop_swallowed,
    ev.ALERT: RunFold._alerted,
    ev.PAYLOAD_ERASED: RunFold._erased,
    ev.APPROVAL_REQUESTED: RunFold._approval,
    ev.APPROVAL_GRANTED: RunFold._approval,
    ev.APPROVAL_DENIED: RunFold._approval,
}
