"""Where a checkpointer of LangGraph's and the log of a run meet: in a recovery and in a replay.

A graph that is resumed from its checkpoint makes only the calls that come after it.  The log has those
before it too: in a recovery they are done.  In a replay the graph begins at its beginning, and would write
what it does into the thread once more.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel import Pregel

from agentguard import ReplayDivergenceError, Run
from agentguard_langchain import _mapping as m

if TYPE_CHECKING:
    from agentguard_langchain._tree import Place

_CHECKPOINTER = "__pregel_checkpointer"


class CheckpointedReplayError(ReplayDivergenceError):
    """A replay would have written into a thread of a checkpointer."""


def has_checkpointer(config: Mapping[str, Any]) -> bool:
    """Return whether the graph that runs with this config keeps checkpoints."""
    return (config.get("configurable") or {}).get(_CHECKPOINTER) is not None


# --- recovery ------------------------------------------------------------------------------------


class _Resumed:
    """The graph of a run that was resumed from a checkpoint, if one was."""

    def __init__(self) -> None:
        #: The threads whose first call was seen.
        self.threads: set[str] = set()
        self.thread: str | None = None
        #: The step that it went on with, until the step after it has begun.
        self.step: int | None = None


_RESUMED: weakref.WeakKeyDictionary[Run, _Resumed] = weakref.WeakKeyDictionary()


def resume(run: Run, place: Place, config: Mapping[str, Any]) -> None:
    """Take the calls before a checkpoint as done, where a graph goes on from one in a recovery.

    Raises:
        ReplayDivergenceError: the run has calls of several threads: which of them are done, nobody can tell.
    """
    metadata = config.get("metadata") or {}
    thread, step = metadata.get("thread_id"), metadata.get("langgraph_step")
    if not has_checkpointer(config) or thread is None or not isinstance(step, int):
        return
    resumed = _RESUMED.setdefault(run, _Resumed())
    if resumed.thread not in {None, thread}:
        raise ReplayDivergenceError(
            "not_replayable",
            None,
            expected=f"calls of thread {resumed.thread!r} alone, which was resumed from a checkpoint",
            found=f"a call of thread {thread!r}: recover a run for each thread",
        )
    if thread not in resumed.threads:
        resumed.threads.add(thread)
        if _skip(run, place, step):
            resumed.thread, resumed.step = str(thread), step
    elif resumed.step is not None and step > resumed.step:
        # Of the tasks that went on side by side, a checkpoint keeps those that were done.
        _skip(run, place, step)
        resumed.step = None


def _skip(run: Run, place: Place, step: int) -> int:
    around, _, _ = f"/{place.path}".rpartition("/")
    return run.skip(lambda branch: m.is_before(branch.partition("/")[2], around.removeprefix("/"), step))


# --- replay --------------------------------------------------------------------------------------


def refuse_checkpoints(run: Run, name: str) -> None:
    """Refuse a replay of a graph with a checkpointer that keeps its threads, before it writes.

    Raises:
        CheckpointedReplayError: the graph that begins here has one.
    """
    if not run.replayed:
        return
    saver = _checkpointer_here()
    if isinstance(saver, BaseCheckpointSaver) and not isinstance(saver, InMemorySaver):
        raise CheckpointedReplayError(
            "not_replayable",
            None,
            expected="a graph with an InMemorySaver (see docs/integrations/langgraph-checkpoints.md)",
            found=f"{name} with a {type(saver).__name__}, into whose threads a replay would write",
        )


def _checkpointer_here() -> Any:
    """The checkpointer of the graph that begins here; LangChain tells callbacks nothing of it."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - see above
    while frame is not None:
        graph = frame.f_locals.get("self") if frame.f_code.co_name in {"stream", "astream"} else None
        if isinstance(graph, Pregel):
            config = frame.f_locals.get("config") or {}
            return (config.get("configurable") or {}).get(_CHECKPOINTER, graph.checkpointer)
        frame = frame.f_back
    return None
