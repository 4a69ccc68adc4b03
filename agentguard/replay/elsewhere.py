"""Calls in threads that took the run along with a copy of the context, as LangChain's and LangGraph's do.

Such threads share a branch, and their calls are numbered as they come: in another order each time.  So their
names and arguments say which recorded call is meant, and not their numbers.
"""

from __future__ import annotations

from itertools import count

from agentguard.replay.tape import Call, Tape
from agentguard.runs.branch import branch_of
from agentguard.steps.model import Step


class Elsewhere:
    """Finds the recorded calls of such threads.  Its user holds a lock."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        #: Keys that such calls have.
        self._taken: set[str] = set()
        #: The first numbers that such calls were given: of calls of a name, and of all in a branch.
        self._first: dict[str, int] = {}
        self._first_pos: dict[str, int] = {}
        self._positions: set[tuple[str, int]] = set()

    def place(self, step: Step, *, live: bool) -> None:
        """Give a step the key and the place of the recorded call that it is.

        One that is not on record gets, where it goes `live`, the first that are free.
        """
        step.elsewhere = False
        name, _, number = step.key.rpartition("#")
        path = branch_of(step.key)
        first, first_pos = (
            self._first.setdefault(name, int(number)),
            self._first_pos.setdefault(path, step.pos),
        )

        def fits(call: Call) -> bool:
            start, data = call.start, call.data
            known = (start.key or "").rpartition("#")[0] == name and start.key not in self._taken
            return known and (data.get("args"), data.get("scope", "")) == (step.digest, step.scope_key)

        call = self._tape.search(path, fits)
        if call is not None:
            step.key, step.pos = call.start.key or "", call.start.pos
        elif live:
            keys = (f"{name}#{n}" for n in count(first))
            step.key = next(key for key in keys if key not in self._taken and not self._tape.has(key))
            places = self._tape.places(path)
            step.pos = next(
                pos for pos in count(first_pos) if pos not in places and (path, pos) not in self._positions
            )
        self._taken.add(step.key)
        self._positions.add((path, step.pos))
