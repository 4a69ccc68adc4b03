"""A recorded log as a replay consumes it: read forward as far as needed, each call taken once.

What is kept in memory is what was read and not yet asked for, so it does not grow with the log.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Iterator

import msgspec

from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.conversations import ConversationError, Messages, has_conversations
from agentguard.events.data import (
    CallStarted,
    RunCreated,
    ScopeStopped,
    StepRefused,
    StepResolved,
    StepStarted,
    data_of,
)
from agentguard.events.model import Record
from agentguard.fragments import Digest
from agentguard.runs.branch import branch_of
from agentguard.steps.kinds import AWAITED

_STARTS = (ev.STEP_STARTED, ev.STEP_REFUSED, ev.VALUE, ev.SCOPE_OPENED)
_ENDS = (ev.STEP_COMPLETED, ev.STEP_FAILED, ev.SCOPE_CLOSED)
_DECISIONS = (ev.APPROVAL_REQUESTED, ev.APPROVAL_GRANTED, ev.APPROVAL_DENIED)
_TERMINAL = (ev.RUN_COMPLETED, ev.RUN_FAILED, ev.RUN_KILLED)


class Call:
    """One recorded call: a step, a refused step, a value, or a scope; and how it ended."""

    __slots__ = ("before", "branch", "children", "delivered", "end", "end_payload", "payload", "start")

    def __init__(self, start: Record, payload: bytes | None) -> None:
        self.start = start
        self.branch = branch_of(start.key or "", start.data)
        self.payload = payload
        self.end: Record | None = None
        self.end_payload: bytes | None = None
        #: Calls recorded inside the body of this one, which go with it when it is served.
        self.children: list[Call] = []
        self.delivered = False
        #: Earlier attempts that were resolved to be tried again.
        self.before: list[Call] = []

    @property
    def data(self) -> CallStarted:
        """What the first event says, whatever the call is."""
        return data_of(self.start, CallStarted)

    @property
    def end_data(self) -> StepResolved:
        """What the last event says."""
        return {} if self.end is None else data_of(self.end, StepResolved)

    @property
    def settled(self) -> bool:
        """Whether the log says how it ended."""
        return self.end is not None or self.start.type in (ev.STEP_REFUSED, ev.VALUE)

    @property
    def failed(self) -> bool:
        """Whether it failed, or its operator says so, or it was given up before it started."""
        end = self.end
        if end is None:
            return self.withdrawn
        return end.type == ev.STEP_FAILED or self.end_data.get("as") == "failed"

    @property
    def withdrawn(self) -> bool:
        """Whether the program gave it up before it had started."""
        return ev.withdrawn(self.start)

    @property
    def spoiled(self) -> bool:
        """Whether it ended with a result, or an exception, that cannot be handed out."""
        if self.end is None:
            return False
        missing = self.end.type == ev.STEP_COMPLETED and self.end_payload is None
        return missing or "unreplayable" in self.end_data

    @property
    def awaited(self) -> bool:
        """Whether its outcome was delivered to code that awaited it."""
        return (
            bool(data_of(self.start, StepStarted).get("async"))
            or self.end_data.get("came", ("",))[-1] in AWAITED
        )

    @property
    def cancelled(self) -> bool:
        """Whether the program had cancelled it."""
        if self.withdrawn:
            return data_of(self.start, StepRefused).get("outcome") == "cancelled"
        return self.end_data.get("outcome") == "cancelled"


class Tape:
    """The calls of a log, by key and in order.  Its user holds a lock."""

    def __init__(self, log: Iterator[Stored]) -> None:
        self._log = log
        self._calls: dict[str, collections.deque[Call]] = {}
        #: Calls that were read and not yet taken, by branch and place.
        self._places: dict[str, dict[int, Call]] = {}
        self._retried: dict[str, list[Call]] = {}
        #: Calls that were under way when they were taken with the body around them, by key.
        self._beside: dict[str, Call] = {}
        #: What the log has of calls inside bodies that were taken before, in order: nobody asks for those.
        self.late: collections.deque[tuple[Call, Record]] = collections.deque()
        #: Outcomes of async steps in log order, for delivery.
        self.deliveries: collections.deque[Call] = collections.deque()
        #: The refusals that stopped scopes, by the scopes' keys.
        self.scope_stops: dict[str, Record] = {}
        #: What was last said of the approval of a step, by its key.
        self.decisions: dict[str, Record] = {}
        #: Budgets that the run was given while it ran, and that were not copied yet.
        self.budgets: collections.deque[Record] = collections.deque()
        #: The last claim that was read.
        self._claimed = 0
        #: The payloads that hold messages, in order.
        self._conversations: list[bytes] = []
        self.terminal: Record | None = None
        self.created: Record | None = None
        self.last: Stored | None = None

    # --- reading -------------------------------------------------------------------------------

    def close(self) -> None:
        """Read no further: an open reader would keep what is erased in the store's files."""
        if isinstance(self._log, Generator):
            self._log.close()

    def read_until(self, done: Callable[[], bool]) -> None:
        """Read on until `done()`, or to the end."""
        while not done() and self._read_on():
            pass

    def _read_on(self) -> bool:
        """Read the next event; return whether there was one."""
        stored = next(self._log, None)
        if stored is None:
            return False
        self.last = stored
        if stored.payload is not None and has_conversations(stored.body, stored.payload):
            self._conversations.append(stored.payload)
        self._take_in(codec.decode(stored.body), stored.payload)
        return True

    def arguments(self, call: Call, digest: Digest) -> bytes | None:
        """Return the arguments of a call, conversations and all; None where they are not on record."""
        if call.payload not in self._conversations:
            return call.payload
        messages = Messages(digest)
        try:
            for payload in self._conversations:
                messages.take_in(payload)
            return messages.whole(call.payload)
        except ConversationError:
            return None

    def _take_in(self, record: Record, payload: bytes | None) -> None:
        if record.type in _STARTS:
            self._begin(record, payload)
        elif record.type in _ENDS:
            self._finish(record, payload)
        elif record.type == ev.STEP_RESOLVED:
            self._resolve(record, payload)
        elif record.type in _DECISIONS and record.key is not None:
            self.decisions[record.key] = record
        elif record.type in _TERMINAL:
            self.terminal = record
        elif record.type == ev.RUN_CREATED:
            self.created = record
        elif record.type == ev.RUN_RECOVERED:
            self._claimed = record.seq
        elif record.type == ev.RUN_BUDGET_SET:
            self.budgets.append(record)

    def _begin(self, record: Record, payload: bytes | None) -> None:
        call = Call(record, payload)
        key = record.key
        if record.type == ev.STEP_REFUSED and (scope := data_of(record, ScopeStopped).get("stops")):
            self.scope_stops[scope] = record
        if key is None:
            return  # a scope's deadline, which no call carries: see `stop_of`
        parent = self._parent(call)
        if parent is None and "parent" in call.data:  # a task made it that has outlived the body around it
            self._leave_beside(call)
            self.late.append((call, record))
            return
        if record.type == ev.VALUE:
            call.children = self.inside(key)
            if parent is not None:
                parent.children = [child for child in parent.children if child not in call.children]
        if parent is not None:
            parent.children.append(call)
        call.before = self._retried.pop(key, [])
        if call.before:  # what the earlier body had called was served to this one
            call.children.extend(call.before[-1].children)
        self._calls.setdefault(key, collections.deque()).append(call)
        self._places.setdefault(call.branch, {})[record.pos] = call

    def _parent(self, call: Call) -> Call | None:
        """Return the call in whose body this one was made, unless it was taken."""
        calls = self._calls.get(call.data.get("parent", ""), ())
        return next(
            (around for around in reversed(calls) if around.end is None), calls[-1] if calls else None
        )

    def _leave_beside(self, call: Call) -> None:
        """Keep a call whose outcome still counts, though the program will not make it."""
        if not call.settled:
            self._beside[call.start.key or ""] = call

    def inside(self, key: str) -> list[Call]:
        """Return the calls that a value's function made."""
        inside = [
            call
            for branch, places in self._places.items()
            if branch == key or branch.startswith(f"{key}/")
            for call in places.values()
        ]
        further_in = {child for call in inside for child in call.children}
        return sorted((call for call in inside if call not in further_in), key=lambda call: call.start.seq)

    def _open(self, key: str | None) -> Call | None:
        """Return the call of a key that is under way here."""
        for call in reversed(self._calls.get(key or "", ())):
            if not call.settled:
                return call
        return None

    def _finish(self, record: Record, payload: bytes | None) -> None:
        call = self._open(record.key)
        if call is None:
            self._finish_beside(record)
            return
        call.end, call.end_payload = record, payload
        if call.start.type == ev.STEP_STARTED and call.awaited and not call.cancelled:
            self.deliveries.append(call)

    def _finish_beside(self, record: Record) -> None:
        call = self._beside.pop(record.key or "", None)
        if call is not None:
            call.end = record
            self.late.append((call, record))

    def _resolve(self, record: Record, payload: bytes | None) -> None:
        calls = self._calls.get(record.key or "")
        if not calls:
            self._finish_beside(record)
            return
        call = calls[-1]
        if call.end is not None:  # completed, with a result that cannot be handed out: it was charged then
            record = msgspec.structs.replace(record, usage=call.end.usage)
        retried = data_of(record, StepResolved).get("as") == "retry"
        if call.end is None and not retried and data_of(call.start, StepStarted).get("async"):
            self.deliveries.append(call)
        call.end, call.end_payload = record, payload
        if retried:
            # The next attempt is the one that counts; this one has only spent.
            call.delivered = True
            self.take(call, with_children=False)
            self._retried[record.key or ""] = [*call.before, call]

    # --- asking --------------------------------------------------------------------------------

    def find(self, key: str, branch: str, pos: int) -> Call | None:
        """Return the next recorded call of a key, with its outcome if the log has one.

        Where another call stands on record at its place, the rest of the log is not looked through.
        """
        self.read_until(lambda: key in self._calls or pos in self._places.get(branch, ()))
        calls = self._calls.get(key)
        if not calls:
            return None
        call = calls[0]
        self.read_until(lambda: call.settled or not calls or calls[0] is not call)
        if call.failed and self._is_tried_again:  # before the next claim it may be resolved to be
            end = call.end
            self.read_until(
                lambda: call.end is not end or self.terminal is not None or self._claimed > _seq(end)
            )
        if call.spoiled:  # an operator may have supplied later what it gave
            self.read_until(lambda: not call.spoiled or not calls or calls[0] is not call)
        if not calls or calls[0] is not call:  # it was resolved to be tried again
            return self.find(key, branch, pos)
        return call

    @property
    def _is_tried_again(self) -> bool:
        """Whether the run is of those that a worker carries on after they have failed."""
        return self.created is not None and bool(data_of(self.created, RunCreated).get("retries"))

    def search(self, branch: str, fits: Callable[[Call], bool]) -> Call | None:
        """Return the first call not yet made in a branch that fits; the log is read as far as needed."""
        found = next(filter(fits, self.places(branch).values()), None)
        while found is None and self._read_on():
            newest = next(reversed(self.places(branch).values()), None)
            found = newest if newest is not None and fits(newest) else None
        return found

    def places(self, branch: str) -> dict[int, Call]:
        """Return the calls of a branch that were read and not yet made, by their places."""
        return self._places.get(branch, {})

    def has(self, key: str) -> bool:
        """Return whether a call of a key was read and not made yet."""
        return key in self._calls

    def take(self, call: Call, *, with_children: bool = True) -> None:
        """Take a call out, and with it what was recorded inside its body, unless that runs again."""
        key = call.start.key or ""
        calls = self._calls.get(key)
        if calls and call in calls:
            calls.remove(call)
            if not calls:
                del self._calls[key]
        places = self._places.get(call.branch, {})
        if places.get(call.start.pos) is call:
            del places[call.start.pos]
            if not places:
                del self._places[call.branch]
        for child in call.children if with_children else ():
            child.delivered = True
            self._leave_beside(child)
            if child.start.key is not None and child in self._calls.get(child.start.key, ()):
                self.take(child)

    def retried(self, key: str) -> list[Call]:
        """Take the attempts at a step that were resolved to be tried again, and not tried yet."""
        return self._retried.pop(key, [])

    def at(self, branch: str, pos: int) -> Call | None:
        """Return the first call not yet made at a call index of a branch, or after it."""
        places = self.places(branch)
        later = [place for place in places if place >= pos]
        return places[min(later)] if later else None

    def outermost(self, call: Call) -> Call:
        """Return the outermost call not yet made around this one, or itself."""
        around = self._calls.get(call.data.get("parent", ""), ())
        for outer in around:
            if call in outer.children:
                return self.outermost(outer)
        return call

    def left(self) -> list[Call]:
        """Return the recorded calls that were not made, in log order."""
        self.read_until(lambda: False)
        left = [call for calls in self._calls.values() for call in calls]
        return sorted(left, key=lambda call: call.start.seq)

    def holds(self, call: Call) -> bool:
        """Return whether a call was read and not made yet."""
        return call in self._calls.get(call.start.key or "", ())

    def left_over(self) -> Call | None:
        """Return the first recorded call that was not made."""
        return next(iter(self.left()), None)


def _seq(record: Record | None) -> int:
    return 0 if record is None else record.seq
