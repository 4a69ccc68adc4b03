"""The ledger on Redis says in everything what `MemoryLedger` says, which decides with `Account.refusal`."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agentguard.budget.account import Account, Request
from agentguard.budget.ledger import LedgerRefusedError
from agentguard.budget.model import Budget
from agentguard.budget.reservation import LedgerBehindError, Reservation, ReservationTakenError
from agentguard.budget.resources import public_amount, public_name
from agentguard.errors import StoreUnavailableError
from agentguard.ledgers.redis import MOST, RedisLedger
from agentguard.protocols import Ledger
from agentguard.testing import MemoryLedger
from tests import servers
from tests.scale import scaled

NAMES = ("tenant:acme", "tenant:acme:2026-11-22")
RESOURCES = ("steps", "nano_usd", "coins", "ünits")
HOLDERS = ({"pid": 1, "host": "a"}, {"pid": 2, "host": "b c"})

#: What a ledger on Redis says where it cannot count so far.
FULL = "full"

# Small, so that limits are met; and a few near the end of what is counted, whose sums are not exact in doubles.
AMOUNT = st.one_of(st.integers(0, 6), st.sampled_from([MOST // 2 - 1, MOST // 2, MOST // 4 + 1]))
LIMIT = st.one_of(st.integers(0, 12), st.sampled_from([MOST // 2, MOST - 1, MOST, MOST + 1, 2**62]))
AMOUNTS = st.dictionaries(st.sampled_from(RESOURCES), AMOUNT, max_size=4)
TOOLS = st.sampled_from([("pay", "tool"), ("ask", "llm"), ("kind:tool", "tool")])


def budgets() -> st.SearchStrategy[Budget]:
    patterns = st.sampled_from(["pay", "ask", "kind:tool", "kind:llm"])
    return st.builds(
        lambda limits, calls, enforce: Budget.from_fields(
            {public_name(name): _public(name, limit) for name, limit in limits.items()}
            | {"calls": calls, "enforce": enforce}
        ),
        st.dictionaries(st.sampled_from(RESOURCES), LIMIT, max_size=4),
        st.dictionaries(patterns, st.integers(0, 4), max_size=2),
        st.sampled_from([True, True, True, False]),
    )


def _public(name: str, limit: int) -> Any:
    amount = public_amount(name, limit)
    return amount if isinstance(amount, int) else str(amount)


@st.composite
def acts(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    act = draw(st.sampled_from(["reserve"] * 4 + ["settle"] * 4 + ["renew", "rebuild"]))
    asked: dict[str, Any] = {
        "step": draw(st.integers(0, 5)),
        "generation": draw(st.sampled_from([7] * 8 + [6, 8])),
        "holder": draw(st.sampled_from(HOLDERS)),
        "nonce": draw(st.sampled_from(["", "a", "b"])),
    }
    if act == "reserve":
        asked |= {
            "reserve": draw(AMOUNTS),
            "tool": draw(TOOLS),
            "postpaid": draw(st.booleans()),
            "names": draw(st.sampled_from([NAMES, NAMES[:1]])),
            "budgets": draw(st.tuples(budgets(), budgets())),
        }
    elif act == "settle":
        asked |= {"usage": draw(st.none() | AMOUNTS), "final": draw(st.booleans())}
    return act, asked


class Twin:
    """A ledger, and the acts on it; what it answers is plain data."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        #: What each step asked for last, so that its settlement names the same.
        self.asked: dict[int, Reservation] = {}

    def reservation(self, asked: dict[str, Any]) -> Reservation:
        known = self.asked.get(asked["step"])
        if known is None:
            known = Reservation(
                run_id="r",
                key=f"main/s#{asked['step']}",
                attempt=1,
                accounts=asked.get("names", NAMES),
                reserve=asked.get("reserve", {"steps": 1}),
                name=asked.get("tool", ("pay", "tool"))[0],
                kind=asked.get("tool", ("pay", "tool"))[1],
                epoch=1,
                generation=7,
                holder=HOLDERS[0],
            )
            self.asked[asked["step"]] = known
        return replace(known, generation=asked["generation"], holder=asked["holder"], nonce=asked["nonce"])

    def act(self, act: str, asked: dict[str, Any]) -> Any:
        held = self.reservation(asked)
        try:
            if act == "reserve":
                request = Request(held.reserve, held.name, held.kind, asked["postpaid"])
                openings = {
                    name: Account("tenant:acme", budget)
                    for name, budget in zip(NAMES, asked["budgets"], strict=True)
                }
                return plain(self.ledger.reserve(held, request, openings, 60.0))
            if act == "settle":
                usage = asked["usage"] if asked["final"] else held.reserve
                return plain(self.ledger.settle(held, usage, final=asked["final"]))
            if act == "renew":
                self.ledger.renew(asked["generation"], held.holder, [held], 60.0)
                return None
            account = Account("tenant:acme", Budget(coins=20, calls={"pay": 3}))
            account.reserve(held.request)
            account.settle({}, {"coins": 5, "steps": 2})
            self.ledger.rebuild(asked["generation"], {**dict.fromkeys(held.accounts, account)}, [held])
            return None
        except LedgerRefusedError as refused:
            return refused.account, refused.path, refused.refusal
        except LedgerBehindError as behind:
            return "behind", behind.found
        except ReservationTakenError as taken:
            return "taken", taken.held
        except StoreUnavailableError as full:
            assert str(MOST) in str(full)
            return FULL

    def books(self) -> Any:
        overdue = sorted((held.id, held.holder["pid"]) for held in self.ledger.overdue())
        return self.ledger.generation(), plain(self.ledger.accounts(NAMES)), overdue

    def most(self) -> int:
        """The most that is spent and reserved of anything."""
        totals = [
            account.spent.get(name, 0) + account.reserved.get(name, 0)
            for account in self.ledger.accounts(NAMES).values()
            for name in RESOURCES
        ]
        return max(totals, default=0)


def plain(accounts: dict[str, Account]) -> Any:
    """What there is, without what is nothing."""
    return {
        name: (
            account.path,
            account.budget,
            *(
                {k: v for k, v in getattr(account, kind).items() if v}
                for kind in ("spent", "reserved", "excess", "calls")
            ),
        )
        for name, account in accounts.items()
    }


def agree(server: str, program: list[tuple[str, dict[str, Any]]]) -> None:
    prefix = f"test-{uuid.uuid4().hex}"
    redis = RedisLedger(f"{server}{'&' if '?' in server else '?'}prefix={prefix}")
    twins = Twin(MemoryLedger()), Twin(redis)
    try:
        for twin in twins:
            twin.ledger.rebuild(7, {}, [])
        for act, asked in program:
            said = [twin.act(act, asked) for twin in twins]
            if said[1] == FULL:
                assert twins[0].most() > MOST, "it counts up to there"
                return
            assert twins[0].most() <= MOST
            assert said[0] == said[1], act
            books = [twin.books() for twin in twins]
            assert books[0] == books[1], act
    finally:
        redis.close()
        if servers.REDIS_URL is not None:
            servers.remove(server, f"{{{prefix}}}:*")


@settings(max_examples=150, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(program=st.lists(acts(), min_size=1, max_size=12))
def test_both_ledgers_say_the_same(redis_server: str, program: list[tuple[str, dict[str, Any]]]) -> None:
    agree(redis_server, program)


@pytest.mark.long
@settings(max_examples=scaled(2000), deadline=None)
@given(program=st.lists(acts(), min_size=1, max_size=40))
def test_both_ledgers_say_the_same_for_longer(
    redis_server: str, program: list[tuple[str, dict[str, Any]]]
) -> None:
    agree(redis_server, program)
