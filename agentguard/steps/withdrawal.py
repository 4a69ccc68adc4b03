"""A call that ends before its step has started: cancelled, or interrupted, while it waits to be admitted.

It waits for an approval, for a resume, or for another writer.  That it ended there is a fact of the program
that no other event tells, so it goes on record: a replay raises the same at the same place.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agentguard.errors import AgentGuardError, LimitAskedError
from agentguard.events.data import StepRefused, data_of
from agentguard.steps import exceptions, limit_questions
from agentguard.steps.draining import is_unwinding
from agentguard.steps.outcome import CANCELLED, is_cancellation
from agentguard.steps.refusing import refused_record, replace_data

if TYPE_CHECKING:
    from agentguard.steps.model import Step


def withdraw(step: Step, error: BaseException) -> None:
    """Put on record that a call ended with `error` before its step had started.

    What the guard itself raises is on record already, but for a limit's question to the caller.  Where
    the process lets go of the run, or a recovery goes no further, what unwinds the program is no act of its.
    """
    told = isinstance(error, AgentGuardError) and not isinstance(error, LimitAskedError)
    if told or _goes_no_further(step, error):
        return
    with contextlib.suppress(AgentGuardError):  # the store is gone: the error goes on all the same
        step.live_run.log.decide(lambda: _withdraw(step, error))
        limit_questions.take_back(step)


def _goes_no_further(step: Step, error: BaseException) -> bool:
    live_run = step.live_run
    draining, player = live_run.stops.draining, live_run.player
    if draining is not None and is_unwinding(draining, error):
        return True
    return player is not None and player.halted


def _withdraw(step: Step, error: BaseException) -> None:
    log = step.live_run.log
    if step.started_ns or step.key in log.fold.open or log.fold.state.final:
        return  # the step had started, and its driver settles it; or the run ended first
    record = refused_record(step)
    data: StepRefused = {**data_of(record, StepRefused)}
    exceptions.put_on_record(data, error, step.live_run.redactor(step.spec))
    if is_cancellation(error):
        data["outcome"] = CANCELLED
    log.act([replace_data(record, data)])
