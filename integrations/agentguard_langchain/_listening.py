"""What every handler does: follow LangChain's tree, find the run, begin and end calls."""

from __future__ import annotations

import sys
from typing import Any, Literal, NoReturn
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler

from agentguard import NoActiveRunError, Run, UnknownCostError, Usage, guarded_step
from agentguard_langchain._calls import CALLS, Call
from agentguard_langchain._checkpoints import refuse_checkpoints
from agentguard_langchain._tree import TREE

Outside = Literal["refuse", "allow"]


class Listener(BaseCallbackHandler):
    """Follows the tree, so that calls are known by their place in it; makes no steps."""

    raise_error = True
    # Who does not say what it does with messages is given them as text: all of them, for each call.
    ignore_llm = ignore_chat_model = ignore_agent = ignore_retriever = True
    run: Run | None = None
    #: Whether a call that no context and no parent explains belongs to the only run alive.
    by_table = False

    @property
    def run_inline(self) -> bool:  # type: ignore[override]
        """Whether LangChain calls this in the caller's own task, as it must be: that one's context counts.

        Where async text completions begin, LangChain tells the inline handlers alone, if there is one, and
        the others nothing.  There it is inline only beside another one that is.
        """
        manager = _beginning_completions()
        return manager is None or any(
            handler.run_inline for handler in manager.handlers if not isinstance(handler, Listener)
        )

    def _run_here(self, parent_id: UUID | None) -> Run | None:
        return self.run or TREE.run_here(parent_id, by_table=self.by_table)

    def on_chain_start(
        self,
        serialized: dict[str, Any],
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note where it lies."""
        run = self._run_here(parent_run_id)
        if run is not None and parent_run_id is None:
            refuse_checkpoints(run, str(kwargs.get("name")))
        if run is not None and TREE.get(run_id) is None:
            TREE.begin(run_id, run, TREE.place(run, parent_run_id, tags, metadata, inputs))

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Nothing below it can still be under way."""
        close(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Nothing below it can still be under way."""
        close(run_id)


_BEGIN = AsyncCallbackManager.on_llm_start.__code__


def _beginning_completions() -> AsyncCallbackManager | None:
    """The manager that asks who is inline, where it is about to tell that text completions begin."""
    frame = sys._getframe(2)  # noqa: SLF001 - nothing else tells an attribute who reads it
    if frame.f_code is not _BEGIN and frame.f_back is not None:
        frame = frame.f_back  # the comprehension in it, which has a frame of its own before Python 3.12
    return frame.f_locals.get("self") if frame.f_code is _BEGIN else None


class Guarding(Listener):
    """Begins and ends calls as steps."""

    ignore_llm = ignore_chat_model = ignore_agent = ignore_retriever = False
    _allowed = False

    def _begins(self, run_id: UUID, parent_id: UUID | None, name: str) -> Run | None:
        """The run of a call that begins; None where it needs no step: another's, or allowed outside."""
        if run_id in CALLS:
            return None  # another handler was told first
        run = self._run_here(parent_id)
        if run is None:
            refuse_outside(name, allowed=self._allowed, by_table=self.by_table)
        return run

    def _start(self, run_id: UUID, parent_id: UUID | None, call: Call, inputs: dict[str, Any]) -> None:
        try:
            call.block.start(inputs)
        except BaseException as error:
            CALLS.revoke(call.group, error)
            raise
        CALLS.add(run_id, call)
        TREE.opened(run_id, parent_id)

    def _fails(self, run_id: UUID, error: BaseException, usage: Usage | None = None) -> None:
        call = CALLS.pop(run_id)
        if call is not None:
            call.finish(error, usage)
            CALLS.fail(call.group, error)


def close(run_id: UUID) -> None:
    """A run of LangChain's is over: so are the calls below it, whatever became of them."""
    for child in TREE.end(run_id):
        CALLS.abandon(child)


def refuse_unknown_cost(run: Run, name: str, error: UnknownCostError, options: dict[str, Any]) -> NoReturn:
    """Stop the run for want of a price, on record as the refusal of this call."""

    def reserve() -> Usage:
        raise error

    run.apply(name, nothing, reserve=reserve, **options)
    raise error


def nothing() -> None:
    """The body of a step whose call is over, or never made."""


# --- outside a run -------------------------------------------------------------------------------


def checked_outside(outside: str) -> bool:
    """Whether the option allows calls outside a run."""
    if outside not in ("refuse", "allow"):
        raise ValueError(f"outside must be 'refuse' or 'allow', not {outside!r}")
    return outside == "allow"


@guarded_step
def _outside() -> None:
    """Raises outside a run, unless a test allows steps there."""


def refuse_outside(name: str, *, allowed: bool = False, by_table: bool = False) -> None:
    """Refuse a call outside a run, as `guarded_step` does.

    Raises:
        NoActiveRunError: no run is active here, or nobody can say which of several.
    """
    several = by_table and len(TREE.alive()) > 1
    if not several:
        if allowed:
            return
        try:
            _outside()
        except NoActiveRunError:
            pass
        else:
            return
    which = "several are alive and none is active here" if several else "no run is active here"
    raise NoActiveRunError(
        f"{name} is guarded and {which}: call it inside `with guard.run(...)`, hand it to a thread as "
        "`run.bind(fn)`, or give the run: GuardCallbackHandler(run)"
    )
