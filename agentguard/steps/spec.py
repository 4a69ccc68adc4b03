"""The options of a guarded step, fixed at decoration, with all that can be worked out beforehand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from agentguard.budget.account import ONE_STEP, Amounts, Request
from agentguard.budget.model import Usage
from agentguard.runs.branch import key_segment
from agentguard.steps.decision import Decision

if TYPE_CHECKING:
    from agentguard.durability import Durability
    from agentguard.events.data import StepStarted
    from agentguard.steps.redaction import Redactor

#: A user's function, and one that returns an awaitable; what a call of it is given.
Function = Callable[..., object]
AsyncFunction = Callable[..., Awaitable[object]]
Args = tuple[object, ...]
Kwargs = dict[str, object]

Effect = Literal["read", "idempotent", "once"]
Capture = Literal["full", "digest", "none"]
Outside = Literal["refuse", "allow"]

TOOL = "tool"
LLM = "llm"


@runtime_checkable
class Codec(Protocol):
    """A user's `codec=`: how a step's results become bytes, and come back."""

    def encode(self, value: object, /) -> bytes:
        """Return the value as bytes."""
        ...

    def decode(self, data: bytes, /) -> Any:
        """Return the value of `encode`."""
        ...


class StepSpec:
    """The options of a guarded step, validated, with all that can be worked out beforehand.

    Build one with `agentguard.steps.options.step_spec`, which checks what a user wrote.
    """

    __slots__ = (
        "approval",
        "approval_timeout",
        "asks",
        "attributes",
        "capture",
        "codec",
        "durability",
        "effect",
        "examined",
        "facts",
        "free_on",
        "ignore",
        "is_async",
        "key",
        "kind",
        "max_items_bytes",
        "name",
        "outside",
        "parameters",
        "part",
        "plain",
        "positional",
        "postpaid",
        "probe",
        "redact",
        "request",
        "reserve",
        "returns",
        "skip_first",
        "timeout",
        "unbounded",
        "usage",
        "usage_takes_arguments",
    )

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.part = key_segment(name)
        self.kind = kind
        self.key: str | Callable[..., str] | None = None
        self.reserve: Usage | Callable[..., Usage] | None = None
        self.usage: Usage | Callable[..., Usage] | None = None
        self.usage_takes_arguments = False
        self.free_on: tuple[type[BaseException], ...] = ()
        self.capture: Capture | None = None
        #: None: as the guard says.  False: off.
        self.redact: Redactor | Literal[False] | None = None
        self.ignore: tuple[str, ...] = ()
        self.codec: Codec | None = None
        self.effect: Effect = "once"
        self.probe: Function | None = None
        self.durability: Durability | None = None
        self.approval: Function | Decision | Literal[True] | None = None
        #: How many seconds its approval is waited for; None: as the guard says.
        self.approval_timeout: float | None = None
        #: Who is asked where a limit of the run asks: "operator", or "caller"; or the Decision that refuses.
        self.asks: str | Decision = "operator"
        self.timeout: float | None = None
        self.outside: Outside = "refuse"
        #: Names of the parameters that take positional arguments, `self` included.
        self.parameters: tuple[str, ...] = ()
        #: Of these, what a position may be given by name as well; empty where it may not.
        self.positional: tuple[str, ...] = ()
        self.skip_first = False
        self.is_async = False
        self.returns: object = None  # a type, or what `typing` makes of one
        self.max_items_bytes = 1_000_000
        #: The request of every call, where calls do not differ; None where each needs its own.
        self.plain = Request(ONE_STEP, name, kind)
        self.request: Request | None = self.plain
        #: Facts for the span and the log, where all calls have the same; `Step.attributes` for others.
        self.attributes: dict[str, object] | None = None
        self.postpaid = False
        self.unbounded = False
        self.settle_options()

    def settle_options(self) -> None:
        """Work out what follows from the options; to be called when they are set."""
        #: Whether `admit` has more to ask than the budget: an approval, a price, an attempt's number.
        self.examined = (
            self.approval is not None or self.key is not None or self.kind == LLM or self.request is None
        )
        #: What every `step_started` says of it.
        self.facts: StepStarted = {}
        if self.effect != "once":
            self.facts["effect"] = self.effect
        if self.is_async:
            self.facts["async"] = True
        if self.key is not None:
            self.facts["keyed"] = True
        if self.unbounded:
            self.facts["unbounded"] = True


def with_step(usage: Usage) -> Amounts:
    """The amounts of a step's usage, the step itself included."""
    amounts = usage.named()
    amounts["steps"] = 1
    return amounts


def name_option(error: BaseException, step: str, option: str) -> None:
    """Note on what a user's callable raised which option of which step that is: its traceback may not say."""
    note = f"raised by {option}= of the guarded step {step!r}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def logged_attributes(attributes: Mapping[str, object]) -> dict[str, object]:
    """What the log says of attributes: what a span would not take either (None, objects) it does not."""
    return {name: value for name, value in attributes.items() if type(value) in _SCALARS or _is_plain(value)}


def checked_attributes(name: str, attributes: object) -> dict[str, object] | None:
    """The option `attributes`."""
    if attributes is not None and not isinstance(attributes, Mapping):
        raise TypeError(f"{name}: attributes must be a mapping, not {attributes!r}")
    return None if attributes is None else dict(attributes)


_SCALARS = (str, bool, int, float)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, _SCALARS) for item in value)
    return isinstance(value, _SCALARS)
