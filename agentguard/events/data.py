"""The wire format of events: what the `data` of each type says beside the fields of every `Record`.

Stored bodies hold exactly these names.  `Required` ones are there in every event of the type; which of the
others are depends on what happened.  A log of an earlier version may lack names; unknown ones are kept and
not read.  Amounts are internal ones: money in 1e-9 USD.  Times are nanoseconds.  Digests are salted ones,
as `codec.payload_digest` gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Required, TypedDict, TypeVar

Amounts = dict[str, int]
#: What `Budget.to_fields` gives.
BudgetFields = dict[str, object]
#: Facts of a step for its span, the user's own and those of integrations.
Attributes = Mapping[str, object]


# --- errors -----------------------------------------------------------------------------------------


#: What ended a run or a scope: `type` and `message` as in `ErrorData`, and the facts of an agentguard error
#: by the names of its attributes, money as text.  The type alone, `completed`, where nothing went wrong.
Termination = dict[str, object]


class ErrorData(TypedDict, total=False):
    """An exception, with its type and message.  Those of agentguard are as in a `Termination`."""

    type: Required[str]
    message: Required[str]
    #: Arguments and attributes, packed.  Without `args`, the message is the only argument.
    args: list[object]
    facts: dict[str, object]
    notes: list[str]
    #: The message of an exception group, and its members.
    group: str
    exceptions: list[ErrorData]
    cause: ErrorData
    #: Why it does not come back as it was; on record for members and causes alone.
    lost: str


class _Unreplayable(TypedDict, total=False):
    """What cannot be handed out again, and why."""

    unreplayable: str


class Failure(_Unreplayable, total=False):
    """How something failed, if it did."""

    error: ErrorData


class Failed(_Unreplayable, total=False):
    """How something failed that did."""

    error: Required[ErrorData]


# --- runs -------------------------------------------------------------------------------------------


class LostPart(TypedDict):
    """A part of a run's inputs that is not on record as it was: where it lies, and why."""

    path: list[str | int]
    reason: str


class RunCreated(TypedDict, total=False):
    """`run_created`."""

    tenant: Required[str]
    budget: BudgetFields
    #: The kill switch's generation when the run was created.
    generation: int
    #: How keys are made, and how values are encoded.
    keys: int
    values: int
    python: str
    seed: str
    #: As `NamedAccount.to_data` gives it.
    account: dict[str, object]
    metadata: dict[str, object]
    #: The run around it, and its key there.
    parent: str
    parent_key: str
    #: The digest of its inputs; the parts that do not come back.
    inputs: str
    lost_inputs: list[LostPart]
    digest_only: bool
    #: How often a worker tries it again.
    retries: int


class ScopeTaken(TypedDict, total=False):
    """A scope that a fork takes over; `account` as `Account.to_data` gives it."""

    key: Required[str]
    around: Required[str]
    stop: Required[Termination | None]
    account: Required[dict[str, object]]
    closed: bool


class RunForked(TypedDict, total=False):
    """`run_forked`: the origin, the event `seq` that it was forked at, its hash, and what is taken over."""

    origin: Required[str]
    seq: Required[int]
    hash: Required[str]
    #: How far the origin's log is shared, for what was under way at `seq`.
    until: int
    #: The run whose idempotency keys go on.
    root: Required[str]
    calls: Amounts
    repeats: Amounts
    #: By key: attempts so far, and whether the last completed.
    keyed: dict[str, tuple[int, bool]]
    scopes: list[ScopeTaken]


_From = TypedDict("_From", {"from": str}, total=False)


class RunRecovered(_From, total=False):
    """`run_recovered`: a claim.  `from` is the owner before, in words."""

    epoch: Required[int]
    running_ns: int


class Said(TypedDict, total=False):
    """Who did something to a run, and why."""

    actor: str
    reason: str


class StepRequest(TypedDict):
    """What a step asks of every level."""

    reserve: Amounts
    name: str
    kind: str
    postpaid: bool
    repeat: str | None


class RefusedFields(TypedDict):
    """The `step_refused` that a refusal will be."""

    pos: int
    kind: str | None
    attempt: int
    data: StepRefused


class LimitAsked(TypedDict):
    """A step that waits for a higher limit, and what ends the run if that is denied."""

    key: str
    name: str
    termination: Termination
    request: StepRequest
    refusal: RefusedFields | None


class RunPaused(Said, total=False):
    """`run_paused`: by an operator, for the step `unknown`, or for one that asks at its limit."""

    running_ns: int
    unknown: str
    asks: LimitAsked


class RunResumed(Said, total=False):
    """`run_resumed`."""

    running_ns: int


class RunBudgetSet(Said, total=False):
    """`run_budget_set`."""

    budget: Required[BudgetFields]
    #: The program itself set it, and will again when it is recovered or replayed; else an operator did.
    own: bool


class RunEnded(Said, total=False):
    """`run_completed`, `run_failed` and `run_killed`; by whom and why, where an operator ended it by hand."""

    termination: Required[Termination]
    running_ns: int


class BudgetWarning(TypedDict, total=False):
    """`budget_warning`: amounts as text, in the resource's own unit."""

    #: The scope's key, or the name of a shared account.
    level: Required[str]
    path: Required[str]
    resource: Required[str]
    used: Required[str]
    limit: Required[str]
    #: Nothing charged this limit during the whole run.
    uncharged: bool


class StopSwallowed(TypedDict):
    """`stop_swallowed`: code went on calling after its stop; also on record after the run's end."""

    #: The path of its branch.
    branch: str
    #: How often in a row it was refused.
    refusals: int
    #: What was done about it: `slowed` or `cancelled`.
    action: str


class AlertTold(TypedDict, total=False):
    """`alert`: in a run's log; one that is about no run alone, in the control log."""

    kind: Required[str]
    #: `firing` or `resolved`.
    state: Required[str]
    message: Required[str]
    #: What it is about; left out where that is the run.
    subject: str
    facts: Mapping[str, object]


# --- calls ------------------------------------------------------------------------------------------


class CallStarted(TypedDict, total=False):
    """What the first event of every call may say: a step, a refused step, a value, a scope."""

    #: The branch of the call, where its key does not begin with it.
    branch: str
    #: The scope that it is in, and the step in whose body it was made.
    scope: str
    parent: str
    #: The digest of its arguments.
    args: str


_Async = TypedDict("_Async", {"async": bool}, total=False)


class StepStarted(CallStarted, _Async, total=False):
    """`step_started`."""

    effect: str
    #: Whether it has a `key=` of its own.
    keyed: bool
    #: Whether it accepts overshoot.
    unbounded: bool
    attributes: Attributes
    #: What is reserved, where that is more than one step.
    reserve: Amounts
    #: What identifies equal calls, where `args` does not.
    repeat: str
    digest_only: bool
    #: Shared accounts outside any run: a tenant's periods, a named account.
    windows: tuple[str, ...]
    #: The stop that a level without `enforce` would have raised.
    would_stop: Termination
    #: The process whose step it is, where that does not own the run.
    process: dict[str, object]


class StepRefused(CallStarted, Said, Failure, total=False):
    """`step_refused`: by a limit, or given up before it had started (then with `error`)."""

    attributes: Attributes
    outcome: str
    #: The number of the event that asked an operator.
    asked: int


class ScopeStopped(StepRefused, total=False):
    """A `step_refused` that stops a scope: which one, and with what."""

    stops: Required[str]
    termination: Required[Termination]


class StepEnded(Failure, total=False):
    """`step_completed` and `step_failed`."""

    #: The digest of the result.
    result: str
    #: The result comes back without its annotation.
    plain: bool
    #: Of a generator: how many items, how many of them were sent something, how its return value comes back.
    items: int
    sent: int
    returned: str
    closed_early: bool
    #: What failed was an iterator, which might have had more items.
    over: bool
    #: How the result went on after its function had returned, in the words of `steps.following`.
    came: tuple[str, ...]
    #: What was used beyond the reservation.
    excess: Amounts
    #: False: the body never ran, and all was given back.
    body_ran: bool
    #: `cancelled` or `abandoned`; else it failed.
    outcome: str


_As = TypedDict("_As", {"as": str}, total=False)


class StepResolved(StepEnded, _As, total=False):
    """`step_resolved`: `as` retry, completed or failed, by whom."""

    by: str


class Value(CallStarted, Failure, total=False):
    """`value`: the digest of what `run.now`, `run.record` and their like gave."""

    value: str


class ScopeOpened(CallStarted, total=False):
    """`scope_opened` of a scope."""

    running_ns: int
    budget: BudgetFields


class NestedRunOpened(CallStarted, total=False):
    """`scope_opened` of a nested run."""

    run: Required[str]


class ScopeClosed(TypedDict, total=False):
    """`scope_closed` of a scope."""

    stopped: bool


class NestedRunClosed(TypedDict, total=False):
    """`scope_closed` of a nested run: the scope that it is charged to, and the state that it ended in."""

    run: Required[str]
    state: Required[str]
    scope: str


class Approval(Said, total=False):
    """`approval_requested`, `approval_granted` and `approval_denied`."""

    args: Required[str | None]
    #: What binds it to arguments that no digest tells apart.
    unknown: str
    captured: bool
    #: The digest of the arguments as they are shown, where that says more than what the step is bound by.
    shown: str
    #: How many seconds it is waited for.
    timeout: float


# --- the control log --------------------------------------------------------------------------------


class KillRequest(TypedDict, total=False):
    """`kill_set` and `kill_cleared`: scope is `global`, `tenant` or `run`."""

    scope: Required[str]
    target: str
    reason: Required[str]
    actor: str


class TenantBudgetSet(Said, total=False):
    """`tenant_budget_set`."""

    tenant: Required[str]
    per: str | None
    budget: Required[BudgetFields]


class OperatorAction(Said, total=False):
    """`operator_action`: what was done to a run, which is on record there as event `seq`."""

    action: Required[str]
    run: Required[str]
    tenant: str
    seq: int
    hash: str
    key: str
    budget: BudgetFields


class ProcessesSignalled(TypedDict):
    """`processes_signalled`: the kill's generation, the signal, and the processes."""

    kill: int
    signal: str
    processes: list[dict[str, object]]
    actor: str


class PrunedRun(TypedDict):
    """A run that was pruned, and the head of its log."""

    run: str
    seq: int
    hash: str


class PayloadErased(TypedDict, total=False):
    """`payload_erased`: in a run's log, and for a run or for runs that were pruned in the control log."""

    actor: str
    run: str
    tenant: str
    #: The heads of the runs that were pruned, and before when those had ended.
    pruned: list[PrunedRun]
    ended_before: str


# --- writing and reading ----------------------------------------------------------------------------


def put_said(data: Said, said: Said) -> None:
    """Put on an event who did it, and why."""
    if "actor" in said:
        data["actor"] = said["actor"]
    if "reason" in said:
        data["reason"] = said["reason"]


class _HasData(Protocol):
    @property
    def data(self) -> Mapping[str, object] | None: ...


D = TypeVar("D")


def data_of(event: _HasData, of: type[D]) -> D:
    """Return the data of an event whose type is known, as the class of this page that describes it."""
    return event.data or {}  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
