"""Values that a program may not make up twice: the time, ids, random numbers, and what a function gives.

Each is a `value` event, or follows from the seed on record.
"""

from __future__ import annotations

import contextlib
import hmac
import inspect
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from agentguard._values.names import type_name
from agentguard.errors import ReplayDivergenceError, StepOutcomeUnknownError
from agentguard.events import model as ev
from agentguard.events.codec import payload_digest
from agentguard.events.data import Value
from agentguard.events.model import Record
from agentguard.runs.branch import Branch, branch_of, key_segment
from agentguard.steps import exceptions, values
from agentguard.steps.current import CURRENT, restore_position
from agentguard.steps.flow import check
from agentguard.steps.live import LiveRun
from agentguard.steps.model import InRun, on_branch
from agentguard.steps.served import RecordedOutcome
from agentguard.steps.spinning import check_place


def seeded(live_run: LiveRun, key: str) -> bytes:
    """32 bytes that follow from the run's seed and a logical key, the same in every replay."""
    return hmac.digest(live_run.log.fold.seed.encode(), key.encode(), sha256)


def seeded_uuid(live_run: LiveRun, position: InRun) -> uuid.UUID:
    """A random-looking UUID (version 8, RFC 9562) that replays."""
    number = int.from_bytes(seeded(live_run, position.branch.next_key("run.uuid"))[:16], "big")
    number = number & ~(0xF << 76) | (8 << 76)
    return uuid.UUID(int=number & ~(0x3 << 62) | (2 << 62))


def seeded_random(live_run: LiveRun, position: InRun) -> float:
    """A number in [0, 1), 53 bits, that replays."""
    digest = seeded(live_run, position.branch.next_key("run.random"))
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def now(live_run: LiveRun, position: InRun) -> datetime:
    """The wall clock, recorded."""
    stamp = record(live_run, position, "run.now", live_run.clock.wall)
    return datetime.fromtimestamp(stamp / 1e9, UTC)


def record(live_run: LiveRun, position: InRun, name: str, fn: Callable[[], object]) -> Any:
    """What `fn()` gives or raises, recorded; awaitable for a coroutine function."""
    key, pos = position.branch.next_call(key_segment(name))
    if live_run.player is not None:
        if position.thread != threading.get_ident():
            key, pos = live_run.player.place(key, pos)
        served = live_run.player.value(key, pos, name, position.scope_key)
        if served is not None:
            return _ready(served) if inspect.iscoroutinefunction(fn) else served.result()
    check_place(live_run, position.scope_key, branch_of(key), pos)
    if inspect.iscoroutinefunction(fn):
        return _record_async(position, (key, pos), name, fn)
    with _body(position, (key, pos), name):
        value = fn()
    _capture(position, (key, pos), name, value)
    return value


@contextlib.contextmanager
def _body(position: InRun, call: tuple[str, int], name: str) -> Iterator[None]:
    """Where the function runs: in a branch of its own, as the body of a step does.

    What it raises is on record too, for a replay to raise; not what ends a program or a recovery.
    """
    live_run: LiveRun = position.live_run
    try:
        token = CURRENT.set(on_branch(position, Branch(call[0])))
        try:
            yield
        finally:
            restore_position(token)
    except (StepOutcomeUnknownError, ReplayDivergenceError):
        raise
    except Exception as error:
        data: Value = {}
        exceptions.put_on_record(data, error, live_run.components.redact or None)
        _put(position, call, name, data)
        raise


async def _ready(served: RecordedOutcome) -> object:
    return served.result()


async def _record_async(
    position: InRun, call: tuple[str, int], name: str, fn: Callable[[], Awaitable[object]]
) -> object:
    with _body(position, call, name):
        value = await fn()
    _capture(position, call, name, value)
    return value


def _capture(position: InRun, call: tuple[str, int], name: str, value: object) -> None:
    live_run: LiveRun = position.live_run
    try:
        payload, _, reason = values.capture(value, by_name=True)
    except Exception as error:  # noqa: BLE001 - a user's type; its function has run
        payload, reason = None, f"capturing it raised {type_name(type(error))}"
    data: Value = {}
    if payload is not None:
        if live_run.components.redact:
            redacted = live_run.components.redact.value(payload)
            if redacted is not payload:
                payload, reason = redacted, "redacted"
        data["value"] = payload_digest(live_run.log.salt, payload)
    if reason is not None:
        data["unreplayable"] = reason
    _put(position, call, name, data, payload)


def _put(
    position: InRun, call: tuple[str, int], name: str, data: Value, payload: bytes | None = None
) -> None:
    live_run: LiveRun = position.live_run
    key, pos = call
    if position.step is not None:
        data["parent"] = position.step.key
    record = Record(0, ev.VALUE, live_run.clock.wall(), key, pos, name, data=data)

    def decide() -> None:
        check(live_run, position.scope_key)
        live_run.log.act([record], [payload])

    live_run.log.decide(decide)
