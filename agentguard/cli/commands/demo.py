"""`agentguard demo`: the demo on a terminal, or in a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from agentguard.audit.verify import VerifyReport
from agentguard.cli import exit_codes, output, tables, timeline
from agentguard.cli.app import app
from agentguard.cli.options import (
    JsonOption,
)
from agentguard.demo.play import Ending, play
from agentguard.demo.stage import Expectation, Progress, Stage
from agentguard.events import model as ev
from agentguard.events.codec import Stored
from agentguard.runs.summary import RunSummary

_WIDTH = 100


#: How long the agents wait after each step on a terminal, so that eyes can follow.
_PACE = 0.01


#: What is shown of a log: its beginning and end, and what lies around these.
_NOTABLE = {ev.STEP_REFUSED, ev.STEP_FAILED, ev.RUN_FAILED, ev.RUN_KILLED}


@app.command(epilog="--json: {ok, home, runs, expectations, kill_latency_ms}.")
def demo(
    path: Annotated[
        Path | None,
        typer.Option(
            "--path",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="The folder that the agents work on; by default the installed agentguard.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep what was written, to look at it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Watch four agents: one finishes, one meets its budget, one is killed, one is refused.

    No model and no network: the agents follow rules, and their tools read the files of a real
    folder.  Ends with 0 only if everything was as expected.
    """
    raise typer.Exit(_play(path, keep=keep, as_json=as_json))


def _play(path: Path | None, *, keep: bool, as_json: bool) -> int:
    """Play the demo and give the exit code."""
    stage: Stage = _SilentStage() if as_json else _ConsoleStage()
    stage.say("All of this happens now: no model, no network, and a state directory of its own.")
    try:
        ending = play(path, stage, keep=keep)
    except ValueError as error:
        raise exit_codes.UsageError(str(error)) from error
    except OSError as error:
        output.complain(f"a file was in the way ({error}); the folder may have changed meanwhile")
        return exit_codes.FAULT
    if as_json:
        output.print_json(ending.to_data(kept=keep))
    else:
        _say_goodbye(ending, kept=keep)
    return exit_codes.OK if ending.ok else exit_codes.FAULT


def _say_goodbye(ending: Ending, *, kept: bool) -> None:
    console = output.console()
    held = sum(expectation.held for expectation in ending.expectations)
    said = f"{held} of {len(ending.expectations)} expectations held"
    console.print()
    console.print(Text(said, style="bold green" if ending.ok else "bold red"))
    for expectation in ending.expectations:
        if not expectation.held:
            console.print(Text(f"  not so: {expectation.scene}: {expectation.what}", style="red"))
    if kept:
        console.print(f"Kept in {ending.home}; look around with:")
        killed = ending.runs[-1].run_id
        for command in ("runs", f"show {killed} --payloads", "show control", "verify"):
            console.print(f"  agentguard {command} --home {ending.home}", soft_wrap=True)
    else:
        console.print("Nothing was kept; `agentguard demo --keep` leaves the database to look at.")


class _ConsoleStage:
    """Shows the demo as it plays; with bars on a terminal, with lines elsewhere."""

    def __init__(self) -> None:
        self._console = output.console()
        self._scenes = 0

    def scene(self, title: str, story: str) -> None:
        """Print the heading."""
        self._scenes += 1
        self._console.print()
        self._console.print(Text(f"{self._scenes}. {output.one_line(title)}", style="bold cyan"))
        width = min(self._console.width, _WIDTH)
        self._console.print(Text(output.one_line(story), style="italic"), width=width)

    def say(self, text: str) -> None:
        """Print a line."""
        width = min(self._console.width, _WIDTH)
        line = Padding(Text(output.one_line(text)), (0, 0, 0, 2), expand=False)
        self._console.print(line, width=width)

    def progress(self, what: str, total: int) -> AbstractContextManager[Progress]:
        """A bar on a terminal, a few lines elsewhere."""
        return self._bar(what, total) if self._console.is_terminal else self._lines(what, total)

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Progress]:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bar(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(what, total=total if total > 1 else None, note="")

            def tell(done: int, note: str) -> None:
                bar.update(task, completed=done, note=output.one_line(note))
                time.sleep(_PACE)

            yield tell

    @contextmanager
    def _lines(self, what: str, total: int) -> Iterator[Progress]:
        marks = [-(-total * quarter // 4) for quarter in range(1, 5)]
        lock = threading.Lock()

        def tell(done: int, _note: str) -> None:
            with lock:
                while marks and done >= marks[0]:
                    self.say(f"{marks.pop(0)} of {total} {what}")

        if total == 1:
            self.say(f"{what} ...")
        yield tell

    def expectation(self, expectation: Expectation) -> None:
        """Print whether it held, and what was found."""
        ok = expectation.held
        line = Text("  ").append("ok    " if ok else "NOT SO ", style="green" if ok else "bold red")
        line.append(expectation.what)
        if not ok:
            line.append(f": expected {expectation.expected}, found {expectation.found}")
        elif expectation.found != "yes":
            line.append(f": {expectation.found}")
        self._console.print(line, soft_wrap=True)

    def summary(self, summary: RunSummary) -> None:
        """Print a summary."""
        self._console.print()
        tables.print_summary(self._console, summary, indent="  ")

    def log(self, summary: RunSummary, log: Sequence[Stored]) -> None:
        """Print a log, the more monotonous parts of it left out."""
        entries = list(timeline.entries(summary.run_id, log))
        shown = _shown([entry.event.type for entry in entries])
        previous = -1
        for index, line in enumerate(timeline.Timeline().lines(entries)):
            if index not in shown:
                continue
            if hidden := index - previous - 1:
                self._console.print(Text(f"         … {hidden} more …", style="dim"))
            previous = index
            self._console.print(Text("  ").append(line), no_wrap=True, overflow="ellipsis")

    def report(self, report: VerifyReport) -> None:
        """Print a report."""
        for line in tables.report_lines(report):
            self._console.print(Text("  ").append(line), soft_wrap=True)


def _shown(types: Sequence[str]) -> set[int]:
    """Which lines of a log to show; a single one is never left out between two that are shown."""
    shown = {*range(5), *range(len(types) - 2, len(types))}
    for index, kind in enumerate(types):
        if kind in _NOTABLE:
            shown |= {index - 1, index, index + 1}
    return shown | {index for index in range(len(types)) if {index - 1, index + 1} <= shown}


class _SilentStage:
    """Shows nothing, where JSON is all that is wanted."""

    def progress(self, what: str, total: int) -> AbstractContextManager[Progress]:
        """Nothing to show."""
        return nullcontext(self.quiet)

    def quiet(self, *_what: Any, **_named: Any) -> None:
        """Show nothing."""

    scene = say = expectation = summary = log = report = quiet
