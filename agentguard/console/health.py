"""How the parts of an installation stand: store, kill switch, relays, publishers, queue, workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from agentguard.errors import AgentGuardError
from agentguard.events import codec
from agentguard.guard import Guard
from agentguard.killswitch.network import NetworkKillSwitch
from agentguard.killswitch.page import PageKillSwitch
from agentguard.protocols import EventStore, KillSwitch, RunQueue

STORE, SWITCH, RELAY, PUBLISHER, QUEUE, WORKER = (
    "store",
    "kill switch",
    "relay",
    "publisher",
    "queue",
    "worker",
)
#: How many seconds a worker may be silent, and a publisher behind, until that is a fault.
_SILENT_SECONDS = 15.0
_LATE_SECONDS = 60.0


class Part(NamedTuple):
    """A part of the installation, as it stands.

    `name` tells parts of one kind apart; `detail` says in words how it is.  `ok` is None where nobody can
    tell.
    """

    kind: str
    name: str
    detail: str
    ok: bool | None = True


def examine(guard: Guard) -> list[Part]:
    """Return how the parts stand; those that this installation does not have are left out."""
    store, switch = guard.components.store, guard.components.switch
    found = [*_tried(STORE, lambda: _store(store)), *_tried(SWITCH, lambda: _switch(switch))]
    if isinstance(switch, NetworkKillSwitch):
        found += _tried(RELAY, lambda: _relays(switch))
    return found + helpers(guard)


def helpers(guard: Guard) -> list[Part]:
    """Return how the parts of a deployment stand that runs do not wait for: publishers, queue, workers."""
    components, queue = guard.components, guard.components.abilities.queue
    found: list[Part] = []
    if components.abilities.readers is not None:
        found += _tried(PUBLISHER, lambda: _publishers(guard), needed=False)
    if queue is not None:
        found += _tried(QUEUE, lambda: _queues(queue), needed=False)
        found += _tried(WORKER, lambda: _workers(queue), needed=False)
    return found


def summed(parts: Iterable[Part]) -> list[Part]:
    """Return the same for who sees one tenant alone: whether what its runs need works, and no figure."""
    works: dict[str, bool] = {}
    for part in parts:
        if part.kind in (STORE, SWITCH):
            works[part.kind] = works.get(part.kind, True) and part.ok is not False
    return [Part(kind, "", "works" if ok else "cannot be used", ok=ok) for kind, ok in works.items()]


def _tried(kind: str, look: Callable[[], Iterable[Part]], *, needed: bool = True) -> list[Part]:
    """Return what a look finds; a part that runs need and that cannot be asked does not work."""
    try:
        return list(look())
    except AgentGuardError as error:
        return [Part(kind, "", str(error), ok=False if needed else None)]


def _store(store: EventStore) -> Iterator[Part]:
    began = time.perf_counter()
    store.rows(limit=1)
    yield Part(STORE, store.url, f"answers in {(time.perf_counter() - began) * 1000:.1f} ms")


def _switch(switch: KillSwitch) -> Iterator[Part]:
    switch.signal  # noqa: B018 - raises if it cannot be read
    if isinstance(switch, PageKillSwitch):
        count = len(switch.participants())
        yield Part(SWITCH, "", f"heard by {count} live {'process' if count == 1 else 'processes'} here")
    else:
        yield Part(SWITCH, "", "of this process alone")


def _relays(switch: NetworkKillSwitch) -> Iterator[Part]:
    if switch.relay_is_missed:
        yield Part(RELAY, "of this host", "silent: steps on this host are refused", ok=False)
    for host in switch.hosts():
        processes = f"{len(host.acknowledged)} live processes"
        yield Part(RELAY, host.name, f"heard {host.silent:.0f} s ago, {processes}", ok=host.fresh)


def _publishers(guard: Guard) -> Iterator[Part]:
    components = guard.components
    readers = components.abilities.readers
    for name, position in ({} if readers is None else readers.positions()).items():
        waiting = components.store.tail(position, limit=1)
        if not waiting:
            yield Part(PUBLISHER, name, "has published all")
            continue
        oldest = codec.decode(waiting[0][1].body).at_ns
        behind = max(components.clock.wall() - oldest, 0) / 1e9
        yield Part(PUBLISHER, name, f"{behind:,.0f} s behind", ok=behind < _LATE_SECONDS)


def _queues(queue: RunQueue) -> Iterator[Part]:
    for depth in queue.depth():
        said = f"{depth.waiting:,} waiting, {depth.delayed:,} delayed, {depth.running:,} running"
        oldest = f", the oldest for {depth.oldest_seconds:,.0f} s" if depth.waiting else ""
        yield Part(QUEUE, depth.queue, said + oldest)


def _workers(queue: RunQueue) -> Iterator[Part]:
    found = queue.workers()
    if not found and any(depth.waiting for depth in queue.depth()):
        yield Part(WORKER, "", "none, and runs wait: agentguard worker", ok=False)
    for sign in found:
        said = f"heard {sign.silent_seconds:.0f} s ago, has {sign.running:,} runs"
        yield Part(WORKER, str(sign.worker_id), said, ok=sign.silent_seconds < _SILENT_SECONDS)
