"""A shared account as databases keep it: JSON text, readable in a shell."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from agentguard.budget.account import Account
from agentguard.errors import StoreUnavailableError

_Held = dict[str, Annotated[int, msgspec.Meta(ge=0)]]


class _Shape(msgspec.Struct):
    """Which types `Account.to_data` gives."""

    path: str
    budget: dict[str, Any]
    spent: _Held
    reserved: _Held
    excess: dict[str, int]
    calls: dict[str, int]
    repeats: dict[str, int]
    #: Earlier versions did not say so.
    closed: bool = False
    uncounted: _Held = {}


_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(_Shape).decode


def account_text(account: Account) -> str:
    """An account as it is stored."""
    return _encode(account.to_data()).decode()


def account(name: str, text: str | bytes) -> Account:
    """The account that `account_text` stored.

    Raises:
        StoreUnavailableError: it is none: it was changed by hand, and nothing may be charged to it.
    """
    try:
        return Account.from_data(msgspec.structs.asdict(_decode(text)))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise StoreUnavailableError(
            f"the account {name} in the store cannot be read ({error}), so that nothing is charged to it; "
            "put back what it was, as in a copy of the store: `agentguard verify` says what logs prove"
        ) from error
