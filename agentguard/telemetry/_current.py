"""One span that may be the current one: entering, leaving from anywhere, and ending."""

from __future__ import annotations

from contextvars import Token
from typing import TYPE_CHECKING

from opentelemetry import context
from opentelemetry.trace import Span, StatusCode, set_span_in_context

from agentguard.telemetry._harmless import harmless
from agentguard.telemetry.attributes import ERROR_TYPE

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from agentguard.telemetry.facts import Attributes


class CurrentSpan:
    """What runs and steps have in common.  Without a valid span it does nothing.

    `trace_id` and `span_id` are lower-case hex, or None.  A span that was sampled out is valid: it
    is entered like any other, so that what is inside it is left out as well.
    """

    __slots__ = (
        "_ended",
        "_inside",
        "_outside",
        "_span",
        "_token",
        "_trace_number",
        "span_id",
        "trace_id",
    )
    trace_id: str | None
    span_id: str | None
    _span: Span | None
    _inside: Context | None
    _outside: Context | None

    def __init__(self, span: Span | None, within: CurrentSpan | None = None) -> None:
        self._ended = False
        self._token: Token[Context] | None = None
        self._inside = self._outside = None
        if span is None or not (ids := span.get_span_context()).is_valid:
            self._span = self.trace_id = self.span_id = None
            self._trace_number = 0
            return
        self._span = span
        self._trace_number = number = ids.trace_id
        self.span_id = f"{ids.span_id:016x}"
        # Nearly always the same trace, whose number is long to write.
        known = within is not None and within._trace_number == number
        self.trace_id = within.trace_id if known and within is not None else f"{number:032x}"

    def _enter(self, outside: Context) -> None:
        """Make the span the current one; `outside` is the context it is entered from."""
        if self._span is None or self._token is not None:
            return
        self._outside = outside
        self._inside = inside = set_span_in_context(self._span, outside)
        self._token = context.attach(inside)

    def _leave(self) -> None:
        """Undo `_enter`, where that can be done.  Raises nothing.

        `context.detach` would log an error when the span is left in another context than it was
        entered in, as closing an async generator or a fixture does.
        """
        token = self._token
        if token is None:
            return
        self._token = None
        try:
            token.var.reset(token)
        except (AttributeError, ValueError):  # no contextvars behind the API; another context
            with harmless:
                if context.get_current() is self._inside and self._outside is not None:
                    context.attach(self._outside)

    def _finish(self, attributes: Attributes, error: BaseException | None, error_type: str | None) -> None:
        """End the span, with `error_type` None where `error` is none or is no failure."""
        span = self._span
        if span is None:
            return
        try:
            if span.is_recording():
                if error_type is not None:
                    attributes[ERROR_TYPE] = error_type
                    # The name alone: a message may hold what the user said.
                    name = None if error is None else type(error).__name__
                    span.set_status(StatusCode.ERROR, name)
                if attributes:
                    span.set_attributes(attributes)
        finally:
            span.end()
