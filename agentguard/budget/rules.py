"""Budgets that are set outside the code: by run name and tenant, in a file or in the environment."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from agentguard.budget.model import Budget

_TENANT: Final = "tenant:"
_WILD: Final = frozenset("*?[")
#: A word, and what looks like the end of a prefix.  `[:]` is the sign itself, in a run's name.
_SEPARATED: Final = re.compile(r"([^:/\[]*)([:/])(.*)", re.DOTALL)


class BudgetRule(NamedTuple):
    """One line of the table: which runs it is for, and what they may use."""

    key: str
    tenant: str
    run: str
    budget: Budget

    def matches(self, run: str, tenant: str) -> bool:
        """Whether it is for runs of this name and tenant."""
        return fnmatchcase(run, self.run) and fnmatchcase(tenant, self.tenant)

    @property
    def rank(self) -> tuple[int, ...]:
        """How special it is: a run's name before a tenant's, a plain name before a pattern, longer first."""
        named = [pattern != "*" for pattern in (self.run, self.tenant)]
        plain = [_WILD.isdisjoint(pattern) for pattern in (self.run, self.tenant)]
        return (*named, *plain, len(self.run), len(self.tenant))


class BudgetRules(NamedTuple):
    """Budgets for runs whose code names none, and where they are from.

    Keys are patterns of run names (`"triage"`, `"nightly-*"`, `"*"`), of tenants (`"tenant:trial-*"`), or
    both (`"tenant:acme/nightly-*"`).  The most special key that matches is the one that applies.

    Example:
        >>> table = {"*": {"usd": 5}, "nightly-*": {"usd": 20}, "tenant:trial-*": {"usd": "0.10"}}
        >>> rules = budget_rules(table, "agentguard.toml")
        >>> [rules.find(*run).key for run in [("ask", "acme"), ("nightly-1", "acme"), ("ask", "trial-7")]]
        ['*', 'nightly-*', 'tenant:trial-*']
    """

    rules: tuple[BudgetRule, ...]
    source: str

    def find(self, run: str, tenant: str) -> BudgetRule | None:
        """Return the rule for runs of this name and tenant, or None."""
        return next((rule for rule in self.rules if rule.matches(run, tenant)), None)


def budget_rules(table: object, source: str) -> BudgetRules:
    """Return the rules of a table, the most special first.

    Raises:
        ValueError: a key or a limit cannot be right; the message names it and `source`.
    """
    if not isinstance(table, Mapping):
        raise _wrong(source, f"budgets must be a table of budgets, not {type(table).__name__}")
    rules = [_rule(key, fields, source) for key, fields in table.items()]
    return BudgetRules(tuple(sorted(rules, key=lambda rule: rule.rank, reverse=True)), source)


def _rule(key: str, fields: object, source: str) -> BudgetRule:
    tenant, run = "*", key
    if key.startswith(_TENANT):
        tenant, slash, run = key.removeprefix(_TENANT).partition("/")
        run = run if slash else "*"
    elif (hint := _odd_key(key)) is not None:
        raise _wrong(source, f"budgets has no key {key!r}; {hint}")
    if not tenant or not run:
        forms = "'name', 'tenant:t' or 'tenant:t/name'"
        raise _wrong(source, f"{key!r} names no run and no tenant; write {forms}")
    if not isinstance(fields, Mapping):
        raise _wrong(source, f'{key!r} must be a table of limits, as {{ usd = "1.00" }}, not {fields!r}')
    try:
        return BudgetRule(key, tenant, run, Budget.from_fields(fields))
    except (TypeError, ValueError) as error:
        raise _wrong(source, f"{key!r}: {error}") from None


def _wrong(source: str, problem: str) -> ValueError:
    return ValueError(f"{source}: {problem}")


def _odd_key(key: str) -> str | None:
    """Return what to write for a key that was most likely meant to name a tenant."""
    found = _SEPARATED.match(key)
    if found is None:
        return None
    word, sign, rest = found.groups()
    likely = bool(difflib.get_close_matches(word.lower(), ["tenant"], n=1, cutoff=0.6))
    if sign == "/" and not likely:
        return None
    others = f"; runs of that name are {word + f'[{sign}]' + rest!r}"
    return f"did you mean {_TENANT + rest!r}?{others}"


def parse_budget(text: str, source: str) -> Budget:
    """Return the budget of a text: `usd=5.00, steps=200, calls.web_fetch=3`, or a JSON object.

    Raises:
        ValueError: it is none; the message says what is wrong in it, and names `source`.

    Example:
        >>> parse_budget("usd=5.00, steps=200, calls.web_fetch=3", "AGENTGUARD_BUDGET")
        Budget(usd='5', steps=200, calls={'web_fetch': 3})
    """
    try:
        as_json = text.lstrip().startswith("{")
        fields = json.loads(text, object_pairs_hook=_once) if as_json else _pairs(text)
        budget = Budget.from_fields(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from None
    if budget.unlimited:
        raise ValueError(f"{source}: {text!r} limits nothing; write usd=5.00 or usd=5.00,steps=200")
    return budget


def _pairs(text: str) -> dict[str, object]:
    fields: list[tuple[str, object]] = []
    calls: list[tuple[str, object]] = []
    for pair in text.split(","):
        name, sign, value = (part.strip() for part in pair.partition("="))
        if not sign or not name or not value:
            raise ValueError(f"{pair.strip()!r} is no limit; write name=value, as usd=5.00")
        if name.startswith("calls."):
            calls.append((name.removeprefix("calls."), _value(value)))
        else:
            fields.append((name, value if name == "usd" else _value(value)))
    return _once([*fields, ("calls", _once(calls))] if calls else fields)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs by name.

    Raises:
        ValueError: a name is there twice, so that nobody can tell which value is meant.
    """
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = value
    return found


def _value(text: str) -> object:
    """Return the number or truth value of a text; a text that is neither is refused by the budget."""
    try:
        value: object = json.loads(text.lower())
    except ValueError:
        return text
    return value
