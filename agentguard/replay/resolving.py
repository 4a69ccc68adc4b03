"""Steps that may have happened: what a recovery does about one, and what an operator says of it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, NoReturn

from agentguard._values.names import clean_text
from agentguard.budget.account import ONE_STEP, Amounts
from agentguard.budget.model import Usage
from agentguard.errors import AgentGuardError, StepOutcomeUnknownError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import payload_digest
from agentguard.events.data import ErrorData, RunPaused, RunResumed, StepResolved, StepStarted, data_of
from agentguard.events.model import Record
from agentguard.replay.origin import origin_log
from agentguard.replay.tape import Call
from agentguard.runs.state import RunState
from agentguard.steps import exceptions, values
from agentguard.steps.live import LiveRun
from agentguard.steps.outcome import CANCELLED
from agentguard.steps.served import RecordedOutcome
from agentguard.steps.spec import name_option
from agentguard.steps.step_call import StepCall

RETRY = "retry"
COMPLETED = "completed"
FAILED = "failed"
OUTCOMES = (RETRY, COMPLETED, FAILED)
Resolution = Literal["retry", "completed", "failed"]


def settle_unknown(live_run: LiveRun, step: StepCall, call: Call) -> RecordedOutcome | None:
    """What a recovery does about a step that started and has no outcome: None lets it run again.

    Raises:
        StepOutcomeUnknownError: nobody but an operator can tell; the run is PAUSED.
    """
    return _settle(live_run, step, call, _held(call))


def settle_cut_off(live_run: LiveRun, step: StepCall, call: Call) -> RecordedOutcome | None:
    """The same, also for a step that was cancelled in its middle: that was charged then."""
    return _settle(live_run, step, call, _held(call) if step.key in live_run.log.fold.open else None)


def _held(call: Call) -> Amounts:
    return data_of(call.start, StepStarted).get("reserve", ONE_STEP)


def _settle(live_run: LiveRun, step: StepCall, call: Call, held: Amounts | None) -> RecordedOutcome | None:
    spec = step.spec
    if spec.probe is not None:
        return _by_probe(live_run, step, call, held)
    if spec.effect == "once":
        _ask_operator(live_run, step.key)
    _retry(live_run, step, call, held, by=f"effect {spec.effect}")
    return None


def _retry(live_run: LiveRun, step: StepCall, call: Call, held: Amounts | None, *, by: str) -> None:
    """The step runs again, as another attempt under the same idempotency key."""
    _put(live_run, step.key, RETRY, held, by=by)
    step.attempt = call.start.attempt + 1
    # The body that runs again is the one that crashed: what it had called is served to it.
    step.begin_branch(call.start.attempt - len(call.before))


def _by_probe(live_run: LiveRun, step: StepCall, call: Call, held: Amounts | None) -> RecordedOutcome | None:
    """Ask the user's probe, with the step's idempotency key.

    It answers `"retry"`, `("completed", result)`, `("failed", message)`, or None: it cannot tell.
    """
    probe = step.spec.probe
    try:
        answer = probe(live_run.idempotency_key(step.key)) if probe is not None else None
    except Exception as error:
        name_option(error, step.name, "probe")
        raise
    if answer == RETRY:
        _retry(live_run, step, call, held, by="probe")
        return None
    if answer is None:
        _ask_operator(live_run, step.key)
    if not (isinstance(answer, tuple) and len(answer) == 2 and answer[0] in (COMPLETED, FAILED)):
        raise TypeError(
            f"{step.name}: probe must give 'retry', ('completed', result), ('failed', message) or None, "
            f"not {answer!r}"
        )
    outcome, result = answer
    _put(live_run, step.key, outcome, held, by="probe", result=result)
    if outcome == FAILED:
        return RecordedOutcome(error=exceptions.restore(_failure(result)))  # as a replay will raise it
    return RecordedOutcome(result)


def _ask_operator(live_run: LiveRun, key: str) -> NoReturn:
    pause_for(live_run, key, f"the outcome of {key} is unknown")
    raise StepOutcomeUnknownError(live_run.run_id, key)


def pause_for(live_run: LiveRun, key: str, reason: str) -> None:
    """Pause a run until an operator has said what became of a step."""
    log = live_run.log

    def pause() -> None:
        if log.fold.state is RunState.RUNNING:
            data: RunPaused = {"reason": reason, "unknown": key, "running_ns": live_run.time.elapsed()}
            log.act([Record(0, ev.RUN_PAUSED, live_run.clock.wall(), data=data)])

    log.decide(pause)


def retry_failed(live_run: LiveRun, key: str, *, by: str) -> None:
    """Let a step whose failure is on record run again, as another attempt; what it cost stays."""
    _put(live_run, key, RETRY, None, by=by)


def give_up(live_run: LiveRun, key: str, *, by: str) -> None:
    """Take a step in flight as failed, charged what it holds: nobody waits for its outcome any longer."""
    held = live_run.log.fold.open[key].request.reserve
    _put(live_run, key, FAILED, held, by=by, result="its run ended before its outcome was known")


def resolve(
    live_run: LiveRun, key: str, outcome: str, *, result: Any, actor: str, usage: Usage | None = None
) -> None:
    """See `Guard.resolve`."""
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}, not {outcome!r}")
    if usage is not None and not isinstance(usage, Usage):
        raise TypeError(f"usage must be a Usage, not {type(usage).__name__}")
    log = live_run.log

    def put() -> None:
        doubt = _doubt(live_run, key)
        if doubt is None:
            doubtful = ", ".join(log.fold.open) or "none"
            raise AgentGuardError(
                f"step {key!r} of run {live_run.run_id} has an outcome, or never started; "
                f"in doubt: {doubtful}"
            )
        if outcome == COMPLETED and (reason := values.capture(result, by_name=True).reason) is not None:
            raise ValueError(f"the result of {key} would not come back in a replay: {reason}")
        held = doubt.held
        if usage is not None:
            if held is None:
                raise AgentGuardError(f"step {key!r} has an outcome on record, which says what it used")
            held = usage.amounts()
        _put(live_run, key, outcome, held, by=actor, result=result)
        paused_for = log.fold.pause.get("unknown")
        if log.fold.state is RunState.PAUSED and paused_for == key:
            resumed: RunResumed = {"actor": actor}
            log.act([Record(0, ev.RUN_RESUMED, live_run.clock.wall(), data=resumed)])

    log.decide(put)


class _Doubt(NamedTuple):
    """A step that an operator may speak for; `held` is what it had reserved, if it has no outcome."""

    held: Amounts | None


def _doubt(live_run: LiveRun, key: str) -> _Doubt | None:
    """Whether a step has no outcome, or one that a replay cannot hand out.

    It may have started in the run that this one was forked from.
    """
    doubt: _Doubt | None = None
    for stored in origin_log(live_run.log.store, live_run.run_id):
        record = codec.decode(stored.body)
        if record.key != key:
            continue
        data = data_of(record, StepResolved)
        if record.type == ev.STEP_STARTED:
            doubt = _Doubt(data_of(record, StepStarted).get("reserve", ONE_STEP))
        elif record.type in (ev.STEP_COMPLETED, ev.STEP_FAILED, ev.STEP_RESOLVED):
            gave = record.type == ev.STEP_COMPLETED or data.get("as") == COMPLETED
            missing = gave and stored.payload is None
            open_to_question = missing or "unreplayable" in data or data.get("outcome") == CANCELLED
            doubt = _Doubt(None) if open_to_question else None
    return doubt


def _failure(said: object) -> ErrorData:
    """How a step failed by somebody's word, as the log has it."""
    message = clean_text(str(said if said is not None else "it failed, says who resolved it"))
    return {"type": "agentguard.StepFailed", "message": message}


def _put(
    live_run: LiveRun, key: str, outcome: str, held: Amounts | None, *, by: str, result: Any = None
) -> None:
    """Append `step_resolved`; a step in doubt is charged what it `held`, since it may have happened."""
    data: StepResolved = {"as": outcome, "by": by}
    payload = None
    if outcome == COMPLETED:
        payload, _, reason = values.capture(result, by_name=True)
        if payload is not None:
            data["result"] = payload_digest(live_run.log.salt, payload)
        if reason is not None:
            data["unreplayable"] = reason
    elif outcome == FAILED:
        data["error"] = _failure(result)
    log = live_run.log

    def put() -> None:
        step = log.fold.open.get(key)
        movements = live_run.levels.settling(key, held) if step is not None else ()
        record = Record(
            0,
            ev.STEP_RESOLVED,
            live_run.clock.wall(),
            key,
            attempt=step.attempt if step is not None else 0,
            usage=held,
            # A step of a fork's origin was charged when the fork was made.
            spent=log.fold.spent_after(held) if step is not None and held is not None else None,
            data=data,
        )
        log.act([record], [payload], movements)

    log.decide(put)
