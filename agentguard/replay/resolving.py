"""Steps that may have happened: what a recovery does about one, and what an operator says of it."""

from __future__ import annotations

from typing import Any, NoReturn

from agentguard._encoding import clean_text, encode_value
from agentguard.errors import AgentGuardError, StepOutcomeUnknownError
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import payload_digest
from agentguard.events.model import Record
from agentguard.replay.tape import Call
from agentguard.runs.state import RunState
from agentguard.steps import values
from agentguard.steps.journal import Journal
from agentguard.steps.model import Step
from agentguard.steps.served import Served

RETRY = "retry"
COMPLETED = "completed"
FAILED = "failed"
OUTCOMES = (RETRY, COMPLETED, FAILED)


def settle_unknown(step: Step, call: Call) -> Served | None:
    """What a recovery does about a step that started and has no outcome: None lets it run again.

    Raises:
        StepOutcomeUnknownError: nobody but an operator can tell; the run is PAUSED.
    """
    journal = step.journal
    spec = step.spec
    if spec.probe is not None:
        return _by_probe(step, call)
    if spec.effect == "once":
        _ask_operator(journal, step.key)
    _retry(step, call, by=f"effect {spec.effect}")
    return None


def _retry(step: Step, call: Call, *, by: str) -> None:
    """The step runs again, as another attempt under the same idempotency key."""
    _put(step.journal, step.key, RETRY, by=by)
    step.attempt = call.start.attempt + 1
    # The body that runs again is the one that crashed: what it had called is served to it.
    step.begin_branch(call.start.attempt - len(call.before))


def _by_probe(step: Step, call: Call) -> Served | None:
    """Ask the user's probe, with the step's idempotency key.

    It answers `"retry"`, `("completed", result)`, `("failed", message)`, or None: it cannot tell.
    """
    probe = step.spec.probe
    answer = probe(step.idempotency_key) if probe is not None else None
    if answer == RETRY:
        _retry(step, call, by="probe")
        return None
    if answer is None:
        _ask_operator(step.journal, step.key)
    if not (isinstance(answer, tuple) and len(answer) == 2 and answer[0] in (COMPLETED, FAILED)):
        raise TypeError(
            f"{step.name}: probe must give 'retry', ('completed', result), ('failed', message) or None, "
            f"not {answer!r}"
        )
    outcome, result = answer
    _put(step.journal, step.key, outcome, by="probe", result=result)
    if outcome == FAILED:
        return Served(error=AgentGuardError(f"{step.key} failed, says its probe: {result}"))
    return Served(result)


def _ask_operator(journal: Journal, key: str) -> NoReturn:
    with journal.deciding():
        if journal.fold.state is RunState.RUNNING:
            data: dict[str, Any] = {"reason": f"the outcome of {key} is unknown", "unknown": key}
            data["running_ns"] = journal.running_ns()
            journal.act([Record(0, ev.RUN_PAUSED, journal.clock.wall(), data=data)])
    raise StepOutcomeUnknownError(journal.run_id, key)


def resolve(journal: Journal, key: str, outcome: str, *, result: Any, actor: str) -> None:
    """See `Guard.resolve`."""
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}, not {outcome!r}")
    with journal.deciding():
        if key not in journal.fold.open and not _cannot_be_served(journal, key):
            doubtful = ", ".join(journal.fold.open) or "none"
            raise AgentGuardError(
                f"step {key!r} of run {journal.run_id} has an outcome, or never started; in doubt: {doubtful}"
            )
        _put(journal, key, outcome, by=actor, result=result)
        paused_for = journal.fold.pause.get("unknown")
        if journal.fold.state is RunState.PAUSED and paused_for == key:
            journal.act([Record(0, ev.RUN_RESUMED, journal.clock.wall(), data={"actor": actor})])


def _cannot_be_served(journal: Journal, key: str) -> bool:
    """Whether a step completed with a result that a replay cannot hand out."""
    for stored in journal.store.read(journal.run_id):
        record = codec.decode(stored.body)
        if record.key == key and record.type == ev.STEP_COMPLETED:
            return "unreplayable" in (record.data or {}) or stored.payload is None
    return False


def _put(journal: Journal, key: str, outcome: str, *, by: str, result: Any = None) -> None:
    """Append `step_resolved`; a step in doubt is charged its reservation, since it may have happened."""
    data: dict[str, Any] = {"as": outcome, "by": by}
    payload = None
    if outcome == COMPLETED:
        payload = encode_value(result)
        if payload is None:
            raise ValueError(f"the result of {key} cannot be encoded")
        data["result"] = payload_digest(journal.salt, payload)
        if (reason := values.loss(result, payload)) is not None:
            data["unreplayable"] = reason
    elif outcome == FAILED:
        message = clean_text(str(result if result is not None else "failed, says its operator"))
        data["error"] = {"type": "agentguard.StepFailed", "message": message}
    with journal.deciding():
        step = journal.fold.open.get(key)
        usage = step.request.reserve if step is not None else None
        movements = journal.levels.settling(key, usage) if step is not None else ()
        record = Record(
            0,
            ev.STEP_RESOLVED,
            journal.clock.wall(),
            key,
            attempt=step.attempt if step is not None else 0,
            usage=usage,
            spent=journal.fold.spent_after(usage) if usage is not None else None,
            data=data,
        )
        journal.act([record], [payload], movements)
