"""What a token may do: one function for each action, called by a form of a page and by the JSON API alike.

Each action is on record with the token's name as its actor.  It returns what it was about: a kill, a run, or
nothing; a page leads there, and the API says how that stands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from agentguard.console.auth import ConsoleError, Identity
from agentguard.console.calls import LIMITS, Call, parse_limits, parse_number
from agentguard.console.confirming import check_scope, confirmation
from agentguard.console.data import Hit
from agentguard.console.tokens import Role
from agentguard.errors import StoreUnavailableError
from agentguard.protocols import RunRow

logger = logging.getLogger("agentguard.console")

_LONGEST_REASON = 500
#: How long, in seconds, the answer to a kill waits for the processes that it is meant for.
_PATIENCE = 2.0


class Action(NamedTuple):
    """An action: the path of its form (`/api` and the same in the API), its fields, and what it does."""

    path: str
    fields: tuple[str, ...]
    act: Callable[[Call], Hit | RunRow | None]


def kill(call: Call) -> Hit:
    """Stop a run, a tenant's runs or everything, and return whom it has reached."""
    console, who = call.console, call.who
    who.require(Role.OPERATOR)
    scope, target = call.field("scope"), call.field("target")
    check_scope(console, who, scope, target)
    reason = _reason(call, needed=True)
    if call.field("confirm").strip() != confirmation(scope, target):
        raise ConsoleError(400, f"not confirmed, nothing was done: type {confirmation(scope, target)!r}")
    try:
        covered = console.covered(who, scope, target)
    except StoreUnavailableError:  # the switch works without it
        covered = []
    generation = console.guard.kill(reason=reason, actor=_actor(who), **_target(scope, target))
    console.remember(generation, covered)
    _done(call, "kill", f"{scope} {target}")
    return console.hit(who, generation, wait=_PATIENCE)


def revive(call: Call) -> None:
    """Clear the kills of one scope, so that later runs start again."""
    call.who.require(Role.ADMIN)
    scope, target = call.field("scope"), call.field("target")
    check_scope(call.console, call.who, scope, target)
    reason = _reason(call, needed=True)
    call.console.guard.revive(reason=reason, actor=_actor(call.who), **_target(scope, target))
    _done(call, "revive", f"{scope} {target}")


def decide(call: Call) -> None:
    """Approve or deny a step that waits; with `asked`, the `seq` of its question, none that it asks later."""
    row, decision, key = _run(call), call.field("decision"), call.field("key")
    if decision not in ("approve", "deny"):
        raise ConsoleError(400, f"decision must be approve or deny, not {decision!r}")
    guard = call.console.guard
    answer = guard.approve if decision == "approve" else guard.deny
    answer(row.run_id, key, asked=_asked(call), reason=_reason(call) or None, actor=_actor(call.who))
    _done(call, decision, f"{row.run_id} {key}")


def pause(call: Call) -> RunRow:
    """Let a run begin no further step."""
    row = _run(call)
    call.console.guard.pause(row.run_id, reason=_reason(call), actor=_actor(call.who))
    _done(call, "pause", row.run_id)
    return row


def resume(call: Call) -> RunRow:
    """Lift a pause."""
    row = _run(call)
    call.console.guard.resume(row.run_id, reason=_reason(call), actor=_actor(call.who))
    _done(call, "resume", row.run_id)
    return row


def set_limit(call: Call) -> RunRow:
    """Set limits of a live run (usd, tokens, steps); its others stay.

    With `asked`, the `seq` of a step's question for a higher limit, only while that is asked.
    """
    row = _run(call)
    limits = parse_limits(call.field)
    try:
        call.console.guard.set_budget(
            row.run_id, limits, asked=_asked(call), reason=_reason(call), actor=_actor(call.who)
        )
    except (TypeError, ValueError) as error:
        raise ConsoleError(400, str(error)) from error
    _done(call, "limit", f"{row.run_id} {limits}")
    return row


ACTIONS = (
    Action("/runs/{run_id}/pause", ("reason",), pause),
    Action("/runs/{run_id}/resume", ("reason",), resume),
    Action("/runs/{run_id}/limit", (*LIMITS, "asked", "reason"), set_limit),
    Action("/runs/{run_id}/decide", ("key", "decision", "asked", "reason"), decide),
    Action("/kill", ("scope", "target", "reason", "confirm"), kill),
    Action("/revive", ("scope", "target", "reason"), revive),
)


def _run(call: Call) -> RunRow:
    """Return the run that an operator acts on."""
    call.who.require(Role.OPERATOR)
    return call.console.row(call.who, call.path("run_id"))


def _asked(call: Call) -> int | None:
    """Return which question is answered, by the number of its event; None for whichever is asked."""
    given = call.field("asked")
    return parse_number(given) if given else None


def _target(scope: str, target: str) -> dict[str, str]:
    return {} if scope == "global" else {scope: target}


def _reason(call: Call, *, needed: bool = False) -> str:
    # What is not printable could forge lines where the reason is shown later, on a terminal or in a file.
    text = "".join(c if c.isprintable() else " " for c in call.field("reason")).strip()
    if needed and not text:
        raise ConsoleError(400, "say a reason; it is recorded")
    if len(text) > _LONGEST_REASON:
        raise ConsoleError(400, f"the reason is longer than {_LONGEST_REASON} characters")
    return text


def _actor(who: Identity) -> str:
    return f"console:{who.name}"


def _done(call: Call, action: str, what: str) -> None:
    call.console.changed()
    logger.info("%s by %s (%s): %r", action, call.who.name, call.who.role.name.lower(), what)
