"""Where LangChain's runs lie: in which guarded run, and in which branch of it.

LangChain gives each run (chain, graph, node, tool, model) an id and its parent's id; this follows them from
the root, which lies where the code that started it does.  Only what can happen side by side adds to the
path: tasks of a graph, keys of a RunnableParallel, tool calls, threads and tasks.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from agentguard import Run, current_run, current_step
from agentguard_langchain import _mapping as m

_MAIN = "main"
#: Runs that never said how they ended (cancelled, mostly) are looked for when this many are on the books.
_MANY = 1024


class Place(NamedTuple):
    """Where something lies: its branch, as `run.step(branch=...)` takes it."""

    #: The branch's path below the run's main branch; empty for that one itself.
    path: str
    branch: Any
    #: The branch that the code was in, by the core, when it began.
    context: str

    def inside(self, branch: Any) -> Place:
        """The place of what a step that lies here calls."""
        return Place(below_main(branch.path), branch, self.context)


class Node:
    """A run of LangChain's, inside a guarded run."""

    __slots__ = ("children", "place", "run", "thread")

    def __init__(self, run: Run, place: Place) -> None:
        self.run = run
        self.place = place
        self.thread = threading.get_ident()
        #: The calls below it that a handler opened.
        self.children: list[UUID] = []


class Tree:
    """The runs of LangChain's that are under way in this process, by id.

    All handlers and middleware share one, since each sees a part.  Entries go with their run's end.
    """

    def __init__(self) -> None:
        self._nodes: dict[UUID | None, Node] = {}
        #: Tool calls by id: their index in the message that asks for them.
        self._calls: OrderedDict[str, int] = OrderedDict()
        self._sweep_at = _MANY
        #: By their ids: a `WeakSet` cannot be gone through while other threads add to it.
        self._met: weakref.WeakValueDictionary[int, Run] = weakref.WeakValueDictionary()
        self._latest: Callable[[], Run | None] = lambda: None

    # --- the guarded run -----------------------------------------------------------------------

    def run_here(self, parent_id: UUID | None, *, by_table: bool = False) -> Run | None:
        """The guarded run that a call belongs to: by context, by its parent, or as the only one alive."""
        run: Run | None = current_run()
        if run is not None:
            if run is not self._latest():
                self._met[id(run)] = run
                self._latest = weakref.ref(run)
            return run
        node = self._nodes.get(parent_id)
        if node is not None:
            return node.run
        alive = self.alive() if by_table else []
        return alive[0] if len(alive) == 1 else None

    def alive(self) -> list[Run]:
        """The guarded runs that LangChain was used in and that have not ended."""
        return [run for ref in self._met.valuerefs() if (run := ref()) is not None and not run.state.final]

    # --- places --------------------------------------------------------------------------------

    def get(self, run_id: UUID | None) -> Node | None:
        """A run that is under way."""
        return self._nodes.get(run_id)

    def place(
        self,
        run: Run,
        parent_id: UUID | None,
        tags: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
        inputs: Any,
    ) -> Place:
        """The place of something that begins here."""
        branch = run.here().branch
        context = below_main(branch.path)
        parent = self._nodes.get(parent_id)
        if parent is not None and parent.run is run:
            around, thread = parent.place, parent.thread
        else:
            around, thread = Place(context, branch, context), run.thread
        part = m.place_part(tags, metadata) or _below(around.context, context)
        if not part and thread != threading.get_ident() and not _told_apart():
            part = f"~{m.fingerprint(inputs)}"
        return _inside(around, part, context)

    def tool_place(
        self,
        run: Run,
        parent_id: UUID | None,
        call_id: str | None,
        metadata: Mapping[str, Any] | None,
        inputs: Any,
    ) -> Place:
        """The same for a tool call, whose place is its index in the message that asks for it."""
        parent = self.get(parent_id)
        index = self._calls.get(call_id) if call_id is not None else None
        if parent is None or index is None or parent.run is not run:
            return self.place(run, parent_id, None, metadata, inputs)
        return numbered(parent.place, index, below_main(run.here().branch.path))

    def asked(self, message: Any) -> None:
        """Take note of the tool calls that an answer asks for, in their order."""
        for index, call in enumerate(getattr(message, "tool_calls", ())):
            if len(self._calls) > _MANY:
                self._calls.popitem(last=False)
            self._calls[call["id"]] = index

    def begin(self, run_id: UUID, run: Run, place: Place) -> None:
        """Take in a run that begins."""
        if len(self._nodes) > self._sweep_at:
            self._sweep()
        self._nodes[run_id] = Node(run, place)

    def begin_in_step(self, run_id: UUID, run: Run) -> None:
        """Take in a run that is the body of the step that is current here."""
        step = current_step()
        if step is not None:
            context = below_main(run.here().branch.path)
            self.begin(run_id, run, Place(below_main(step.branch.path), step.branch, context))

    def opened(self, run_id: UUID, parent_id: UUID | None) -> None:
        """A handler opened a call below a run."""
        node = self._nodes.get(parent_id)
        if node is not None:
            node.children.append(run_id)

    def end(self, run_id: UUID) -> Sequence[UUID]:
        """A run is over; gives the calls below it that may still be open."""
        node = self._nodes.pop(run_id, None)
        return () if node is None else node.children

    def _sweep(self) -> None:
        for run_id, node in list(self._nodes.items()):
            if node.run.state.final:
                self._nodes.pop(run_id, None)
        self._sweep_at = max(_MANY, 2 * len(self._nodes))


def graph_place(run: Run, metadata: Mapping[str, Any]) -> Place:
    """The place of a graph's task by what it says of itself, where the tree does not know it."""
    branch = run.here().branch
    context = below_main(branch.path)
    return _inside(Place(context, branch, context), m.graph_part(metadata), context)


def numbered(around: Place, index: int, context: str) -> Place:
    """The place of a tool call, by its index, inside the task that makes it."""
    path = m.numbered(around.path, index)
    return Place(path, around.branch if path == around.path else path, context)


def below_main(path: str) -> str:
    """A branch's path below the main branch of the run."""
    return "" if path == _MAIN else path.removeprefix(f"{_MAIN}/")


def _inside(around: Place, part: str, context: str) -> Place:
    # A path of our own never ends in `#n`, as those of the core do: the two cannot be taken for each other.
    if not part:
        return Place(around.path, around.branch, context)
    path = f"{around.path}/{part}" if around.path else part
    return Place(path, path, context)


def _below(around: str, context: str) -> str:
    """What the context's branch adds to its parent's.

    Without the task that LangChain runs a parent's body in: its number depends on those made before.
    """
    if around and not context.startswith(f"{around}/"):
        return ""
    return context.removeprefix(f"{around}/" if around else "").partition("/")[2].replace("#", ".")


def _told_apart() -> bool:
    """Whether the core tells lines of control apart here: in tasks, and in threads that a task awaits."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - the public one raises
        return True
    return threading.current_thread().name.startswith("asyncio_")


TREE = Tree()
