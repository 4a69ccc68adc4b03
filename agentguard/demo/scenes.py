"""The four runs: one completes, one meets its budget, one is killed, one refuses a forbidden move."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from agentguard._home import sqlite_url
from agentguard.budget.model import Budget
from agentguard.demo import folder as prices
from agentguard.demo.agents import AT_ONCE, Polisher, Survey, surveyor, watcher
from agentguard.demo.folder import Folder
from agentguard.demo.stage import Script
from agentguard.errors import BudgetExceededError, InvalidStateTransitionError, KillSwitchTriggeredError
from agentguard.guard import Guard
from agentguard.killswitch.page import PageKillSwitch
from agentguard.run import Run
from agentguard.runs.state import RunState
from agentguard.runs.summary import RunSummary

DATABASE = "agentguard.db"
_LIMIT = Decimal("1.00")
_REASON = "demo: pulled by a second process"
_PATIENCE = 15.0


def open_guard(home: Path) -> Guard:
    """A guard on the demo's own home, whatever the environment says."""
    return Guard.open(sqlite_url(home / DATABASE), kill_switch=PageKillSwitch(home), telemetry=False)


class Scenes:
    """Plays the scenes; the guard is closed when `play` returns."""

    def __init__(self, home: Path, folder: Folder, script: Script) -> None:
        self._home = home
        self._folder = folder
        self._script = script
        self.kill_latency_ms: float | None = None

    def play(self) -> list[RunSummary]:
        """Play all scenes, and give what the runs came to."""
        with open_guard(self._home) as guard:
            runs = [self._within_budget(guard), self._over_budget(guard), self._killed(guard)]
            self._forbidden(guard, runs[0])
            return [guard.summary(run.id) for run in runs]

    # --- one completes -------------------------------------------------------------------------

    def _within_budget(self, guard: Guard) -> Run:
        files = len(self._folder.names)
        self._script.scene(
            "An agent that keeps to its budget",
            f"It measures the {files} text files of {self._folder.root} and looks closer at the three "
            f"largest.  Each tool call is guarded and has a made-up price; the run may spend $1.00.",
        )
        budget = Budget(usd=_LIMIT, steps=400, seconds=60)
        with (
            self._script.stage.progress("files", files) as tell,
            guard.run("surveyor", budget=budget, inputs={"folder": str(self._folder.root)}) as run,
        ):
            survey = surveyor(self._folder, tell)
        self._say_survey(survey)
        closer = len(survey.largest)
        self._script.expect("state", RunState.COMPLETED, run.state)
        self._script.expect("steps", 1 + files + 2 * closer, run.spent.steps)
        cost = files * prices.MEASURING + 2 * closer * prices.READING
        self._script.expect("spent, by the price list", _dollars(cost), _dollars(run.spent.usd))
        self._script.expect("lines, counted once more without a guard", self._bare_lines(), survey.lines)
        return run

    def _say_survey(self, survey: Survey) -> None:
        say = self._script.stage.say
        say(f"{survey.files} files, {survey.lines:,} lines, {survey.todos} of them say TODO or FIXME")
        for name, lines, part, digest in survey.largest:
            say(f"{name}: {lines:,} lines, longest part {part}, sha256 {digest}…")

    def _bare_lines(self) -> int:
        files = (self._folder.root / name for name in self._folder.names)
        return sum(len(path.read_text("utf-8", "replace").splitlines()) for path in files)

    # --- one meets its budget ------------------------------------------------------------------

    def _over_budget(self, guard: Guard) -> Run:
        allowed = int(_LIMIT / prices.REVIEWING)
        self._script.scene(
            "An agent that never stops, and a limit that does not give way",
            f"It reviews files {AT_ONCE} at a time in threads, for $0.025 each, catches every exception "
            f"and goes on.  The run may spend $1.00: {allowed} reviews, which is in the middle of a round.",
        )
        run = guard.run("polisher", budget=Budget(usd=_LIMIT))
        raised: BudgetExceededError | None = None
        with self._script.stage.progress("reviews", allowed) as tell:
            polisher = Polisher(self._folder, run.bind, tell)
            try:
                with run:
                    polisher.work()
            except BudgetExceededError as error:
                raised = error
        say, expect = self._script.stage.say, self._script.expect
        say(f"{polisher.rounds} rounds; the agent caught {polisher.swallowed} refusals and went on")
        if raised is not None:
            say(f"the first refusal, and the end of the run's block, raised: {raised}")
            in_flight = Decimal(raised.reserved) / prices.REVIEWING
            say(f"{in_flight:.0f} reviews were in flight then; they finished and were charged")
        expect("bodies that ran", allowed, len(self._folder.reviewed))
        expect("spent, to the limit exactly", _dollars(_LIMIT), _dollars(run.spent.usd))
        expect("refused calls", polisher.rounds * AT_ONCE - allowed, polisher.swallowed)
        self._script.holds(
            "the run's stop was raised at the end of the block", raised is run.stop is not None
        )
        expect("state", RunState.FAILED, run.state)
        return run

    # --- one is killed -------------------------------------------------------------------------

    def _killed(self, guard: Guard) -> Run:
        self._script.scene(
            "An agent that somebody stops from outside",
            "It waits for a file to change, in an async step that would go on for ever.  Meanwhile a "
            "second process runs `agentguard kill --run ID`.",
        )
        run = guard.run("watcher", budget=Budget(seconds=_PATIENCE))
        killer = _Killer(run.id, self._home, self._folder.watching, self._script.stage.say)
        raised = asyncio.run(self._watch(run, killer))
        killer.join()
        return self._after_kill(guard, run, killer, raised)

    async def _watch(self, run: Run, killer: _Killer) -> Exception | None:
        try:
            with self._script.stage.progress("waiting for the second process", 1):
                async with run:
                    killer.start()
                    await watcher(self._folder)
        except (KillSwitchTriggeredError, BudgetExceededError) as error:
            return error
        return None

    def _after_kill(self, guard: Guard, run: Run, killer: _Killer, raised: Exception | None) -> Run:
        say, expect = self._script.stage.say, self._script.expect
        order = next((kill for kill in guard.kills() if kill.target == run.id), None)
        cancelled = self._folder.cancelled_ns
        if order is not None and cancelled is not None:
            self.kill_latency_ms = (cancelled - order.at_ns) / 1e6
            say(f"the killing process (pid {killer.pid}) reports: {killer.said()}")
            say(
                f"from the order (stamped before it is synced to the disk) to the CancelledError in the "
                f"body: {self.kill_latency_ms:.1f} ms"
            )
            say(f"the whole command, Python's start included: {killer.took_ms:.0f} ms")
        say(f"leaving the run's block raised: {raised}")
        expect("exit code of the second process", 0, killer.exit_code)
        self._script.holds("CancelledError reached the body in flight", cancelled is not None)
        expect("reason on record", _REASON, getattr(raised, "reason", None))
        expect("state", RunState.KILLED, run.state)
        return run

    # --- one is refused ------------------------------------------------------------------------

    def _forbidden(self, guard: Guard, run: Run) -> None:
        self._script.scene(
            "A move that the state machine forbids",
            f"The first run is {run.state}, which is final.  Somebody tries to resume it.",
        )
        before = len(guard.history(run.id))
        refused = ""
        try:
            guard.resume(run.id)
        except InvalidStateTransitionError as error:
            self._script.stage.say(f"{type(error).__name__}: {error}")
            refused = f"{error.from_state} to {error.to_state}"
        self._script.expect("refused move", f"{RunState.COMPLETED} to {RunState.RUNNING}", refused)
        self._script.expect("events in its log", before, len(guard.history(run.id)))


def _dollars(amount: Decimal) -> str:
    """All digits that count, so that nothing is hidden by rounding."""
    return f"${amount.normalize():f}"


class _Killer(threading.Thread):
    """Runs `agentguard kill` in a process of its own, as soon as the step is in flight."""

    def __init__(
        self, run_id: str, home: Path, in_flight: threading.Event, say: Callable[[str], None]
    ) -> None:
        super().__init__(name="agentguard-demo-kill", daemon=True)
        self._command = [
            *(sys.executable, "-m", "agentguard.cli", "kill", "--json"),
            *("--run", run_id, "--reason", _REASON, "--home", str(home)),
        ]
        self._run_id = run_id
        self._in_flight = in_flight
        self._say = say
        self._out = ""
        self.exit_code: int | None = None
        self.pid: int | None = None
        self.took_ms = 0.0

    def run(self) -> None:
        """Wait for the step, then kill."""
        if not self._in_flight.wait(_PATIENCE):
            return
        self._say(f"the step is in flight; a second process runs: agentguard kill --run {self._run_id}")
        start = time.monotonic()
        # Our own interpreter, and nothing that anybody else wrote.
        with subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
            self.pid = process.pid
            try:
                self._out, _ = process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        self.took_ms = (time.monotonic() - start) * 1000
        self.exit_code = process.returncode

    def said(self) -> str:
        """What the command answered, in a line."""
        try:
            told = json.loads(self._out)
            return (
                f"generation {told['generation']}, {told['live']} live, {told['acknowledged']} "
                f"acknowledged in {told['seconds'] * 1000:.1f} ms"
            )
        except (ValueError, KeyError):
            return self._out.strip() or "nothing"
