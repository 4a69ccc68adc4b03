"""One call of a guarded step: what it is, and where it was made.  A log knows no more of it."""

from __future__ import annotations

from agentguard.runs.branch import Branch
from agentguard.steps.spec import StepSpec


class StepCall:
    """What a `Step` is without its run: what a player answers, and what is captured and waited for."""

    __slots__ = (
        "_branch",
        "attempt",
        "digest",
        "elsewhere",
        "key",
        "parent",
        "path",
        "payload",
        "pos",
        "scope_key",
        "spec",
    )

    spec: StepSpec
    key: str
    pos: int
    #: The branch it was called in; set only where it brings a key of its own.
    path: str
    #: Whether, where a log answers, it was called in another thread than its branch's: then it was numbered
    #: as it came.
    elsewhere: bool
    #: The key of the scope it was called in; empty for the run itself.
    scope_key: str
    #: The step in whose body it was called.
    parent: StepCall | None
    attempt: int
    #: Its captured arguments, and their digest.
    payload: bytes | None
    digest: str | None
    _branch: Branch | None

    @property
    def name(self) -> str:
        """The step's name."""
        return self.spec.name

    @property
    def kind(self) -> str:
        """The step's kind: `tool`, `llm`, `step`, or one of your own."""
        return self.spec.kind

    @property
    def branch(self) -> Branch:
        """The branch of what its body calls: its own, so that the keys of two bodies never mix."""
        if self._branch is None:
            self.begin_branch(self.attempt)
        return self._branch  # type: ignore[return-value]

    def begin_branch(self, body: int) -> None:
        """Number what the body calls; `body` counts the bodies that a `key=` has had."""
        self._branch = Branch(body_branch(self.key, body))


def body_branch(key: str, body: int) -> str:
    """Return the branch of what a step's body calls; `body` counts the bodies that a `key=` has had."""
    return key if body == 1 else f"{key}~{body}"
