"""The engine's entrance: a call, the place it is made in, and the driver that it needs."""

from __future__ import annotations

import functools

from agentguard.steps.block import StepBlock
from agentguard.steps.drivers import Driver, driver_of
from agentguard.steps.model import InRun
from agentguard.steps.options import OPTION_NAMES, step_spec
from agentguard.steps.spec import Args, Function, Kwargs, StepSpec, checked_attributes


def call(
    position: InRun,
    name: str,
    fn: Function,
    args: Args,
    options: dict[str, object],
) -> object:
    """One guarded call of a function that carries no decorator, its options among its keywords."""
    step_options = {key: options.pop(key) for key in tuple(options) if key in OPTION_NAMES}
    return apply(position, name, fn, args, options, step_options)


def apply(  # noqa: PLR0917 - called from two places, in the order of the call itself
    position: InRun,
    name: str,
    fn: Function,
    args: Args,
    kwargs: Kwargs,
    options: dict[str, object],
) -> object:
    """The same, its options apart."""
    # Most differ from call to call (the id of a tool call), and nothing else of the options does.
    attributes = checked_attributes(name, options.pop("attributes", None)) or None
    spec, driver = _prepared(name, fn, options)
    assert driver is not None  # noqa: S101 - there is a function
    return driver(spec, position, fn, args, kwargs, attributes=attributes)


def block(position: InRun, name: str, options: dict[str, object]) -> StepBlock:
    """A `run.step` block."""
    if callable(options.get("usage")) or callable(options.get("reserve")):
        raise TypeError(
            f"{name}: a block has no arguments and no result, so usage= and reserve= are plain "
            "Usage values; say what it really used with step.settle(...)"
        )
    if options.get("timeout") is not None:
        raise TypeError(f"{name}: a block takes no timeout=; use asyncio.timeout inside it")
    attributes = checked_attributes(name, options.pop("attributes", None)) or None
    return StepBlock(_prepared(name, None, options)[0], position, attributes=attributes)


def _prepared(name: str, fn: Function | None, options: dict[str, object]) -> tuple[StepSpec, Driver | None]:
    """The options of a call, checked once for all calls alike, and what drives it."""
    try:
        return _cached(name, fn, tuple(sorted(options.items())))
    except TypeError:  # an option that cannot be hashed; or a wrong one, which raises again here
        return _checked(name, fn, options)


def _checked(name: str, fn: Function | None, options: dict[str, object]) -> tuple[StepSpec, Driver | None]:
    return step_spec(name, fn, options), None if fn is None else driver_of(fn)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def _cached(
    name: str, fn: Function | None, options: tuple[tuple[str, object], ...]
) -> tuple[StepSpec, Driver | None]:
    return _checked(name, fn, dict(options))
