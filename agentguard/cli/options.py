"""Options and arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from agentguard.cli import lookup, output
from agentguard.runs.state import RunState

StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="The event store, as sqlite:///runs.db [AGENTGUARD_STORE]."),
]


HomeOption = Annotated[
    str | None,
    typer.Option("--home", metavar="DIR", help="The state directory [AGENTGUARD_HOME]."),
]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="The run's id, or a beginning of it that no other has.",
        autocompletion=lookup.complete_run,
        show_default=False,
    ),
]


TenantOption = Annotated[str | None, typer.Option("--tenant", metavar="T", help="Runs of this tenant alone.")]


YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


ActorOption = Annotated[
    str | None, typer.Option("--actor", metavar="A", help="Who orders it; by default user@host.")
]


AskedOption = Annotated[
    int | None,
    typer.Option(
        "--asked",
        metavar="N",
        help="Only the question of event N; see `approvals`.",
        show_default=False,
    ),
]

KeyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="KEY", help="The step's key; not needed where one alone waits.", show_default=False
    ),
]


ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why; it is recorded and shown.")
]


NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="PATTERN", help="Runs of this name alone; * and ? stand for others."),
]


SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="Not before: an age like 2h or 7d, or a date or time."),
]


StateOption = Annotated[
    RunState | None,
    typer.Option("--state", case_sensitive=False, help="Runs in this state alone."),
]


UtcOption = Annotated[
    bool,
    typer.Option("--utc", callback=output.use_utc, help="Print times in UTC; by default, in local time."),
]


ColumnsOption = Annotated[
    str | None,
    typer.Option("--columns", metavar="A,B", help="These columns alone, as run,name,usd,$/min,owner."),
]
