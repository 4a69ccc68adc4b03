"""An SDK's client, guarded: a copy of it, of the same class, on a guarded HTTP client."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypedDict, TypeVar, cast

from agentguard import Run
from agentguard.cost.usage import Unpriced
from agentguard.protocols import PriceBook
from agentguard_clients.endpoints import Provider
from agentguard_clients.guarding import Guarding
from agentguard_clients.http import guarded_http

ClientT = TypeVar("ClientT")


class ClientOptions(TypedDict, total=False):
    """The options of `guard_client`."""

    run: Run | None
    prices: PriceBook | None
    unpriced: Unpriced
    max_output_tokens: int | None
    clamp: bool
    outside: Literal["refuse", "allow"]
    provider: str | None


def guarded_sdk_client(
    client: ClientT, classes: tuple[type[Any], ...], provider: Provider, options: ClientOptions
) -> ClientT:
    """Return a client like `client` whose requests to models are guarded steps.

    Raises:
        TypeError: `client` is of none of the classes.
    """
    if not isinstance(client, classes):
        names = " or ".join(cls.__name__ for cls in classes[:2])
        got = client.__name__ if isinstance(client, type) else type(client).__name__
        raise TypeError(f"guard_client takes a client such as {names}, not {got}")
    bare = cast("Any", client)
    guarding = Guarding(provider, **cast("dict[str, Any]", options))
    guarded = _copying(type(bare), guarding)(bare, http_client=bare._client)  # noqa: SLF001 - no public name
    strict = bare._strict_response_validation  # noqa: SLF001 - a public option
    guarded._strict_response_validation = strict  # noqa: SLF001 - which the SDK's own copies drop
    return cast("ClientT", guarded)


def _copying(cls: Any, guarding: Guarding) -> Any:
    """Return a class's `copy` that gives guarded clients, on whatever HTTP client."""

    @functools.wraps(cls.copy)
    def copy(client: Any, **options: Any) -> Any:
        if options.get("http_client") is not None:
            options["http_client"] = guarded_http(options["http_client"], guarding)
        made = cls.copy(client, **options)
        made.copy = made.with_options = functools.partial(copy, made)
        return made

    return copy
