"""The flow of a step: every decision, once, for sync and async alike.

    prepare   what the call reserves, its arguments as a snapshot        user code, no lock
    admit     (1) stop and state   (2) approval   (3) reserve + step_started, one act
    enter     (4) stop, once more, immediately before the body
              (5) the body: the drivers in sync.py, aio.py and generators.py
    leave     (6) settle + step_completed or step_failed, one act        (7) the span ends

`admit` and `leave` decide on the fold of the log and append by compare-and-swap.  Where another
process appended first, they decide again with every other writer kept out, so no step starves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from agentguard._process import this_process
from agentguard.budget.account import ONE_STEP, Account, Amounts, Request
from agentguard.budget.ledger import LedgerRefusedError, Movement
from agentguard.budget.model import Usage
from agentguard.errors import (
    AgentGuardError,
    DuplicateKeyError,
    NoActiveRunError,
    UnknownCostError,
)
from agentguard.events import model as ev
from agentguard.events.data import StepStarted
from agentguard.events.model import Record
from agentguard.killswitch.model import GENERATION
from agentguard.protocols import HeadMovedError, StoreBusyError
from agentguard.runs.branch import MAIN, Branch
from agentguard.runs.fold import repeat_id
from agentguard.runs.state import RunState
from agentguard.runs.termination import termination
from agentguard.steps import approvals, exceptions
from agentguard.steps.budget_levels import Refused
from agentguard.steps.draining import allows
from agentguard.steps.live import LiveRun
from agentguard.steps.log import WaitingError
from agentguard.steps.model import InRun, Step
from agentguard.steps.refusing import needs_care, refuse, refuse_unknown_cost, stop_level, warn
from agentguard.steps.spec import StepSpec, name_option, with_step
from agentguard.steps.tasks import ensure_task_factory
from agentguard.steps.unknown_cost import unknown_cost

T = TypeVar("T")

_RUNNING = RunState.RUNNING


# --- opening a step: synchronous, at the call ----------------------------------------------------


def open_step(spec: StepSpec, position: InRun, args: Sequence[object], kwargs: Mapping[str, object]) -> Step:
    """Return the step of a call; its key is fixed now."""
    ensure_task_factory(position)
    branch = position.branch
    if branch.tasks is not None:
        branch = branch.tasks.branch_here(branch)
    if spec.key is None:
        key, pos = branch.next_call(spec.part)
        fork = position.live_run.fork
        if fork and not key.startswith(f"{MAIN}{fork}/"):
            key = f"{MAIN}{fork}/{key.removeprefix(f'{MAIN}/')}"
        return _placed(Step(spec, position, key, pos), position, branch)
    named = spec.key
    key = named if isinstance(named, str) else _asked(spec, "key", lambda: named(*args, **kwargs))
    if not isinstance(key, str) or not key or not key.isprintable():
        raise ValueError(f"{spec.name}: key must be a printable, non-empty str, not {key!r}")
    step = Step(spec, position, f"key:{key}", branch.next_pos())
    step.path = branch.path
    return _placed(step, position, branch)


def _placed(step: Step, position: InRun, branch: Branch) -> Step:
    """Return a step; where a log answers, it knows whether its thread shares the branch with others."""
    if step.live_run.player is not None:
        step.thread = threading.get_ident()
        step.elsewhere = branch is position.branch and step.thread != position.thread
    return step


# --- before the body -----------------------------------------------------------------------------


def prepare(step: Step, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Work out the request and take the snapshot of the arguments; this calls user code."""
    spec = step.spec
    levels = step.live_run.levels
    counts_repeats = levels.counts_repeats
    step.recorder.arguments(step, args, kwargs)
    attributes = step.attributes or spec.attributes
    if attributes is not None:
        step.attributes = step.recorder.attributes(attributes)
    if not spec.examined and not counts_repeats:
        return  # nothing depends on the call
    approval = spec.approval
    if callable(approval):
        step.needs_approval = _asked(spec, "approval", lambda: bool(approval(*args, **kwargs)))
    if step.needs_approval:
        step.digest = step.digest or step.recorder.digest_of(args, kwargs)
        step.unknown = step.recorder.unknown(args, kwargs)
        step.asked = step.recorder.asked(step, args, kwargs)
    if spec.request is not None and not counts_repeats:
        return
    reserve = _reserve(step, args, kwargs)
    repeat = shared_repeat = None
    if counts_repeats:
        # On record, so that every reader counts alike.
        step.digest = step.digest or step.recorder.digest_of(args, kwargs)
        repeat = repeat_id(spec.name, step.recorder.repeat_of(args, kwargs))
        if levels.outer:
            digest = step.recorder.repeat_of(args, kwargs, levels.outer[-1].levels.log.digest)
            shared_repeat = repeat_id(spec.name, digest)
    step.request = Request(reserve, spec.name, spec.kind, spec.postpaid, repeat, shared_repeat)


def _reserve(step: Step, args: Sequence[object], kwargs: Mapping[str, object]) -> Amounts:
    spec = step.spec
    if spec.request is not None:
        return spec.request.reserve
    bound = spec.reserve
    if callable(bound):
        reserve = bound
        try:
            bound = _asked(spec, "reserve", lambda: reserve(*args, **kwargs))
        except UnknownCostError as error:
            step.unpriced = error  # `admit` stops the run with it, in its turn
            return ONE_STEP
    if bound is None:
        return ONE_STEP
    if not isinstance(bound, Usage):
        raise TypeError(f"{spec.name}: reserve must give a Usage, not {type(bound).__name__}")
    return with_step(bound)


def _asked(spec: StepSpec, option: str, ask: Callable[[], T]) -> T:
    """Return what a user's callable says of a call; what it raises names the step and the option."""
    try:
        return ask()
    except Exception as error:
        name_option(error, spec.name, option)
        raise


def admit(step: Step, *, wait: bool = True) -> None:
    """Let the step start, or refuse it; `step_started` is on record when this returns.

    Raises:
        RunStopped: the run, or the scope, is stopped, or stops now.
        WaitingError: the run is paused, or the step waits for an approval.
        StoreBusyError: with `wait=False`, this would have to wait for another writer.
        StoreUnavailableError, KillSwitchUnavailableError: refused, fail closed.
    """
    append_in_turn(step, _admit, None, wait)
    if step.commit is not None and wait:
        confirm_start(step)


def append_in_turn(
    step: Step,
    decide: Callable[[Step, T, bool], None],
    given: T,
    wait: bool,  # noqa: FBT001 - called twice for each step, and keywords cost
) -> None:
    """Call `decide(step, given, wait)`, which appends an event of the step, under the log's lock.

    Where another process appended first, it decides again with every other writer kept out.
    """
    log = step.live_run.log
    moved = False
    try:
        log.enter(decide, step, given, wait)
    except HeadMovedError:
        moved = True
    if moved:  # outside the handler, so that no error that is raised has the internal one as its context
        if not wait:
            raise StoreBusyError
        log.decide(lambda: decide(step, given, True))  # noqa: FBT003
    durability = step.spec.durability
    if (log.power or durability) and wait and step.commit is None and log.shares_disk(durability):
        log.store.settle()


def confirm_start(step: Step) -> None:
    """Return when the start that was accepted is committed; decide again where others came first.

    Raises:
        What `admit` raises.
    """
    live_run = step.live_run
    accounts: Mapping[str, Account] | None = None
    try:
        accounts = wait_for_commit(step)
    except (HeadMovedError, StoreBusyError):
        pass
    except LedgerRefusedError as error:
        raise _refused_by_account(step, error) from None
    except BaseException as error:  # it may be on record all the same
        live_run.log.doubt(step, exceptions.capture(error))
        raise
    if accounts is None:
        live_run.log.decide(lambda: _admit(step, None, True))  # noqa: FBT003
    elif needs_care(live_run, step.request.reserve, accounts):
        live_run.log.hold(warn, live_run, step.scope_key, step.request.reserve, accounts)


def wait_for_commit(step: Step) -> Mapping[str, Account]:
    """Return the shared accounts as the commit left them that a step waits for, or raise its error."""
    commit, step.commit = step.commit, None
    group = step.live_run.log.group
    if commit is None or group is None:
        return {}
    return group.wait_for(commit)


def _check_start(step: Step, live_run: LiveRun) -> None:
    """Raise unless the step may start, its budget left aside."""
    check(live_run, step.scope_key)
    fold = live_run.log.fold
    if fold.state is not _RUNNING:
        raise WaitingError
    if step.spec.examined:
        _examine(step)
    elif step.key in fold.open:  # two lines of control in one branch: one name attached twice
        live_run.log.require_certainty()
        raise DuplicateKeyError(step.key, live_run.run_id)


def _admit(step: Step, _: None, wait: bool) -> None:  # noqa: FBT001
    live_run, spec, request = step.live_run, step.spec, step.request
    if live_run.time.waiters:
        live_run.time.count_idle()
    log = live_run.log
    fold = log.fold
    seq = fold.seq + 1  # what comes before that is what is decided on
    _check_start(step, live_run)
    shadow = None
    # Outside scopes there is one level to ask, the run's, which nearly always has room.
    if fold.limited and (step.scope_key or fold.account.refusal(request) is not None):
        refused, shadow = live_run.levels.refused(step.scope_key, request)
        if refused is not None:
            log.require_certainty()
            raise refuse(step, refused)
    if step.needs_approval and approvals.grant(step):
        _admit(step, None, wait)
        return
    wall, monotonic = live_run.clock.wall, live_run.clock.monotonic
    now = wall()
    movements: Sequence[Movement] = ()
    outside_accounts: tuple[str, ...] = ()
    if not live_run.levels.only_this_run or step.account is not None:
        movements, outside_accounts = live_run.levels.reserving(
            step.scope_key, request, lambda: live_run.components.store_time(wait=wait), step.account
        )
    span = step.span
    data = _started_data(step, request, outside_accounts, shadow)
    record = Record(
        seq,
        ev.STEP_STARTED,
        now,
        step.key,
        step.pos,
        spec.name,
        spec.kind,
        step.attempt,
        None,
        None,
        None,
        data,
        None if span is None else span.trace_id,
        None if span is None else span.span_id,
    )
    step.at_ns = now
    try:
        digest = log.write(record, step.payload, movements, spec.durability, wait)
    except LedgerRefusedError as error:
        raise _refused_by_account(step, error) from None
    step.commit = log.commit
    near = fold.start(record, digest, request)
    log.written(fold)
    step.started_ns = monotonic()
    if near or movements:
        warn(live_run, step.scope_key, request.reserve, log.moved)


def _refused_by_account(step: Step, error: LedgerRefusedError) -> Exception:
    """Return the error of a shared level without room, or of one that is closed."""
    live_run = step.live_run
    if error.refusal is not None:
        return refuse(step, live_run.levels.whose(error.account, error.path, error.refusal))
    for around in live_run.around:
        around.live_run.refresh()
    check(live_run, step.scope_key)  # raises the stop, where it ended with one
    return NoActiveRunError(f"a run around {live_run.run_id} has ended; open a new run")


def _examine(step: Step) -> None:
    """Check what few steps have: an approval, a price, a key of their own."""
    spec = step.spec
    if spec.approval is not None:
        approvals.require(step)
    if (unknown := unknown_cost(step)) is not None:
        refuse_unknown_cost(step, unknown)
    if spec.key is not None:
        _next_attempt(step)
    elif step.key in step.live_run.log.fold.open:
        step.live_run.log.require_certainty()
        raise DuplicateKeyError(step.key, step.live_run.run_id)


def _next_attempt(step: Step) -> None:
    """Number the next attempt of a `key=`; refuse it unless the last one failed."""
    log = step.live_run.log
    attempts, completed = log.fold.keyed.get(step.key, (0, False))
    if completed or step.key in log.fold.open:
        log.require_certainty()
        raise DuplicateKeyError(step.key.removeprefix("key:"), log.run_id)
    step.attempt = attempts + 1


def _started_data(
    step: Step, request: Request, outside_accounts: tuple[str, ...], shadow: Refused | None
) -> StepStarted | None:
    data = step.spec.facts.copy()
    if step.attributes is not None:
        data["attributes"] = step.attributes
    if step.spec.key is not None:
        data["branch"] = step.path
    if request is not step.spec.plain:
        _put_request(data, request, step.digest)
    if step.digest is not None:
        data["args"] = step.digest
        if step.payload is None:
            data["digest_only"] = True  # so that a payload that is gone is told from one never taken
    _put_place(data, step)
    if outside_accounts:
        data["windows"] = outside_accounts
    if shadow is not None:
        error = shadow.refusal.error(shadow.path, step.live_run.run_id)
        data["would_stop"] = termination(error)
        if step.span is not None:
            step.span.would_refuse(error)
    return data or None


def _put_place(data: StepStarted, step: Step) -> None:
    """Put on record where a step is: in which scope, step, and process."""
    if step.scope_key:
        data["scope"] = step.scope_key
    if step.parent is not None:
        data["parent"] = step.parent.key
    if not step.live_run.owner:
        data["process"] = this_process()


def _put_request(data: StepStarted, request: Request, digest: str | None) -> None:
    if request.reserve is not ONE_STEP:
        data["reserve"] = request.reserve
    elif request.postpaid:  # `reserve=` may say so for one call alone
        data["unbounded"] = True
    if request.repeat is not None and request.repeat != repeat_id(request.name, digest):
        data["repeat"] = request.repeat.removeprefix(f"{request.name}:")


def check(live_run: LiveRun, scope: str = "") -> None:
    """Raise the stop that covers this place, if there is one: kill, run, scope or deadline."""
    _check_run(live_run, scope)
    if live_run.around:
        for around in live_run.around:
            _check_run(around.live_run, around.scope)
    if live_run.levels.has_deadline:
        check_deadline(live_run, scope)


def _check_run(live_run: LiveRun, scope: str) -> None:
    """The same for one run alone: what is around it is not asked."""
    stops = live_run.stops
    if stops.signal[GENERATION] != stops.seen:
        live_run.apply_kill()
        draining = stops.draining
        if draining is not None and stops.stop is None and not allows(draining):
            raise draining.stop.with_traceback(None)
    if stops.stop is not None:
        raise stops.stop.with_traceback(None)
    fold = live_run.log.fold
    if stops.scopes:
        for level in fold.chain(scope):
            if (stop := stops.scopes.get(level.key)) is not None:
                raise stop.with_traceback(None)
    if fold.state is not _RUNNING and fold.state.final:
        raise ended_error(live_run)


def ended_error(live_run: LiveRun) -> AgentGuardError:
    """Return the error for a step of a run that has ended without a stop."""
    return NoActiveRunError(
        f"run {live_run.run_id} is {live_run.log.fold.state}: it takes no further step; open a new run"
    )


def check_deadline(live_run: LiveRun, scope: str) -> None:
    """Stop the level whose `seconds` are used up."""
    nearest = live_run.levels.deadline(scope)
    if nearest is not None and nearest[0] <= 0:
        raise stop_level(live_run, nearest[1], None)
