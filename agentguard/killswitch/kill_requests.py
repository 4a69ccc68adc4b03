"""What somebody who kills or revives has to say, checked once for `Guard` and the command line."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Iterable, Mapping

from agentguard._loading import LOADING
from agentguard.events.data import Said
from agentguard.events.model import KILL_CLEARED, KILL_SET
from agentguard.killswitch.model import GLOBAL, RUN, TENANT, Kill
from agentguard.tenancy import UNSET, Id, check_id, check_reason, check_text


def kill_data(
    reason: str, *, tenant: Id = UNSET, run: Id = UNSET, actor: str | None = None
) -> tuple[str, dict[str, str]]:
    """The type and data of the control record that kills a run, a tenant, or everything.

    Raises:
        ValueError: an empty reason, tenant, run or actor; both a tenant and a run.
        TypeError: one of them is no string.
    """
    return KILL_SET, _request(reason, tenant, run, actor)


def revive_data(
    reason: str, *, tenant: Id = UNSET, run: Id = UNSET, actor: str | None = None
) -> tuple[str, dict[str, str]]:
    """The type and data of the control record that clears the kills of exactly this target."""
    return KILL_CLEARED, _request(reason, tenant, run, actor)


def authorship(reason: str | None, actor: str | None) -> Said:
    """Who does something to a run, `user@host` by default, and why, as the logs keep it.

    Raises:
        ValueError: the actor is empty.
        TypeError: one of them is no string.
    """
    data: Said = {"actor": check_text(default_actor() if actor is None else actor, "actor")}
    if reason is not None and reason != "":
        data["reason"] = check_reason(reason)
    return data


def in_force(kills: Iterable[Kill], data: Mapping[str, object]) -> list[Kill]:
    """The kills that a revive with this data would clear."""
    match = (data["scope"], data["target"])
    return [kill for kill in kills if not kill.cleared and (kill.scope, kill.target) == match]


def check_request(event_type: str, data: Mapping[str, object]) -> None:
    """Refuse a kill or revive that `fold` could not read, for the log cannot be corrected later.

    Raises:
        ValueError: it names no scope, no target or no reason.
    """
    if event_type not in (KILL_SET, KILL_CLEARED):
        return
    scope, target = data.get("scope"), data.get("target", "")
    if scope not in (GLOBAL, TENANT, RUN):
        raise ValueError(f"scope must be 'global', 'tenant' or 'run', not {scope!r}")
    if not isinstance(target, str) or (not target) != (scope == GLOBAL):
        raise ValueError(f"a {scope} order cannot have the target {target!r}")
    said = (data.get("reason"), data.get("actor", ""))
    if event_type == KILL_SET and not all(isinstance(text, str) for text in said):
        raise ValueError(f"a kill must say its reason and actor, not {said!r}")


def default_actor() -> str:
    """`user@host`."""
    try:
        with LOADING:  # it loads the module that knows
            user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        # A container often runs under a number that has no name.
        user = f"uid{os.getuid()}" if hasattr(os, "getuid") else "unknown"
    return f"{user}@{platform.node() or 'localhost'}"


def _request(reason: str, tenant: Id, run: Id, actor: str | None) -> dict[str, str]:
    if tenant is not UNSET and run is not UNSET:
        raise ValueError("give a tenant or a run, not both")
    scope, target = GLOBAL, ""
    if tenant is not UNSET:
        scope, target = TENANT, _target(tenant, "tenant")
    elif run is not UNSET:
        scope, target = RUN, _target(run, "run")
    return {
        "scope": scope,
        "target": target,
        "reason": check_reason(reason),
        "actor": check_text(default_actor() if actor is None else actor, "actor"),
    }


def _target(value: str | None, field: str) -> str:
    if value is None or value == "":
        raise ValueError(f"{field} is {value!r}; leave it out to mean everything")
    return check_id(value, field)
