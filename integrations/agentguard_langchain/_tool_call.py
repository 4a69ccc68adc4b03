"""One tool call of an agent as a step, and the options that tools are guarded with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.messages import ToolMessage

from agentguard import Run, Usage, guarded_step
from agentguard.cost import RawAnswers
from agentguard_langchain import _mapping as m
from agentguard_langchain._calls import Cover
from agentguard_langchain._codec import CODEC
from agentguard_langchain._landing import Promise


class ToolOptions:
    """The options of `guarded_step` by tool, checked.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it and the tool.
    """

    def __init__(self, options: Mapping[str, Mapping[str, Any]] | None) -> None:
        self._options = {tool: dict(given) for tool, given in (options or {}).items()}
        for tool, given in self._options.items():
            for name in ("codec", "outside"):
                if name in given:
                    raise TypeError(f"{tool}: {name}= is the middleware's own matter")
            named: dict[str, Any] = {"name": tool, **given}
            guarded_step(**named)(_any_tool)

    def of(self, tool: str) -> dict[str, Any]:
        """The options of a tool."""
        return self._options.get(tool, {})

    def with_option(self, name: str) -> str | None:
        """Return a tool that has an option, or None."""
        return next((tool for tool, given in self._options.items() if given.get(name) is not None), None)

    def reserved(self, tool: str, arguments: Mapping[str, Any]) -> Usage | None:
        """What a call reserves, as far as it is known."""
        options = self.of(tool)
        usage = options.get("usage")
        reserve = usage if isinstance(usage, Usage) else options.get("reserve")
        reserved = reserve(**arguments) if callable(reserve) else reserve
        return reserved if isinstance(reserved, Usage) else None


class ToolCall:
    """A request to call a tool."""

    raw: RawAnswers | None = None  # models that it calls are steps of their own

    def __init__(
        self,
        run: Run,
        request: Any,
        handler: Callable[..., Any],
        *,
        options: Mapping[str, Any],
        watch: Any,
    ) -> None:
        call = request.tool_call
        self.run = run
        self.request = request
        self.handler = handler
        self.watch = watch
        self.arguments = call["args"]
        self.cover = Cover(run, "tool", call["name"], call["id"])
        self.options = {"kind": "tool", "codec": CODEC, **options}
        self.name = m.step_name(self.options.pop("name", call["name"]))
        facts = m.tool_attributes(call["name"], call["id"])
        self.options["attributes"] = {**facts, **(self.options.get("attributes") or {})}
        #: The room that a soft tool was told it has.
        self.promise: Promise | None = None

    def begun(self) -> None:
        """Its reservation holds what was promised."""
        if self.promise is not None:
            self.promise.keep()

    def used(self, result: Any) -> Usage | None:
        """Tools say what they used by the option `usage=`, or `current_step().settle(...)`."""


def softly(call: Mapping[str, Any], why: str) -> ToolMessage:
    """What the model is told instead of a result."""
    text = f"{call['name']} was refused: {why}. Do not call it again; go on without it."
    return ToolMessage(text, name=call["name"], tool_call_id=call["id"], status="error")


async def _any_tool(**arguments: Any) -> Any:
    """Stands for a tool where options are checked."""
