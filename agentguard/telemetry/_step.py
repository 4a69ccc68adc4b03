"""The span of one step, and what its name, kind and attributes follow from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry import context
from opentelemetry.trace import Span, SpanKind

from agentguard.telemetry import attributes as a
from agentguard.telemetry import facts
from agentguard.telemetry._current import CurrentSpan
from agentguard.telemetry._harmless import harmless, swallow

if TYPE_CHECKING:
    from agentguard.telemetry.metrics import Instruments


class Shape(NamedTuple):
    """What all steps of one name and kind share; the dicts are never written to."""

    span_name: str
    span_kind: SpanKind
    attributes: facts.Attributes
    labels: dict[str, str]


def shape_of(name: str, kind: str, attributes: Mapping[str, Any] | None) -> Shape:
    """The shape of a step.

    Example:
        >>> shape_of("ask", "llm", {"gen_ai.request.model": "gpt-4o-mini"}).span_name
        'chat gpt-4o-mini'
    """
    if attributes is None:
        return _shape(kind, None, None if kind == "llm" else name)
    operation = attributes.get(a.OPERATION)
    if kind == "llm":
        return _shape(kind, operation, attributes.get(a.REQUEST_MODEL))
    if kind == "tool":
        return _shape(kind, operation, attributes.get(a.TOOL_NAME, name))
    return _shape(kind, operation, name)


@lru_cache(maxsize=1024)
def _shape(kind: str, operation: str | None, target: str | None) -> Shape:
    shared: facts.Attributes = {a.STEP_KIND: kind}
    labels = {a.STEP_KIND: kind}
    if kind == "llm":
        shared[a.OPERATION] = operation = operation or "chat"
        if target is None:
            return Shape(operation, SpanKind.CLIENT, shared, labels)
        labels[a.REQUEST_MODEL] = target
        return Shape(f"{operation} {target}", SpanKind.CLIENT, shared, labels)
    if kind == "tool":
        shared[a.OPERATION] = operation = operation or "execute_tool"
        shared[a.TOOL_NAME] = labels[a.TOOL_NAME] = str(target)
    # No operation is made up for other kinds: back-ends know a closed list.
    return Shape(f"{operation or 'step'} {target}", SpanKind.INTERNAL, shared, labels)


class StepSpan(CurrentSpan):
    """The span of a step: current from its start to its end, but while it is suspended."""

    __slots__ = ("_decision", "_instruments", "_shape", "_tenant")

    def __init__(
        self,
        span: Span | None,
        shape: Shape,
        instruments: Instruments | None = None,
        tenant: str = "",
        run: CurrentSpan | None = None,
    ) -> None:
        super().__init__(span, run)
        self._shape = shape
        self._instruments = instruments
        self._tenant = tenant
        self._decision: dict[str, Any] | None = None

    def suspend(self) -> None:
        """A generator hands out an item: the consumer's spans are not part of the step."""
        self._leave()

    def resume(self) -> None:
        """The generator's body goes on, perhaps in another context than before."""
        if self._span is not None and not self._ended:
            with harmless:
                self._enter(context.get_current())

    def would_refuse(self, error: BaseException) -> None:
        """Say that a limit which only observes had no room for the step."""
        self._decision = {a.DECISION: facts.SHADOW_DENY, a.DENY_REASON: facts.deny_reason(error)}

    def refused(self, error: BaseException) -> None:
        """End the span of a step whose body did not run."""
        if self._ended:
            return
        self._ended = True
        self._leave()
        if self._instruments is not None:
            with harmless:
                self._instruments.refused(self._shape.labels[a.STEP_KIND], facts.deny_reason(error))
        with harmless:
            refusal = facts.of_refusal(error)
            self._finish(refusal, error, str(refusal[a.ERROR_TYPE]))

    def end(
        self,
        error: BaseException | None,
        usage: Mapping[str, int] | None,
        duration_ns: int,
    ) -> None:
        """Write what the step used, and end its span.  Ending twice does nothing."""
        if self._ended:
            return
        self._ended = True
        self._leave()
        try:
            final: dict[str, Any] = facts.of_usage(usage) if usage else {}
            if self._decision is not None:
                final |= self._decision
            error_type = None if error is None else facts.error_type(error)
            if self._instruments is not None:
                with harmless:
                    self._instruments.ended(
                        self._shape.labels,
                        tenant=self._tenant,
                        usage=usage,
                        duration_ns=duration_ns,
                        decision=final.get(a.DECISION, facts.ALLOW),
                        reason=final.get(a.DENY_REASON),
                        error_type=error_type,
                    )
            self._finish(final, error, error_type)
        except Exception as problem:  # noqa: BLE001 - telemetry never harms the agent
            swallow(problem)


class _NoStep(StepSpan):
    """Stands for every step where nobody listens, so that those cost next to nothing."""

    __slots__ = ()

    def suspend(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def would_refuse(self, error: BaseException) -> None:
        pass

    def refused(self, error: BaseException) -> None:
        pass

    def end(
        self,
        error: BaseException | None,
        usage: Mapping[str, int] | None,
        duration_ns: int,
    ) -> None:
        pass


NO_STEP: Final = _NoStep(None, Shape("", SpanKind.INTERNAL, {}, {}))
