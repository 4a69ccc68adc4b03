"""What a token may do; each action is on record with the token's name as its actor."""

from __future__ import annotations

import logging

from agentguard.budget.model import Budget
from agentguard.console.auth import ConsoleError, Identity
from agentguard.console.data import Console, Hit
from agentguard.console.tokens import Role

logger = logging.getLogger("agentguard.console")

_LONGEST_REASON = 500
#: How long, in seconds, the answer to a kill waits for the processes that it is meant for.
_PATIENCE = 2.0
#: How much of a run's id is typed: its end, since ids of one minute begin alike.
_TYPED_CHARACTERS = 6
SCOPES = ("global", "tenant", "run")


def confirmation(scope: str, target: str) -> str:
    """Return what an operator has to type to confirm a kill."""
    if scope == "global":
        return "kill all"
    return f"kill {target if scope == 'tenant' else target[-_TYPED_CHARACTERS:]}"


def check_scope(console: Console, who: Identity, scope: str, target: str) -> None:
    """Refuse a kill or a revival that a token may not order.

    Raises:
        ConsoleError: it is beyond the token's tenant, or cannot be meant.
        RunNotFoundError: there is no such run for it.
    """
    if scope not in SCOPES:
        raise ConsoleError(400, f"scope must be global, tenant or run, not {scope!r}")
    if (scope == "global") != (not target):
        raise ConsoleError(400, "target must name the tenant or the run, and is empty for a global kill")
    if scope == "run":
        console.row(who, target)
    elif who.tenant is not None and target != who.tenant:
        raise ConsoleError(403, f"this token is bound to the tenant {who.tenant}")


def kill(console: Console, who: Identity, *, scope: str, target: str, reason: str, confirm: str) -> Hit:
    """Stop a run, a tenant's runs or everything, and return whom it has reached.

    Raises:
        ConsoleError: the role, the tenant, the reason or the confirmation does not do.
    """
    who.require(Role.OPERATOR)
    check_scope(console, who, scope, target)
    why = _reason(reason, needed=True)
    if confirm.strip() != confirmation(scope, target):
        raise ConsoleError(400, f"not confirmed, nothing was done: type {confirmation(scope, target)!r}")
    covered = console.covered(who, scope, target)
    actor = _actor(who)
    if scope == "run":
        generation = console.guard.kill(reason=why, run=target, actor=actor)
    elif scope == "tenant":
        generation = console.guard.kill(reason=why, tenant=target, actor=actor)
    else:
        generation = console.guard.kill(reason=why, actor=actor)
    console.remember(generation, covered)
    _done(console, who, "kill", f"{scope} {target}")
    return console.hit(who, generation, wait=_PATIENCE)


def revive(console: Console, who: Identity, *, scope: str, target: str, reason: str) -> None:
    """Clear the kills of one scope, so that later runs start again."""
    who.require(Role.ADMIN)
    check_scope(console, who, scope, target)
    why = _reason(reason, needed=True)
    actor = _actor(who)
    if scope == "run":
        console.guard.revive(reason=why, run=target, actor=actor)
    elif scope == "tenant":
        console.guard.revive(reason=why, tenant=target, actor=actor)
    else:
        console.guard.revive(reason=why, actor=actor)
    _done(console, who, "revive", f"{scope} {target}")


def decide(console: Console, who: Identity, run_id: str, key: str, *, granted: bool, reason: str) -> None:
    """Let a step that waits run, or refuse it."""
    who.require(Role.OPERATOR)
    run = console.row(who, run_id).run_id
    act = console.guard.approve if granted else console.guard.deny
    act(run, key, reason=_reason(reason) or None, actor=_actor(who))
    _done(console, who, "approve" if granted else "deny", f"{run_id} {key}")


def pause(console: Console, who: Identity, run_id: str, *, reason: str) -> None:
    """Let a run begin no further step."""
    who.require(Role.OPERATOR)
    run = console.row(who, run_id).run_id
    console.guard.pause(run, reason=_reason(reason), actor=_actor(who))
    _done(console, who, "pause", run_id)


def resume(console: Console, who: Identity, run_id: str) -> None:
    """Lift a pause."""
    who.require(Role.OPERATOR)
    console.guard.resume(console.row(who, run_id).run_id, actor=_actor(who))
    _done(console, who, "resume", run_id)


def set_limit(console: Console, who: Identity, run_id: str, *, usd: str) -> None:
    """Give a live run another limit of money, in USD; its other limits stay.

    Raises:
        ConsoleError: `usd` is no amount.
    """
    who.require(Role.OPERATOR)
    row = console.row(who, run_id)
    fields = console.status(row).summary.budget.to_fields()
    try:
        budget = Budget.from_fields(fields | {"usd": usd.strip()})
    except (TypeError, ValueError) as error:
        raise ConsoleError(400, str(error)) from error
    console.guard.set_budget(row.run_id, budget, actor=_actor(who))
    _done(console, who, "limit", f"{run_id} usd {budget.usd}")


def _reason(reason: str, *, needed: bool = False) -> str:
    # What is not printable could forge lines where the reason is shown later, on a terminal or in a file.
    text = "".join(c if c.isprintable() else " " for c in reason).strip()
    if needed and not text:
        raise ConsoleError(400, "say a reason; it is recorded")
    if len(text) > _LONGEST_REASON:
        raise ConsoleError(400, f"the reason is longer than {_LONGEST_REASON} characters")
    return text


def _actor(who: Identity) -> str:
    return f"console:{who.name}"


def _done(console: Console, who: Identity, action: str, what: str) -> None:
    console.changed()
    logger.info("%s by %s (%s): %r", action, who.name, who.role.name.lower(), what)
