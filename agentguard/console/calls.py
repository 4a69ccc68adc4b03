"""What a handler is given: a request of somebody who is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.responses import Response

from agentguard.budget.model import Budget
from agentguard.console.auth import ConsoleError, Identity
from agentguard.console.data import Console

if TYPE_CHECKING:
    from starlette.requests import Request


#: The limits that can be named here.
LIMITS = ("usd", "tokens", "steps")


class Call(NamedTuple):
    """A request of somebody who is known; `form` is empty for what only reads."""

    console: Console
    who: Identity
    request: Request
    form: dict[str, str]

    def query(self, name: str) -> str:
        """Return a parameter of the address, empty where it is not there."""
        return self.request.query_params.get(name, "")

    def field(self, name: str) -> str:
        """Return a field of the form, empty where it is not there."""
        return self.form.get(name, "")

    def path(self, name: str) -> str:
        """Return a part of the path."""
        return str(self.request.path_params[name])


Handler = Callable[[Call], Response]


def parse_limits(text_of: Callable[[str], str]) -> dict[str, Any]:
    """Return the limits that a form names.

    Raises:
        ConsoleError: it names none, or one that cannot be meant.
    """
    named = {name: text for name in LIMITS if (text := text_of(name).strip())}
    if not named:
        raise ConsoleError(400, f"name a limit: {', '.join(LIMITS)}")
    try:
        limits: dict[str, Any] = {n: text if n == "usd" else int(text) for n, text in named.items()}
        Budget(**limits)
    except (TypeError, ValueError) as error:
        raise ConsoleError(400, str(error)) from error
    return limits


def parse_number(text: str) -> int:
    """Return a number of an event, as an address names it.

    Raises:
        ConsoleError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ConsoleError(400, f"a number of an event is meant, not {text!r}")
    return int(text)
