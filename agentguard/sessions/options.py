"""The options that a run is opened with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from agentguard._encoding import decode
from agentguard.budget.model import Budget, check_budget
from agentguard.budget.named import check_account
from agentguard.events import codec
from agentguard.events.model import CONTROL_RUN_ID
from agentguard.tenancy import check_id

OnWarning = Callable[[dict[str, Any]], None]
IfExists = Literal["error", "recover", "join"]


class RunKeywords(TypedDict, total=False):
    """The keywords of `guard.run`, for those that pass them on; `RunOptions` says what they mean."""

    budget: Budget | None
    tenant: str | None
    run_id: str | None
    inputs: object
    metadata: Mapping[str, Any] | None
    on_warning: OnWarning | None
    detached: bool
    if_exists: IfExists
    interrupt_threads: bool
    account: str | None
    account_budget: Budget | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What `guard.run` was told; see there.

    Raises:
        ValueError, TypeError: an option is wrong; the message names it.
    """

    name: str
    budget: Budget | None = None
    tenant: str | None = None
    run_id: str | None = None
    inputs: Any = None
    metadata: Mapping[str, Any] | None = None
    on_warning: OnWarning | None = None
    detached: bool = False
    if_exists: IfExists = "error"
    interrupt_threads: bool = False
    account: str | None = None
    account_budget: Budget | None = None

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        if self.budget is not None:
            check_budget(self.budget)
        check_account(self.account, self.account_budget)
        for field in ("detached", "interrupt_threads"):
            if not isinstance(getattr(self, field), bool):
                raise TypeError(f"{field} must be True or False, not {getattr(self, field)!r}")
        if self.on_warning is not None and not callable(self.on_warning):
            raise TypeError("on_warning must be callable")
        named = self.run_id is not None
        if self.if_exists not in (("error", "recover", "join") if named else ("error",)):
            raise ValueError(
                f"if_exists must be 'error', or 'recover' or 'join' with a run_id, not {self.if_exists!r}"
            )
        if self.run_id == CONTROL_RUN_ID:
            raise ValueError(f"run_id {self.run_id!r} is reserved for the control log")
        if self.run_id is not None:
            check_id(self.run_id, "run_id")
        if self.tenant is not None:
            check_id(self.tenant, "tenant")

    def plain_metadata(self) -> dict[str, Any]:
        """Return the metadata as the log will have it.

        Raises:
            TypeError: it is no plain data.
        """
        if self.metadata is None:
            return {}
        if not isinstance(self.metadata, Mapping):
            raise TypeError(f"metadata must be a dict, not {type(self.metadata).__name__}")
        try:
            plain: dict[str, Any] = decode(codec.encode(dict(self.metadata)))
        except Exception as error:
            raise TypeError(
                f"metadata must be plain data, such as text, numbers, lists and dicts: {error}"
            ) from error
        return plain
