"""How far a long replay has come, on a terminal's standard error; nothing elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agentguard.cli import output
from agentguard.errors import NoActiveRunError
from agentguard.replay.player import Player
from agentguard.run import Run

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Events in a log, from which on it counts as long.
LONG = 5_000


@contextlib.contextmanager
def of_run(run: Run, events: int) -> Iterator[None]:
    """A bar that follows a run through its log of so many events."""
    console = output.console(stderr=True)
    if events < LONG or not console.is_terminal:
        yield
        return
    with _Following(run, events, console):
        yield


class _Following(Progress):
    """Looks where the run is whenever the bar is drawn, so that the replay itself pays nothing."""

    def __init__(self, run: Run, events: int, console: Console) -> None:
        self._run = run
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=console, transient=True)
        self._task = self.add_task("events", total=events)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, as far as the log has been read by now."""
        # Its first drawing comes before the task, and the run may not have been entered.
        with contextlib.suppress(NoActiveRunError):
            player = self._run.live_run.player if self.tasks else None
            if isinstance(player, Player) and player.tape.last is not None:
                self.update(self._task, completed=player.tape.last.seq)
        yield from super().get_renderables()
