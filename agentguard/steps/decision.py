"""An answer that a program has got by itself: from an application's own UI, say, instead of an operator's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentguard.tenancy import check_reason, check_text

if TYPE_CHECKING:
    from agentguard.events.data import Said


class Decision(NamedTuple):
    """What somebody decided of a call, for `approval=` and `asks=` of `run.call` and `run.apply`.

    It goes on record as an operator's: for `approval=`, the request and the answer in one act.

    Example:
        >>> from agentguard import Guard
        >>> from agentguard.steps.decision import Decision
        >>> with Guard.in_memory() as guard, guard.run("payments") as run:
        ...     paid = run.call("pay", int, 7, approval=Decision(granted=True, actor="ann", reason="checked"))
        >>> paid
        7
    """

    granted: bool
    actor: str
    reason: str | None = None

    def said(self) -> Said:
        """Return who decided, and why, as the log has it.

        Raises:
            TypeError, ValueError: the actor is empty, or one of them is no text.
        """
        said: Said = {"actor": check_text(self.actor, "actor")}
        if self.reason:
            said["reason"] = check_reason(self.reason)
        return said
