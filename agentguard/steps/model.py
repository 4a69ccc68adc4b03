"""What a step is: its options, fixed at decoration, and one call of it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from agentguard.budget.account import Amounts, Request
from agentguard.budget.model import Usage
from agentguard.errors import UnknownCostError
from agentguard.runs.branch import Branch, key_part
from agentguard.runs.fold import ONE_STEP

if TYPE_CHECKING:
    from agentguard.protocols import Commit
    from agentguard.steps.capture import PayloadRecorder
    from agentguard.steps.journal import Journal

Effect = Literal["read", "idempotent", "once"]
Capture = Literal["full", "digest", "none"]
Outside = Literal["refuse", "allow"]

TOOL = "tool"
LLM = "llm"
STEP = "step"


class StepSpec:
    """The options of a guarded step, validated, with all that can be worked out beforehand.

    Build one with `agentguard.steps.options.step_spec`, which checks what a user wrote.
    """

    __slots__ = (
        "approval",
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
        self.part = key_part(name)
        self.kind = kind
        self.key: str | Callable[..., str] | None = None
        self.reserve: Usage | Callable[..., Usage] | None = None
        self.usage: Usage | Callable[..., Usage] | None = None
        self.usage_takes_arguments = False
        self.free_on: tuple[type[BaseException], ...] = ()
        self.capture: Capture | None = None
        #: A `Redactor`; False: off; None: as the guard says.
        self.redact: Any = None
        self.ignore: tuple[str, ...] = ()
        self.codec: Any = None
        self.effect: Effect = "once"
        self.probe: Callable[..., Any] | None = None
        self.durability: Any = None
        self.approval: Any = None
        self.timeout: float | None = None
        self.outside: Outside = "refuse"
        #: Names of the parameters that take positional arguments, `self` included.
        self.parameters: tuple[str, ...] = ()
        #: Of these, what a position may be given by name as well; empty where it may not.
        self.positional: tuple[str, ...] = ()
        self.skip_first = False
        self.is_async = False
        self.returns: Any = None
        self.max_items_bytes = 1_000_000
        #: The request of every call, where calls do not differ; None where each needs its own.
        self.plain = Request(ONE_STEP, name, kind)
        self.request: Request | None = self.plain
        #: Facts for the span and the log, where all calls have the same; `Step.attributes` for others.
        self.attributes: dict[str, Any] | None = None
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
        self.facts: dict[str, Any] = {}
        if self.effect != "once":
            self.facts["effect"] = self.effect
        if self.is_async:
            self.facts["async"] = True
        if self.key is not None:
            self.facts["keyed"] = True
        if self.unbounded:
            self.facts["unbounded"] = True
        if self.attributes:
            self.facts["attributes"] = logged_attributes(self.attributes)


def logged_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What the log says of attributes: what a span would not take either (None, objects) it does not."""
    return {name: value for name, value in attributes.items() if type(value) in _SCALARS or _is_plain(value)}


def checked_attributes(name: str, attributes: Any) -> dict[str, Any] | None:
    """The option `attributes`."""
    if attributes is not None and not isinstance(attributes, Mapping):
        raise TypeError(f"{name}: attributes must be a mapping, not {attributes!r}")
    return None if attributes is None else dict(attributes)


_SCALARS = (str, bool, int, float)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, _SCALARS) for item in value)
    return isinstance(value, _SCALARS)


class Step:
    """One call of a guarded step, and the place its body runs in.

    `current_step()` gives it inside the body.  `idempotency_key` is stable over attempts, replays
    and recoveries: hand it to the service that you call, so that a repeat happens once.
    """

    __slots__ = (
        "_branch",
        "at_ns",
        "attempt",
        "attributes",
        "commit",
        "digest",
        "journal",
        "keeper",
        "key",
        "needs_approval",
        "parent",
        "path",
        "payload",
        "pos",
        "request",
        "run",
        "scope",
        "scope_key",
        "seq",
        "settled",
        "span",
        "spec",
        "started_ns",
        "unknown",
        "unpriced",
    )

    def __init__(self, spec: StepSpec, place: Any, key: str, pos: int) -> None:
        self.spec = spec
        self.pos = pos
        self.run = place.run
        self.scope = place.scope
        self.scope_key: str = place.scope_key
        self._branch: Branch | None = None
        self.parent: Step | None = place.step
        self.journal: Journal = place.journal
        #: What is kept of its arguments and its result.
        self.keeper: PayloadRecorder = self.journal.keepers.get(spec) or self.journal.keeper(spec)
        self.key = key
        self.attempt = 1
        #: What it asks for; set by `prepare` where calls differ.
        self.request: Request = spec.request or spec.plain
        self.needs_approval = spec.approval is True
        #: The branch it was called in; set only where it brings a key of its own.
        self.path: str
        self.payload: bytes | None = None
        self.digest: str | None = None
        #: Its start, or its outcome, where that was accepted and is not known to be committed.
        self.commit: Commit | None = None
        #: What binds its approval to arguments that no digest tells apart; set where one is needed.
        self.unknown: str | None
        #: The sequence of its outcome.
        self.seq = 0
        self.settled: Amounts | None = None
        #: What `reserve=` raised for a call whose cost nobody knows: the step is refused with it.
        self.unpriced: UnknownCostError | None = None
        #: Facts of this call alone, for the span and the log: the id of a tool call.
        self.attributes: Mapping[str, Any] | None = None
        self.span: Any = None
        self.at_ns = 0
        self.started_ns = 0

    @property
    def branch(self) -> Branch:
        """The branch of what its body calls: its own, so that the keys of two bodies never mix."""
        if self._branch is None:
            self.begin_branch(self.attempt)
        return self._branch  # type: ignore[return-value]

    def begin_branch(self, body: int) -> None:
        """Number what the body calls; `body` counts the bodies that a `key=` has had."""
        self._branch = Branch(self.key if body == 1 else f"{self.key}~{body}")

    @property
    def step(self) -> Step:
        """Itself: the step that code placed here belongs to."""
        return self

    @property
    def name(self) -> str:
        """The step's name."""
        return self.spec.name

    @property
    def kind(self) -> str:
        """The step's kind: `tool`, `llm`, `step`, or one of your own."""
        return self.spec.kind

    @property
    def idempotency_key(self) -> str:
        """A key for the outside world: the same for every attempt at this step."""
        origin = self.journal.origin
        text = f"{self.journal.fold.tenant}\x00{origin}\x00{self.key}"
        return base64.b32encode(sha256(text.encode()).digest()).decode().rstrip("=").lower()

    def settle(self, usage: Usage) -> None:
        """Say what the step really used; the last call wins, and goes before `usage=`.

        Raises:
            TypeError: not a `Usage`.
        """
        if not isinstance(usage, Usage):
            raise TypeError(f"settle() takes a Usage, not {type(usage).__name__}")
        self.settled = with_step(usage)

    def __repr__(self) -> str:
        return f"<Step {self.key} attempt {self.attempt} of run {self.journal.fold.run_id}>"


def with_step(usage: Usage) -> Amounts:
    """The amounts of a step's usage, the step itself included."""
    amounts = usage.named()
    amounts["steps"] = 1
    return amounts
