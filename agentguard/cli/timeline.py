"""A run's log as people read it: one line for an event, nested as the calls were."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.text import Text

from agentguard import _encoding
from agentguard.budget.model import Budget, Usage
from agentguard.cli import output
from agentguard.events import codec
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.events.model import Event
from agentguard.runs.summary import moment, usage_data

#: How much of a payload is shown to people; `--json` gives all of it.
_PAYLOAD_CHARACTERS = 2000

_STYLES = {
    ev.RUN_COMPLETED: "green",
    ev.RUN_FAILED: "bold red",
    ev.RUN_KILLED: "bold red",
    ev.STEP_FAILED: "red",
    ev.STEP_REFUSED: "bold red",
    ev.BUDGET_WARNING: "yellow",
    ev.STOP_SWALLOWED: "bold red",
    ev.ALERT: "yellow",
    ev.KILL_SET: "bold red",
    ev.KILL_CLEARED: "green",
    ev.RUN_PAUSED: "yellow",
}


class Entry(NamedTuple):
    """An event and what lies beside it: None where nothing was captured, or it was erased."""

    event: Event
    payload: bytes | None


def event_data(entry: Entry, *, payloads: bool = False) -> dict[str, Any]:
    """An event as `--json` prints it; with `payloads`, what was captured too."""
    event = entry.event
    data = {name: getattr(event, name) for name in event.__struct_fields__}
    data["usage"] = None if event.usage is None else usage_data(event.usage)
    data["spent"] = None if event.spent is None else usage_data(event.spent)
    data["at"] = datetime.fromtimestamp(event.at_ns / 1e9, UTC).isoformat()
    if payloads:
        data["payload"] = None if entry.payload is None else _decoded(entry.payload)
    return data


class Timeline:
    """Renders the entries of one log in order; it remembers how deep each scope and step lies.

    Each line has the seconds since the first event; with `dated`, as for a log that goes on for months,
    its date and time.
    """

    def __init__(self, *, payloads: bool = False, dated: bool = False) -> None:
        self._payloads = payloads
        self._dated = dated
        self._depths: dict[str, int] = {}
        self._start: int | None = None

    def lines(self, entries: Iterable[Entry]) -> Iterator[Text]:
        """A line for each entry, and more for its payload if that was asked for."""
        for entry in entries:
            event = entry.event
            if self._start is None:
                self._start = event.at_ns
            depth = self._depth(event)
            said = describe(event)
            at = output.when(moment(event.at_ns)) if self._dated else _offset(event.at_ns - self._start)
            line = Text().append(f"{event.seq:>5}  {at}  ", style="dim")
            yield line.append("  " * depth + output.one_line(said), style=_STYLES.get(event.type))
            if self._payloads and entry.payload is not None:
                yield _payload_line(event, entry.payload, depth)

    def _depth(self, event: Event) -> int:
        key = event.key or ""
        if event.type in (ev.STEP_STARTED, ev.SCOPE_OPENED):
            around = event.data.get("parent") or event.data.get("scope") or ""
            self._depths[key] = self._depths.get(around, 0) + 1
        return self._depths.get(key, 1 if key else 0)


def describe(event: Event) -> str:
    """An event in a line."""
    try:
        return _DESCRIPTIONS.get(event.type, _other)(event) + _mark(event)
    except (AttributeError, LookupError, TypeError, ValueError):
        return f"{event.type}, altered: its data are not those of such an event"


def _mark(event: Event) -> str:
    reason = event.data.get("unreplayable")
    return f" [not replayable: {reason}]" if reason else ""


def _offset(nanoseconds: int) -> str:
    # The clock of the wall may have been set back meanwhile.
    return f"{nanoseconds / 1e9:>+10.4f} s"


def _payload_line(event: Event, payload: bytes, depth: int) -> Text:
    value = _decoded(payload)
    if event.type == ev.STEP_STARTED:
        positional, named = value
        said = [_json(v) for v in positional] + [f"{name}={_json(v)}" for name, v in named.items()]
        text = f"{event.name}({', '.join(said)})"
    else:
        text = f"{'inputs' if event.type == ev.RUN_CREATED else '->'} {_json(value)}"
    text = output.one_line(text)
    if len(text) > _PAYLOAD_CHARACTERS:
        text = f"{text[:_PAYLOAD_CHARACTERS]}… ({len(text):,} characters; --json shows all)"
    return Text(f"{'':>19}{'  ' * (depth + 1)}{text}", style="cyan")


def _decoded(payload: bytes) -> Any:
    try:
        return _encoding.decode(payload)
    except ValueError:  # a codec's bytes
        return {"base64": base64.b64encode(payload).decode()}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- the types -----------------------------------------------------------------------------------


def _created(event: Event) -> str:
    data = event.data
    said = f"run {event.name} created for tenant {data['tenant']}"
    if data.get("budget"):
        said += f", limits: {output.limits(Budget.from_fields(data['budget']))}"
    if account := data.get("account"):
        limits = output.limits(Budget.from_fields(account["budget"]))
        said += f", charged to account {account['name']} (limits: {limits})"
    return said + (f", inside run {data['parent']}" if "parent" in data else "")


def _ended(event: Event) -> str:
    said = event.type.replace("_", " ")
    if event.type != ev.RUN_COMPLETED:
        ended = event.data["termination"]
        said += f": {ended['type']}: {ended['message']}"
    return said + _charged(event.spent, "spent") + _said(event)


def _step(event: Event) -> str:
    key = (event.key or "?").removeprefix("main/")
    kind = f" [{event.kind}]" if event.kind and event.kind != "tool" else ""
    attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
    return f"{key}{kind}{attempt}"


def _step_started(event: Event) -> str:
    reserve = Usage.from_amounts(event.data.get("reserve", {}))
    would_stop = event.data.get("would_stop")
    shadow = f", would be stopped: {would_stop['message']}" if would_stop else ""
    return f"{_step(event)} started{_charged(reserve, 'reserves')}{shadow}"


def _step_completed(event: Event) -> str:
    early = ", closed early" if event.data.get("closed_early") else ""
    return f"{_step(event)} completed{_took(event)}{early}{_charged(event.usage, 'used')}"


def _step_failed(event: Event) -> str:
    data = event.data
    error = data["error"]
    raised = ": ".join(error[name] for name in ("type", "message") if error.get(name))
    how = data.get("outcome", "failed")
    entered = ", its body never ran" if data.get("body_ran") is False else ""
    return f"{_step(event)} {how}{_took(event)}{entered}: {raised}{_charged(event.usage, 'charged')}"


def _step_refused(event: Event) -> str:
    if event.key is None:
        return f"scope {event.name} stopped: {event.data['termination']['message']}"
    ended = event.data.get("termination")
    if (error := event.data.get("error")) is not None:
        return f"{_step(event)} given up before it started: {error['type']}"
    return f"{_step(event)} refused" + (f": {ended['message']}" if ended else "")


def _scope_opened(event: Event) -> str:
    if "run" in event.data:
        return f"run {event.name} opened inside this one: {event.data['run']}"
    budget = event.data.get("budget")
    limits = f", limits: {output.limits(Budget.from_fields(budget))}" if budget else ""
    return f"scope {event.name} opened{limits}"


def _scope_closed(event: Event) -> str:
    if "run" in event.data:
        state = event.data.get("state", "")
        return f"run {event.name} inside this one ended {state}{_charged(event.usage, 'used')}"
    return f"scope {event.name} closed" + (", stopped" if event.data.get("stopped") else "")


def _warning(event: Event) -> str:
    return f"budget warning: {output.warning(event.data)} used or reserved"


def _alerted(event: Event) -> str:
    data = event.data
    return f"alert {data['kind']} {data['state']}: {data['message']}"


def _swallowed(event: Event) -> str:
    data = event.data
    return f"{data['branch']} went on calling after its stop, {data['refusals']} times: {data['action']}"


def _value(event: Event) -> str:
    error = event.data.get("error")
    return f"{_step(event)} recorded" + (f": it raised {error.get('type')}" if error else "")


def _order(event: Event) -> str:
    data = event.data
    target = f"{data['scope']} {data.get('target', '')}".rstrip()
    said = "killed" if event.type == ev.KILL_SET else "revived"
    return f"{target} {said} by {data.get('actor', '?')}: {data.get('reason', '')}"


def _signalled(event: Event) -> str:
    data = event.data
    pids = ", ".join(str(process["pid"]) for process in data["processes"])
    return f"{data['signal']} sent to pid {pids}, for the kill of generation {data['kill']}"


def _paused(event: Event) -> str:
    return f"run paused{_said(event)}"


def _resumed(event: Event) -> str:
    return f"run resumed{_said(event)}"


def _budget_set(event: Event) -> str:
    return f"run has the limits: {_limits(event)}{_said(event)}"


def _decided(event: Event) -> str:
    said = "approved" if event.type == ev.APPROVAL_GRANTED else "denied"
    return f"{_step(event)} {said}{_said(event)}"


def _operator_action(event: Event) -> str:
    data = event.data
    run = f"run {data['run']}"
    match data["action"]:
        case "pause":
            done = f"{run} paused"
        case "resume":
            done = f"{run} resumed"
        case "end":
            done = f"{run} ended"
        case "set_budget":
            done = f"{run} has the limits: {_limits(event)}"
        case action:
            said = {"approve": "approved", "deny": "denied"}.get(action, action)
            done = f"{data.get('key', '')} of {run} {said}"
    return done + _said(event)


def _limits(event: Event) -> str:
    return output.limits(Budget.from_fields(event.data["budget"]))


def _said(event: Event) -> str:
    """Who ordered it, and why, as far as that is on record."""
    actor, reason = event.data.get("actor"), event.data.get("reason")
    return (f" by {actor}" if actor else "") + (f": {reason}" if reason else "")


def _other(event: Event) -> str:
    named = f" {_step(event)}" if event.key else ""
    data = f": {_json(event.data)}" if event.data else ""
    return f"{event.type.replace('_', ' ')}{named}{data}"


def _plain(event: Event) -> str:
    return event.type.replace("_", " ")


def _took(event: Event) -> str:
    return "" if event.duration_ns is None else f" in {output.seconds(event.duration_ns / 1e9)}"


def _charged(usage: Usage | None, verb: str) -> str:
    said = output.amounts(usage) if usage is not None else ""
    return f", {verb} {said}" if said else ""


_DESCRIPTIONS: dict[str, Callable[[Event], str]] = {
    ev.RUN_CREATED: _created,
    ev.RUN_STARTED: _plain,
    ev.RUN_PAUSED: _paused,
    ev.RUN_BUDGET_SET: _budget_set,
    ev.RUN_RESUMED: _resumed,
    ev.RUN_COMPLETED: _ended,
    ev.RUN_FAILED: _ended,
    ev.RUN_KILLED: _ended,
    ev.STEP_STARTED: _step_started,
    ev.STEP_COMPLETED: _step_completed,
    ev.STEP_FAILED: _step_failed,
    ev.STEP_REFUSED: _step_refused,
    ev.SCOPE_OPENED: _scope_opened,
    ev.SCOPE_CLOSED: _scope_closed,
    ev.BUDGET_WARNING: _warning,
    ev.STOP_SWALLOWED: _swallowed,
    ev.ALERT: _alerted,
    ev.VALUE: _value,
    ev.APPROVAL_GRANTED: _decided,
    ev.APPROVAL_DENIED: _decided,
    ev.KILL_SET: _order,
    ev.KILL_CLEARED: _order,
    ev.OPERATOR_ACTION: _operator_action,
    ev.PROCESSES_SIGNALLED: _signalled,
}


def entries(run_id: str, log: Iterable[Stored]) -> Iterator[Entry]:
    """The events of a log with what lies beside them."""
    head = codec.genesis(run_id)
    for stored in log:
        yield Entry(codec.to_event(run_id, stored, head), stored.payload)
        head = stored.hash
