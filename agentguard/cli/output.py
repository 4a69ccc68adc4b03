"""How things are printed: consoles, JSON, and text that strangers wrote."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from agentguard.budget.model import Budget, Usage
from agentguard.cli import exit_codes
from agentguard.errors import AgentGuardError, LogIntegrityError

if TYPE_CHECKING:
    from agentguard.guard import Guard

#: Wide enough that nothing is cut or wrapped on its way to a file or another program.
_ENDLESS = 10_000


class _Zone:
    """The time zone that times are printed in: this machine's, or UTC."""

    utc = False


def use_utc(wanted: bool) -> None:
    """Print times in UTC from now on, if that is wanted."""
    _Zone.utc = bool(wanted)


def when(at: datetime | None) -> str:
    """Return a time to the second, with its zone; a dash where there is none."""
    if at is None:
        return "-"
    return at.astimezone(UTC if _Zone.utc else None).isoformat(sep=" ", timespec="seconds")


def console(*, stderr: bool = False) -> Console:
    """A console that never takes data for markup, and cuts nothing where no terminal is."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr, markup=False, highlight=False, emoji=False, width=None if terminal else _ENDLESS
    )


def complain(message: str) -> None:
    """Say on standard error what went wrong."""
    print(f"agentguard: {printable(message)}", file=sys.stderr)


def ended(command: Callable[[], object]) -> int:
    """Run a command and return its exit code; our own errors become a message."""
    tolerate_every_character()
    try:
        command()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else exit_codes.FAULT
    except AgentGuardError as error:
        complain(str(error))
        return exit_codes.code_of(error)
    except OSError as error:
        complain(str(error))
        return exit_codes.UNAVAILABLE
    return exit_codes.OK


def print_json(data: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document, in ASCII, so that no terminal takes it for a control sequence."""
    print(json.dumps(data, indent=indent, default=str), flush=True)


def log(*, as_json: bool) -> None:
    """Have what is logged printed on standard error: a line for people, or a JSON object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogLine(as_json=as_json))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


class _LogLine(logging.Formatter):
    """When, with the zone, and what; as JSON with level, logger and the facts that came with it."""

    #: What every record has; the last is a text again, with uvicorn's colours.
    _USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

    def __init__(self, *, as_json: bool) -> None:
        super().__init__("%(asctime)s %(message)s")
        self._as_json = as_json

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        at = datetime.fromtimestamp(record.created, UTC)
        return (at if self._as_json else at.astimezone()).isoformat(sep=" ", timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        if not self._as_json:
            return super().format(record)
        said = {name: value for name, value in vars(record).items() if name not in self._USUAL}
        said |= {"at": self.formatTime(record), "level": record.levelname, "logger": record.name}
        said["message"] = record.getMessage()
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


def printable(text: str) -> str:
    """Text that can only be read: control characters are escaped, line ends kept."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """The same on one line."""
    return printable(" ".join(text.split()))


def tolerate_every_character() -> None:
    """Escape what the standard streams' encoding lacks, rather than fail over it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def money(amount: Decimal) -> str:
    """`$0.25`; at least two digits after the point, and no more than there are."""
    digits = max(2, -int(amount.as_tuple().exponent))
    return f"${amount:.{digits}f}"


def amounts(usage: Usage, *, steps: bool = False) -> str:
    """`$0.25, 1,200 tokens, emails 3`."""
    said = [money(usage.usd)] if usage.usd else []
    if usage.tokens:
        said.append(f"{usage.tokens:,} tokens")
    said += [f"{name} {count:,}" for name, count in usage.counters.items()]
    if steps and usage.steps:
        said.append(f"{usage.steps:,} {'step' if usage.steps == 1 else 'steps'}")
    return ", ".join(said)


def limits(budget: Budget) -> str:
    """The limits of a budget, as `$1.00, 200 steps, emails 3`; `none` where nothing is limited."""
    said = []
    for name, value in budget.to_fields().items():
        if name == "usd":
            said.append(money(Decimal(value)))
        elif name == "calls":
            said += [f"{limit} calls of {step}" for step, limit in value.items()]
        elif name == "enforce":
            said.append("not enforced")
        elif name == "on_limit":
            said.append("asks at a limit")
        elif name == "ask_timeout":
            said.append(f"for {seconds(value)}")
        elif name == "seconds":
            said.append(f"{value:g} seconds")
        elif name == "warn_at":
            said.append(f"warning at {value:.0%}")
        elif name in ("steps", "tokens"):
            said.append(f"{value:,} {name}")
        else:
            said.append(f"{name} {value:,}")
    return ", ".join(said) or "none"


def warning(data: Mapping[str, str]) -> str:
    """A budget warning: `$0.80 of $1.00 of run`."""
    used, limit = data["used"], data["limit"]
    if data["resource"] == "usd":
        return f"{money(Decimal(used))} of the {money(Decimal(limit))} of {data['path']}"
    return f"{used} of the {limit} {data['resource']} of {data['path']}"


def seconds(duration: float | None) -> str:
    """`40 µs`, `1.2 ms`, `12.3 s`, `2 h 05 min`; a dash where there is none."""
    if duration is None:
        return "-"
    if duration < 0.001:
        return f"{duration * 1e6:.0f} µs"
    if duration < 1:
        return f"{duration * 1000:.1f} ms"
    if duration < 120:
        return f"{duration:.1f} s"
    minutes = round(duration / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def fail_if_altered(altered: list[LogIntegrityError]) -> None:
    """Say that what was shown or written is not what was recorded, and end with that exit code."""
    for error in altered:
        complain(f"{error}; this is not what was recorded, `agentguard verify` says more")
    if altered:
        raise SystemExit(exit_codes.FAULT)


def print_lines(*lines: Text) -> None:
    """Print lines that nothing wraps."""
    wide = console()
    for line in lines:
        wide.print(line, soft_wrap=True)


def say_state(guard: Guard, run_id: str, said: str, *, as_json: bool) -> None:
    """Print the state of a run, and in words what was done to it."""
    if as_json:
        print_json({"run_id": run_id, "state": str(guard.summary(run_id).state)})
    else:
        print_lines(Text(f"run {run_id} {said}"))


def confirmed(question: str, word: str, *, sure: bool) -> bool:
    """Whether somebody at a terminal means it; where nobody is to be asked, --yes has to say so."""
    if sure:
        return True
    if not sys.stdin.isatty():
        raise exit_codes.UsageError(f"nobody is here to be asked; say --yes to {word}")
    # Not by input(), which would put the question among the output that --json is for.
    print(f"{printable(question)}  Type '{word}' to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() == word:
        return True
    print("not confirmed; nothing was done", file=sys.stderr)
    return False
