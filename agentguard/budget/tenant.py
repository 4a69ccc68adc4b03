"""Tenant budgets: what the control log says of them, and which account a step charges now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from agentguard.budget.account import Account
from agentguard.budget.model import Budget
from agentguard.tenancy import check_id

PERIODS = (None, "day", "month")
_NAME = "tenant:"
_DAY = 86_400


class TenantBudgets:
    """The tenant budgets in force.  A tenant may have one for each period.

    Accounts are named `tenant:<tenant>` or `tenant:<tenant>:<window>`; windows are UTC by the store's clock
    when the reservation is made, and settlement goes to the same window.
    """

    __slots__ = ("_budgets",)

    def __init__(self) -> None:
        self._budgets: dict[str, dict[str | None, Budget]] = {}

    def set(self, tenant: str, per: str | None, fields: dict[str, Any]) -> None:
        """Put a budget in force; one without any limit lifts it.

        Raises:
            TypeError, ValueError: it is none, or its tenant or period cannot be one.
        """
        check_id(tenant, "tenant")
        if per not in PERIODS:
            raise ValueError(f"per must be 'day', 'month' or None, not {per!r}")
        budget = Budget.from_fields(fields)
        budgets = dict(self._budgets.get(tenant, {}))
        if budget.unlimited:
            budgets.pop(per, None)
        else:
            budgets[per] = budget
        everything = dict(self._budgets)
        everything[tenant] = budgets
        self._budgets = everything

    def budgets(self, tenant: str) -> dict[str | None, Budget]:
        """The tenant's budgets by period."""
        return self._budgets.get(tenant, {})

    def tenants(self) -> Iterable[str]:
        """The tenants that have a budget."""
        return [tenant for tenant, budgets in self._budgets.items() if budgets]

    def accounts(self, tenant: str, now: Callable[[], int]) -> list[tuple[str, Account]]:
        """The accounts that a step of this tenant charges, as they open; `now` tells the store's time."""
        budgets = self.budgets(tenant)
        wall_ns = now() if any(budgets) else 0
        return [
            (account_id(tenant, per, wall_ns), Account(_NAME + tenant, budget))
            for per, budget in budgets.items()
        ]


def account_id(tenant: str, per: str | None, wall_ns: int) -> str:
    """Return the name of a tenant's account in the store."""
    if per is None:
        return _NAME + tenant
    return f"{_NAME}{tenant}:{_window(per, wall_ns // 10**9)}"


def is_charged_at(account: str, path: str, times: Iterable[int]) -> bool:
    """Return whether a step may charge an account at one of some times, in seconds: windows close."""
    seconds = charged_during(account, path)
    return seconds is None or any(at in seconds for at in times)


def charged_during(account: str, path: str) -> range | None:
    """Return the seconds in which a step may charge an account; None for one that is always open."""
    window = account.removeprefix(f"{path}:")
    if not path.startswith(_NAME) or window == account:
        return None
    for per in PERIODS:
        if per is not None and (begins := _begin(window)) is not None and window == _window(per, begins):
            return range(begins, _end(per, begins))
    return range(0)


def _begin(window: str) -> int | None:
    try:
        return int(datetime.fromisoformat(f"{window}-01"[:10]).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None


def _end(per: str, begins: int) -> int:
    day = datetime.fromtimestamp(begins, UTC)
    if per == "day":
        return begins + _DAY
    following = day + timedelta(days=31)
    return int(following.replace(day=1).timestamp())


def _window(per: str, seconds: int) -> str:
    day = datetime.fromtimestamp(seconds, UTC)
    return f"{day:%Y-%m-%d}" if per == "day" else f"{day:%Y-%m}"
