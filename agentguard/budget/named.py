"""Accounts that runs share by name: one limit over all runs of a conversation, of a user, of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote, unquote

import msgspec

from agentguard.budget.account import Account
from agentguard.budget.ledger import check_shared
from agentguard.budget.model import Budget, check_budget
from agentguard.tenancy import check_id

_PREFIX = "account:"


class NamedAccount(msgspec.Struct, frozen=True, kw_only=True):
    """An account that all runs of a tenant which name it are charged to.

    It lies in the store, and moves in the same act as the event of a step.  Each run is held to the budget
    that it names itself, on what all of them have spent.

    Args:
        name: what the runs call it, as `thread:42`.
        tenant: whose runs they are.
        budget: its limits.

    Example:
        >>> account = NamedAccount(name="thread:42", tenant="acme", budget=Budget(usd=5))
        >>> account.id, account.path
        ('account:acme/thread:42', 'account:thread:42')
    """

    name: str
    tenant: str
    budget: Budget

    @property
    def id(self) -> str:
        """Its name in the store, which no other account has."""
        return named_account_id(self.name, self.tenant)

    @property
    def path(self) -> str:
        """What errors and warnings call it."""
        return _PREFIX + self.name

    def opening(self) -> Account:
        """Return it as it is before anything was charged."""
        return Account(self.path, self.budget)

    def to_data(self) -> dict[str, Any]:
        """Return plain data, for `run_created`."""
        return {"name": self.name, "tenant": self.tenant, "budget": self.budget.to_fields()}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Return the account that `to_data` gave."""
        budget = Budget.from_fields(data["budget"])
        return cls(name=data["name"], tenant=data["tenant"], budget=budget)


def named_account_id(name: str, tenant: str) -> str:
    """Return the name in the store of an account that runs of a tenant share."""
    return f"{_PREFIX}{quote(tenant, safe='')}/{name}"


def named_account(account_id: str) -> str | None:
    """Return the name of an account by its name in the store; None for one that is no named account.

    Example:
        >>> named_account("account:acme/thread:42"), named_account("tenant:acme:2026-11")
        ('thread:42', None)
    """
    if not account_id.startswith(_PREFIX):
        return None
    return account_id.partition("/")[2]


def account_tenant(account_id: str) -> str | None:
    """Return whose named account this is, by its name in the store; None for any other account.

    Example:
        >>> account_tenant("account:a%2Fb/thread:42"), account_tenant("tenant:acme:2026-11")
        ('a/b', None)
    """
    if not account_id.startswith(_PREFIX):
        return None
    return unquote(account_id.removeprefix(_PREFIX).partition("/")[0])


def joined(around: NamedAccount | None, name: str, tenant: str, budget: Budget | None) -> NamedAccount:
    """Return the account of this name, for what is charged to the one around it already.

    Raises:
        TypeError, ValueError: the name or the budget cannot be one, or another account is around it.
    """
    check_account(name, budget)
    assert budget is not None  # noqa: S101 - it was checked
    if around is None:
        return NamedAccount(name=name, tenant=tenant, budget=budget)
    if around.name != name:
        raise ValueError(
            f"account={name!r}: what is around it is charged to {around.name!r}, and so is all that is "
            "inside; leave the account out, or open a run with detached=True"
        )
    return NamedAccount(name=name, tenant=around.tenant, budget=budget)


def check_account(name: object, budget: object) -> None:
    """Refuse a name without a budget, a budget without a name, and limits that no account can keep.

    Raises:
        TypeError, ValueError: the message names the field.
    """
    if name is None:
        if budget is not None:
            raise ValueError("account_budget limits an account: name it, as account='thread:42'")
        return
    check_id(name, "account")
    if budget is None:
        raise ValueError(
            f"account={name!r} has no budget: pass account_budget=Budget(usd=...), which all its runs share"
        )
    check_account_budget(budget)


def check_account_budget(budget: object, field: str = "account_budget") -> None:
    """Refuse limits that an account of many runs cannot keep.

    Raises:
        TypeError, ValueError: the message names `field`.
    """
    check_budget(budget, field)
    assert isinstance(budget, Budget)  # noqa: S101 - for the type checkers
    check_shared(budget, field)
    if budget.unlimited:
        raise ValueError(f"{field} limits nothing; write {field}=Budget(usd=...)")
