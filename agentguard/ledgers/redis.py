"""The ledger on Redis or Valkey: what hosts that share a store charge their tenants.

Every act is one Lua script, `redis.lua`: the server does all of it, or nothing.  What lies where on the
server is told there.  The rule at the limit is `Account.refusal`; the script follows it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from agentguard._optional import require
from agentguard._secrets import public_url
from agentguard.budget.account import Account, Amounts, Refusal, Request
from agentguard.budget.ledger import LedgerRefusedError
from agentguard.budget.model import Budget
from agentguard.budget.reservation import LedgerBehindError, Reservation, ReservationTakenError
from agentguard.errors import StoreUnavailableError

#: Seconds that the server is given for a connection, and for an answer; in the URL, `socket_connect_timeout`
#: and `socket_timeout`.
TIMEOUT = 2.0
#: Seconds for which a settled reservation is remembered; in the URL, `remember`.  Who was cut off from the
#: server for longer, and did not hear that a step was settled, charges it twice.
REMEMBER = 86_400
#: The largest amount that is counted.
MOST = 2**53 - 1
#: Options of the URL that this ledger needs to be as they are.
_OURS = ("decode_responses", "encoding", "encoding_errors", "retry", "retry_on_error", "retry_on_timeout")

_encode = msgspec.json.encode
_decode = msgspec.json.decode


class RedisLedger:
    """The accounts of tenants on a Redis (6.2 or newer) or Valkey server.

    Nothing is opened until it is used.  Safe to share between threads, and across fork.

    Args:
        url: `redis://host:6379/0`, `rediss://...` or `unix:///path`, as redis-py takes it.  Besides its
            options: `prefix=`, what the keys begin with ("agentguard"), so that stores can share a server,
            and `remember=`, for how many seconds a settled reservation is remembered (a day).

    Raises:
        MissingExtraError: redis-py is not installed.
        ValueError: the URL is none, or has an option that nobody knows.

    Example:
        >>> from agentguard.ledgers.redis import RedisLedger
        >>> ledger = RedisLedger("redis://:secret@budgets.internal:6379/0?prefix=production")
        >>> ledger.url
        'redis://budgets.internal:6379/0?prefix=production'
    """

    def __init__(self, url: str) -> None:
        self._redis: Any = require("redis", extra="redis", feature="a ledger on Redis")
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        prefix = options.pop("prefix", "agentguard")
        remember = options.pop("remember", str(REMEMBER))
        self.url = public_url(url)
        if not prefix or set(prefix) & set("{}") or not prefix.isprintable():
            raise ValueError(f"{self.url}: prefix must be printable, not empty, and without braces")
        if not remember.isdecimal() or not int(remember):
            raise ValueError(f"{self.url}: remember must be whole seconds, not {remember!r}")
        if wrong := [name for name in _OURS if name in options]:
            raise ValueError(f"{self.url}: the option {wrong[0]} is not yours to set")
        self._remember = int(remember)
        self._books = f"{{{prefix}}}:books"
        self._server = f"{parts.scheme}://{parts.netloc}{parts.path}?{urlencode(options)}"
        self._pid = os.getpid()
        self._client: Any = self._connect()

    def _connect(self) -> Any:
        """A client; it opens nothing yet.

        Only a connection that was found broken is tried again, once: each act is done once.
        """
        redis = self._redis
        retry = redis.retry.Retry(redis.backoff.NoBackoff(), 1, (redis.exceptions.ConnectionError,))
        try:
            client = redis.Redis.from_url(
                self._server,
                decode_responses=True,
                retry=retry,
                socket_connect_timeout=TIMEOUT,
                socket_timeout=TIMEOUT,
            )
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.url} is no URL of a server: {error}") from None
        return client

    # --- acts ----------------------------------------------------------------------------------

    def generation(self) -> int:
        """The generation that the books are of, or 0 where there are none."""
        return int(self._ask("hget", self._books, "generation") or 0)

    def reserve(
        self,
        reservation: Reservation,
        request: Request,
        openings: Mapping[str, Account],
        lease: float,
    ) -> dict[str, Account]:
        """Hold what a step asks for on every account of `reservation`."""
        told = self._act(
            "reserve",
            held=_text(reservation),
            accounts=[_opening(name, openings[name]) for name in reservation.accounts],
            postpaid=request.postpaid,
            lease=_ms(lease),
        )
        return _accounts(told)

    def settle(
        self, reservation: Reservation, usage: Amounts | None, *, final: bool = True
    ) -> dict[str, Account]:
        """Charge what was used in place of a reservation; None gives it back."""
        told = self._act(
            "settle",
            held=_text(reservation),
            usage=False if usage is None else _pairs(usage),
            final=final,
            remember=self._remember,
        )
        return _accounts(told)

    def renew(
        self, generation: int, holder: Mapping[str, Any], reservations: Sequence[Reservation], lease: float
    ) -> None:
        """Say that a holder lives; what it holds and is missing is put back."""
        self._act(
            "renew",
            generation=str(generation),
            holder=_name(holder),
            held=[_text(reservation) for reservation in reservations],
            lease=_ms(lease),
        )

    def overdue(self) -> list[Reservation]:
        """The reservations, not charged yet, of holders whose lease has run out."""
        return [_reservation(text) for text in self._act("overdue")]

    def rebuild(
        self, generation: int, accounts: Mapping[str, Account], reservations: Sequence[Reservation]
    ) -> None:
        """Put these books in the place of what is there."""
        self._act(
            "rebuild",
            generation=str(generation),
            accounts=[_opening(name, account) | _counted(account) for name, account in accounts.items()],
            held=[_text(reservation) for reservation in reservations],
        )

    def accounts(self, ids: Sequence[str]) -> dict[str, Account]:
        """The accounts that exist among `ids`."""
        return _accounts(self._act("accounts", names=list(ids)))

    def concerns(self) -> list[str]:
        """What about the server endangers the books: for `agentguard doctor`."""
        memory, disk = self._ask("info", "memory"), self._ask("info", "persistence")
        found = []
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            found.append(
                f"its maxmemory-policy is {policy}: it may throw the books away to make room; "
                "set it to noeviction"
            )
        if not int(disk.get("aof_enabled", 0)):
            found.append(
                "it writes no append-only file: after a restart the books are gone, or old; "
                "set appendonly yes, or rebuild the ledger after each restart"
            )
        return found

    def close(self) -> None:
        """Close the connections."""
        if self._pid == os.getpid():
            self._client.close()

    # --- the server ----------------------------------------------------------------------------

    def _act(self, act: str, **ask: Any) -> list[Any]:
        """Let the server act; gives what it has to say.

        Raises:
            LedgerBehindError, ReservationTakenError, LedgerRefusedError: it says no.
            StoreUnavailableError: it cannot be asked, or the amounts are too large for it.
        """
        source, digest = _script()
        arguments = (1, self._books, act, _encode(ask))
        told: list[Any] = self._ask("evalsha", digest, *arguments, or_else=("eval", source, *arguments))
        how, rest = told[0], told[1:]
        if how == "behind":
            raise LedgerBehindError(int(rest[0]))
        if how == "taken":
            raise ReservationTakenError(_reservation(rest[0], charged=bool(rest[1])) if rest else None)
        if how == "refused":
            name, path, resource, *amounts = rest
            raise LedgerRefusedError(name, path, Refusal(resource, *(int(amount) for amount in amounts)))
        if how == "full":
            raise StoreUnavailableError(
                f"the ledger {self.url} counts up to {MOST} of a thing, and {rest[0]} would have more "
                f"{rest[1]} than that"
            )
        return rest

    def _ask(self, command: str, *arguments: Any, or_else: tuple[Any, ...] = ()) -> Any:
        if self._pid != os.getpid():  # a forked child's connections are its own
            self._pid, self._client = os.getpid(), self._connect()
        try:
            try:
                return getattr(self._client, command)(*arguments)
            except self._redis.exceptions.NoScriptError:
                return getattr(self._client, or_else[0])(*or_else[1:])
        except (self._redis.exceptions.RedisError, OSError) as error:
            raise StoreUnavailableError(f"the ledger {self.url}: {error}") from error


@cache
def _script() -> tuple[str, str]:
    """The script, and the name that a server knows it by."""
    source = files("agentguard.ledgers").joinpath("redis.lua").read_text("utf-8")
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


# --- to and from text: amounts and generations have more digits than JSON's numbers in Lua -----------


def _pairs(amounts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name, str(amount)) for name, amount in amounts.items()]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _name(holder: Mapping[str, Any]) -> str:
    return _encode(holder, order="sorted").decode()


def _text(reservation: Reservation) -> str:
    fields = {
        "id": reservation.id,
        "run_id": reservation.run_id,
        "key": reservation.key,
        "attempt": reservation.attempt,
        "accounts": reservation.accounts,
        "reserve": _pairs(reservation.reserve),
        "name": reservation.name,
        "kind": reservation.kind,
        "epoch": reservation.epoch,
        "generation": str(reservation.generation),
        "holder": _name(reservation.holder),
        "nonce": reservation.nonce,
    }
    return _encode(fields).decode()


def _reservation(text: str, *, charged: bool = False) -> Reservation:
    fields = _decode(text)
    del fields["id"]
    return Reservation(
        **fields
        | {
            "accounts": tuple(fields["accounts"]),
            "reserve": {name: int(amount) for name, amount in fields["reserve"]},
            "generation": int(fields["generation"]),
            "holder": _decode(fields["holder"]),
            "charged": charged,
        }
    )


def _opening(name: str, account: Account) -> dict[str, Any]:
    """An account as it opens."""
    budget = account.budget
    if budget.repeats is not None:
        raise ValueError(f"{name}: a ledger apart from the store counts no repeats")
    return {
        "name": name,
        "path": account.path,
        "budget": _encode(budget.to_fields()).decode(),
        "enforce": budget.enforce,
        "limits": _pairs(account.limits),
        "calls": _pairs(budget.calls),
    }


def _counted(account: Account) -> dict[str, Any]:
    """What has been counted there."""
    return {
        "spent": _pairs(account.spent),
        "reserved": _pairs(account.reserved),
        "excess": _pairs(account.excess),
        "called": _pairs(account.calls),
    }


def _accounts(told: Sequence[Any]) -> dict[str, Account]:
    return {name: _account(flat) for name, flat in zip(told[::2], told[1::2], strict=True) if flat}


def _account(flat: Sequence[str]) -> Account:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    account = Account(fields["path"], _budget(fields["budget"]))
    counted = {
        "spent": account.spent,
        "reserved": account.reserved,
        "excess": account.excess,
        "calls": account.calls,
    }
    for field, value in fields.items():
        kind, _, name = field.partition(":")
        if kind in counted:
            counted[kind][name] = int(value)
    return account


@lru_cache(maxsize=1024)
def _budget(text: str) -> Budget:
    return Budget.from_fields(_decode(text))
