"""Calls in threads that took the run along with a copy of the context, as LangChain's and LangGraph's do.

Such threads share a branch, and their calls are numbered as they come: in another order each time.  So their
names and arguments say which recorded call is meant, and not their numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Protocol

from agentguard.events import model as ev
from agentguard.replay.tape import Call, Tape
from agentguard.runs.branch import branch_of
from agentguard.steps.step_call import StepCall

if TYPE_CHECKING:
    from agentguard.steps.scope import Scope


class _Placed(Protocol):
    """A step, a scope or a value: its key, and its place in its branch."""

    key: str
    pos: int


class _Value:
    def __init__(self, key: str, pos: int) -> None:
        self.key = key
        self.pos = pos


class Elsewhere:
    """Finds the recorded calls of such threads.  Its user holds a lock.

    A call that is not on record gets, where it goes `live`, the first key and place that are free.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        #: The keys and places that such calls have.
        self._keys: set[str] = set()
        self._places: set[tuple[str, int]] = set()
        #: From where on there may be free ones: numbers of a name, and places in a branch.
        self._first: dict[str, int] = {}
        self._first_place: dict[str, int] = {}

    def step(self, step: StepCall, *, live: bool) -> None:
        """Give a step the key and the place of the recorded call that it is."""

        def fits(call: Call) -> bool:
            said = call.start.kind, call.data.get("args"), call.data.get("scope", "")
            return said == (step.kind, step.digest, step.scope_key)

        step.elsewhere = False
        self._place(step, fits, live=live)

    def scope(self, scope: Scope, *, live: bool) -> None:
        """Give a scope the key and the place of the recorded one that it is."""

        def fits(call: Call) -> bool:
            said = call.data.get("budget", {}), call.data.get("scope", "")
            return call.start.type == ev.SCOPE_OPENED and said == (scope.budget.to_fields(), scope.around)

        self._place(scope, fits, live=live)

    def value(self, key: str, pos: int, *, live: bool) -> tuple[str, int]:
        """Return the key and the place of the recorded value that one is: the first of its name."""
        placed = _Value(key, pos)
        self._place(placed, lambda call: call.start.type == ev.VALUE, live=live)
        return placed.key, placed.pos

    def run(self, key: str, pos: int) -> int:
        """Return the place of the recorded run of a key; a free one where none is."""
        branch = branch_of(key)
        self._first_place.setdefault(branch, pos)
        call = self._tape.search(branch, lambda call: call.start.key == key)
        pos = self._free_place(branch) if call is None else call.start.pos
        self._places.add((branch, pos))
        return pos

    def _place(self, placed: _Placed, fits: Callable[[Call], bool], *, live: bool) -> None:
        name, _, number = placed.key.rpartition("#")
        branch = branch_of(placed.key)
        self._first.setdefault(name, int(number))
        self._first_place.setdefault(branch, placed.pos)

        def is_it(call: Call) -> bool:
            key = call.start.key or ""
            return key.rpartition("#")[0] == name and key not in self._keys and fits(call)

        call = self._tape.search(branch, is_it)
        if call is not None:
            placed.key, placed.pos = call.start.key or "", call.start.pos
        elif live:
            placed.key, placed.pos = self._free_key(name), self._free_place(branch)
        if live:
            self._places.add((branch, placed.pos))
        else:  # what was served is found no more
            self._keys = set(filter(self._tape.has, self._keys))
        self._keys.add(placed.key)

    # The whole log was read by then: what is not free now will never be.

    def _free_key(self, name: str) -> str:
        keys = ((f"{name}#{number}", number) for number in count(self._first[name]))
        key, number = next(each for each in keys if each[0] not in self._keys and not self._tape.has(each[0]))
        self._first[name] = number + 1
        return key

    def _free_place(self, branch: str) -> int:
        taken, places = self._tape.places(branch), count(self._first_place[branch])
        place = next(pos for pos in places if pos not in taken and (branch, pos) not in self._places)
        self._first_place[branch] = place + 1
        return place
