"""From values to HTML: the templates, which escape all that they are given, and how amounts are written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from agentguard.budget.model import Budget
from agentguard.console.auth import Identity
from agentguard.console.charts import share, sparkline
from agentguard.console.confirming import confirmation
from agentguard.console.run_list import spent
from agentguard.console.tokens import Role

_LONGEST_PAYLOAD = 4000
#: What is longer is not shown in one line.
_LINE = 100

templates = Environment(
    loader=PackageLoader("agentguard.console"),
    autoescape=True,  # for every template, whatever its name
    undefined=StrictUndefined,
)


def page(template: str, who: Identity | None, /, *, code: int = 200, **values: Any) -> HTMLResponse:
    """Return a page of one template."""
    return HTMLResponse(fragment(template, who, code=code, **values), code)


def fragment(template: str, who: Identity | None, /, **values: Any) -> str:
    """Return what a template renders to."""
    return templates.get_template(template).render(who=who, Role=Role, confirmation=confirmation, **values)


def _usd(amount: Decimal) -> str:
    return f"${amount:,.4f}" if amount < 1 else f"${amount:,.2f}"


def _amount(value: Decimal | int, name: str) -> str:
    return _usd(Decimal(value)) if name == "usd" else f"{value:,}"


def _when(at: datetime | int | None) -> str:
    """A time in UTC, from a datetime or from nanoseconds since the epoch."""
    if at is None:
        return ""
    moment = datetime.fromtimestamp(at / 1e9, UTC) if isinstance(at, int) else at.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _took(nanoseconds: int) -> str:
    """How long something took."""
    return f"{nanoseconds / 1e9:,.1f} s" if nanoseconds >= 1_000_000_000 else f"{nanoseconds / 1e6:.1f} ms"


def _payload(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > _LINE:
        text = json.dumps(value, ensure_ascii=False, default=str, indent=1)
    if len(text) <= _LONGEST_PAYLOAD:
        return text
    return f"{text[:_LONGEST_PAYLOAD]}… ({len(text):,} characters; the download has all)"


def _arguments(value: Any) -> str:
    """What a step is called with, as it is written in a call."""
    match value:
        case [[*positional], dict(named)]:
            shown = [
                *map(_payload, positional),
                *(f"{name}={_payload(each)}" for name, each in named.items()),
            ]
            return ", ".join(shown)
        case _:
            return _payload(value)


def _limits(budget: Budget) -> str:
    return ", ".join(f"{name} {value}" for name, value in budget.to_fields().items() if value is not None)


templates.filters |= {
    "usd": _usd,
    "when": _when,
    "took": _took,
    "payload": _payload,
    "arguments": _arguments,
    "limits": _limits,
    "amount": _amount,
    "sparkline": sparkline,
    "bar": share,
    "spent": spent,
}
