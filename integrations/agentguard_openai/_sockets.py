"""Web sockets of guarded clients: they go past the HTTP client, so that opening one is looked at here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from openai._resource import AsyncAPIResource, SyncAPIResource

from agentguard_clients import guarding_of


@functools.cache
def watch_sockets() -> None:
    """Look at `connect` of what guarded clients offer: of them, and of every copy of them, alone.

    The SDK has no other place that all its sockets pass, and that its copies of a client keep.
    """
    for base in (SyncAPIResource, AsyncAPIResource):
        vars_of: Any = base
        vars_of.__init__ = _watching(base.__init__)


def _watching(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def watching(self: Any, client: Any) -> None:
        init(self, client)
        guarding = guarding_of(client._client)  # noqa: SLF001 - no public name
        if guarding is not None and hasattr(type(self), "connect"):
            name = f"{type(self).__name__.removeprefix('Async').lower()}.connect"
            vars(self)["connect"] = _checked(self.connect, functools.partial(guarding.check_socket, name))

    return watching


def _checked(connect: Callable[..., Any], check: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(connect)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check()
        return connect(*args, **kwargs)

    return checked
