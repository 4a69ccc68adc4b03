"""One call of a guarded step, and the place its body runs in."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

from agentguard.budget.account import Amounts, Request
from agentguard.budget.model import Usage
from agentguard.budget.named import NamedAccount
from agentguard.errors import UnknownCostError
from agentguard.runs.branch import Branch
from agentguard.steps.current import InRun
from agentguard.steps.decision import Decision
from agentguard.steps.spec import StepSpec, with_step

if TYPE_CHECKING:
    from agentguard.protocols import Commit
    from agentguard.steps.capture import PayloadRecorder
    from agentguard.steps.live import LiveRun
    from agentguard.steps.spans import StepSpan


class Step:
    """One call of a guarded step, and the position of its body.

    `current_step()` gives it inside the body.  `idempotency_key` is stable over attempts, replays
    and recoveries: hand it to the service that you call, so that a repeat happens once.
    """

    __slots__ = (
        "_branch",
        "account",
        "asked",
        "at_ns",
        "attempt",
        "attributes",
        "commit",
        "continuations",
        "digest",
        "elsewhere",
        "entered",
        "key",
        "live_run",
        "needs_approval",
        "parent",
        "path",
        "payload",
        "pos",
        "recorder",
        "request",
        "run",
        "scope",
        "scope_key",
        "seq",
        "settled",
        "span",
        "spec",
        "started_ns",
        "thread",
        "unknown",
        "unpriced",
    )

    def __init__(self, spec: StepSpec, position: InRun, key: str, pos: int) -> None:
        self.spec = spec
        self.pos = pos
        self.run = position.run
        self.scope = position.scope
        self.scope_key: str = position.scope_key
        self._branch: Branch | None = None
        self.parent: Step | None = position.step
        #: The named account that it is charged to beside its levels.
        self.account: NamedAccount | None = position.account
        self.live_run: LiveRun = position.live_run
        #: What is kept of its arguments and its result.
        self.recorder: PayloadRecorder = self.live_run.recorders.get(spec) or self.live_run.recorder(spec)
        self.key = key
        self.attempt = 1
        #: What it asks for; set by `prepare` where calls differ.
        self.request: Request = spec.request or spec.plain
        self.needs_approval = spec.approval is True or type(spec.approval) is Decision
        #: The branch it was called in; set only where it brings a key of its own.
        self.path: str
        #: Where a log answers: the thread it was called in, and whether that is another than its branch's,
        #: so that it was numbered as it came.
        self.thread = 0
        self.elsewhere = False
        self.payload: bytes | None = None
        self.digest: str | None = None
        #: Its start, or its outcome, where that was accepted and is not known to be committed.
        self.commit: Commit | None = None
        #: What binds its approval to arguments that no digest tells apart; set where one is needed.
        self.unknown: str | None
        #: Its arguments as who must approve it is shown them; set where one must.
        self.asked: bytes | None
        #: The sequence of its outcome.
        self.seq = 0
        self.settled: Amounts | None = None
        #: What `reserve=` raised for a call whose cost nobody knows: the step is refused with it.
        self.unpriced: UnknownCostError | None = None
        #: Facts of this call alone, for the span and the log: the id of a tool call.
        self.attributes: Mapping[str, object] | None = None
        self.span: StepSpan | None = None
        #: How its result went on after its function had returned, in the words of `steps.following`.
        self.continuations: tuple[str, ...] = ()
        #: When its start was put on record, or was about to be.
        self.at_ns = 0
        self.started_ns = 0
        #: Whether its body has begun.
        self.entered = False

    @property
    def branch(self) -> Branch:
        """The branch of what its body calls: its own, so that the keys of two bodies never mix."""
        if self._branch is None:
            self.begin_branch(self.attempt)
        return self._branch  # type: ignore[return-value]

    def begin_branch(self, body: int) -> None:
        """Number what the body calls; `body` counts the bodies that a `key=` has had."""
        self._branch = Branch(body_branch(self.key, body))

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
        origin = self.live_run.origin
        text = f"{self.live_run.log.fold.tenant}\x00{origin}\x00{self.key}"
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
        return f"<Step {self.key} attempt {self.attempt} of run {self.live_run.log.fold.run_id}>"


def body_branch(key: str, body: int) -> str:
    """Return the branch of what a step's body calls; `body` counts the bodies that a `key=` has had."""
    return key if body == 1 else f"{key}~{body}"
