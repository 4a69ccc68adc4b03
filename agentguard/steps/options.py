"""What a user may say of a step, checked, and turned into a `StepSpec`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Literal, TypedDict, get_args, get_type_hints

from agentguard._loading import LOADING
from agentguard.budget.account import Request
from agentguard.budget.model import Usage
from agentguard.budget.resources import nanoseconds, public_name, seconds_to_answer
from agentguard.durability import DURABILITIES, Durability
from agentguard.steps.decision import Decision
from agentguard.steps.spec import (
    LLM,
    TOOL,
    Capture,
    Codec,
    Effect,
    Function,
    Outside,
    StepSpec,
    checked_attributes,
    with_step,
)
from agentguard.tenancy import check_id


class StepOptions(TypedDict, total=False):
    """The options that `guarded_step`, `run.call` and `run.step` share."""

    key: str | Callable[..., str] | None
    kind: str
    reserve: Usage | Callable[..., Usage] | None
    usage: Usage | Callable[..., Usage] | None
    free_on: type[BaseException] | tuple[type[BaseException], ...]
    capture: Capture | None
    redact: object
    ignore: Iterable[str]
    codec: object
    effect: Effect | None
    probe: Function | None
    durability: Durability | None
    approval: object
    approval_timeout: float | timedelta | None
    asks: Literal["operator", "caller"] | Decision
    timeout: float | timedelta | None
    outside: Outside
    max_items_bytes: int
    attributes: dict[str, object] | None


OPTION_NAMES = frozenset(StepOptions.__annotations__)


def step_spec(name: str, fn: Function | None, options: StepOptions) -> StepSpec:
    """Check the options of a step and work out beforehand what calls have in common.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it and the step.
    """
    unknown = sorted(set(options) - OPTION_NAMES)
    if unknown:
        raise TypeError(f"{name}: unknown option {unknown[0]!r}; known are {sorted(OPTION_NAMES)}")
    kind = check_id(options.get("kind", TOOL), "kind")
    spec = StepSpec(check_id(name, "name"), kind)
    _money(spec, options)
    _kept(spec, options)
    _repeats(spec, options)
    if fn is not None:
        _signature(spec, fn)
    spec.settle_options()
    if spec.ignore:
        strangers = sorted(set(spec.ignore) - set(spec.parameters)) if spec.parameters else []
        if strangers and fn is not None and not _takes_any_keyword(fn):
            raise ValueError(f"{name}: ignore names {strangers[0]!r}, which is no parameter")
    return spec


def _money(spec: StepSpec, options: StepOptions) -> None:
    name, usage = spec.name, options.get("usage")
    reserve = options.get("reserve")
    for field, value in (("usage", usage), ("reserve", reserve)):
        if value is not None and not isinstance(value, Usage) and not callable(value):
            raise TypeError(f"{name}: {field} must be a Usage or a callable, not {value!r}")
    if callable(usage) and "reserve" not in options:
        raise TypeError(
            f"{name}: a callable usage= is known only afterwards and needs a reserve= for what the "
            "call may use at most; write reserve=None to accept overshoot"
        )
    spec.unbounded = callable(usage) and reserve is None
    spec.postpaid = callable(usage) or (usage is not None and reserve is not None)
    if isinstance(usage, Usage) and isinstance(reserve, Usage):
        _check_known(name, usage, reserve)
    if isinstance(usage, Usage) and reserve is None:
        reserve = usage
    spec.usage, spec.reserve = usage, reserve
    spec.usage_takes_arguments = callable(usage) and _takes_more_than_one(usage)
    if callable(reserve):
        spec.request = None
    elif reserve is not None or spec.postpaid:
        amounts = spec.plain.reserve if reserve is None else with_step(reserve)
        spec.request = Request(amounts, name, spec.kind, spec.postpaid)
    free_on = options.get("free_on", ())
    spec.free_on = free_on if isinstance(free_on, tuple) else (free_on,)
    for cls in spec.free_on:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise TypeError(f"{name}: free_on takes exception classes, not {cls!r}")


def _check_known(name: str, usage: Usage, reserve: Usage) -> None:
    most = reserve.named()
    for resource, amount in usage.named().items():
        if amount > most.get(resource, 0):
            raise ValueError(
                f"{name}: usage is more than reserve in {public_name(resource)}; reserve= is what the call "
                "may use at most"
            )


def _kept(spec: StepSpec, options: StepOptions) -> None:
    spec.capture = options.get("capture")
    _one_of(spec, "capture", spec.capture, (*get_args(Capture), None))
    _redact(spec, options.get("redact"))
    ignore = options.get("ignore", ())
    spec.ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    codec = options.get("codec")
    if codec is not None and not isinstance(codec, Codec):
        raise TypeError(f"{spec.name}: codec needs encode(value) -> bytes and decode(bytes)")
    spec.codec = codec
    size = options.get("max_items_bytes", spec.max_items_bytes)
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"{spec.name}: max_items_bytes must be an int of at least 0, not {size!r}")
    spec.max_items_bytes = size
    spec.attributes = checked_attributes(spec.name, options.get("attributes"))


def _redact(spec: StepSpec, option: object) -> None:
    if option is None:
        return
    with LOADING:
        from agentguard.steps.redaction import redactor  # noqa: PLC0415 - few steps have a rule of their own

    try:
        spec.redact = redactor(option)
    except TypeError as error:
        raise TypeError(f"{spec.name}: {error}") from None


def _repeats(spec: StepSpec, options: StepOptions) -> None:
    effect = options.get("effect") or ("read" if spec.kind == LLM else "once")
    _one_of(spec, "effect", effect, get_args(Effect))
    spec.effect = effect
    spec.key = options.get("key")
    if spec.key is not None and not callable(spec.key):
        check_id(spec.key, f"{spec.name}: key")
    spec.probe = options.get("probe")
    if spec.probe is not None and not callable(spec.probe):
        raise TypeError(f"{spec.name}: probe must be callable")
    spec.durability = options.get("durability")
    _one_of(spec, "durability", spec.durability, (*DURABILITIES, None))
    _answers(spec, options)
    spec.outside = options.get("outside", "refuse")
    _one_of(spec, "outside", spec.outside, get_args(Outside))
    timeout = options.get("timeout")
    if timeout is not None:
        spec.timeout = nanoseconds(timeout, f"{spec.name}: timeout") / 1e9


def _answers(spec: StepSpec, options: StepOptions) -> None:
    approval = options.get("approval")
    if isinstance(approval, Decision):
        approval.said()
        spec.approval = approval
    elif approval is True:
        spec.approval = True
    elif callable(approval):
        spec.approval = approval
    elif approval:
        raise TypeError(f"{spec.name}: approval must be True, a callable of the arguments, or a Decision")
    spec.asks = options.get("asks", "operator")
    if isinstance(spec.asks, Decision) and not spec.asks.granted:
        spec.asks.said()
    elif spec.asks not in ("operator", "caller"):
        raise ValueError(
            f"{spec.name}: asks must be 'operator', 'caller' or a Decision that denies, not {spec.asks!r}; "
            "raise a limit with run.set_budget"
        )
    approval_timeout = options.get("approval_timeout")
    if approval_timeout is not None:
        if spec.approval is None:
            raise ValueError(f"{spec.name}: approval_timeout is how long approval= waits; give approval= too")
        spec.approval_timeout = seconds_to_answer(approval_timeout, f"{spec.name}: approval_timeout")


def _one_of(spec: StepSpec, field: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        names = ", ".join(repr(v) for v in allowed if v is not None)
        raise ValueError(f"{spec.name}: {field} must be one of {names}, not {value!r}")


def _signature(spec: StepSpec, fn: Function) -> None:
    bare = inspect.unwrap(fn)
    spec.is_async = _is_async(bare)
    if spec.timeout is not None and _is_async_generator(bare):
        raise ValueError(
            f"{spec.name}: timeout works on coroutine functions, not on async generators, which wait for "
            "their consumer too; use asyncio.timeout inside, or limit the run by Budget(seconds=...)"
        )
    if spec.timeout is not None and not spec.is_async:
        raise ValueError(
            f"{spec.name}: timeout works on async functions; a running sync function cannot be "
            "ended from outside (limit the run by Budget(seconds=...), or use the client's own)"
        )
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return
    spec.parameters = tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )
    spec.positional = tuple(
        p.name if p.kind is p.POSITIONAL_OR_KEYWORD else ""
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    spec.skip_first = not inspect.ismethod(fn) and spec.parameters[:1] in (
        ("self",),
        ("cls",),
        ("mcs",),
    )
    try:
        hints = get_type_hints(bare if not isinstance(bare, functools.partial) else bare.func)
    except Exception:  # noqa: BLE001 - annotations may name what is not there at run time
        return
    returns = hints.get("return")
    spec.returns = None if returns is type(None) else returns


def _is_async(fn: Function) -> bool:
    return _is(inspect.iscoroutinefunction, fn) or _is_async_generator(fn)


def _is_async_generator(fn: Function) -> bool:
    return _is(inspect.isasyncgenfunction, fn)


def _is(question: Callable[[object], bool], fn: Function) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    call = getattr(fn, "__call__", None)  # noqa: B004 - an instance's own coroutine __call__
    return any(map(question, (fn, call)))


def _takes_any_keyword(fn: Function) -> bool:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.kind is p.VAR_KEYWORD for p in parameters)


def _takes_more_than_one(fn: Function) -> bool:
    """Whether `usage=` wants the call's arguments after the result."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    return (
        len(required) > 1
        or any(p.kind is p.VAR_POSITIONAL for p in parameters)
        or (any(p.kind is p.VAR_KEYWORD for p in parameters))
    )
