"""`agentguard tail`: the newest events, and those that follow."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Annotated

import typer
from rich.text import Text

from agentguard.cli import exit_codes, lookup, output, selection, timeline
from agentguard.cli.app import app
from agentguard.cli.options import (
    HomeOption,
    JsonOption,
    NameOption,
    SinceOption,
    StateOption,
    StoreOption,
    TenantOption,
    UtcOption,
)
from agentguard.errors import LogIntegrityError
from agentguard.events import codec
from agentguard.events.codec import Stored
from agentguard.events.model import Event
from agentguard.guard import Guard
from agentguard.monitoring import status_of
from agentguard.protocols import EventStore, abilities_of
from agentguard.runs.state import RunState
from agentguard.runs.summary import moment

#: How often, in seconds, the store is asked for more.
_POLL = 0.2
#: How long a store that tells of news is waited for, which it may fail to do.
_LONGEST_PAUSE = 1.0


_PAGE = 1000
#: How many events are shown where nothing else is said.
_LINES = 10


#: States that more may follow; what a damaged row says is not among them.
_LIVE = frozenset(str(state) for state in RunState if not state.final)


Numbered = tuple[str, Stored]

#: What a line may show of an event; `spent` is what its run has spent so far.
_COLUMNS: dict[str, Callable[[Event], str]] = {
    "time": lambda event: output.when(moment(event.at_ns)),
    "run": lambda event: output.one_line(event.run_id),
    "seq": lambda event: f"{event.seq:>5}",
    "type": lambda event: f"{output.one_line(event.type):<18}",
    "key": lambda event: output.one_line(event.key or "-"),
    "usd": lambda event: output.money(event.usage.usd) if event.usage else "-",
    "spent": lambda event: output.money(event.spent.usd) if event.spent else "-",
    "event": lambda event: output.one_line(timeline.describe(event)),
}
_USUAL = ("time", "run", "seq", "event")


@app.command(epilog="--json: an event a line.")
def tail(
    *,
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="The run; by default all.",
            show_default=False,
            autocompletion=lookup.complete_run,
        ),
    ] = None,
    lines: Annotated[
        int | None,
        typer.Option(
            "--lines",
            "-n",
            min=0,
            max=lookup.MOST,
            help="How many of the newest events; by default 10, and with --since all.",
            show_default=False,
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as events come, until the named run has ended.")
    ] = False,
    tenant: TenantOption = None,
    name: NameOption = None,
    state: StateOption = None,
    since: SinceOption = None,
    sort: Annotated[
        selection.Sort | None,
        typer.Option("--sort", help="The events of those runs first that have the most of it; not with -f."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="A,B", help=f"These alone, of {', '.join(_COLUMNS)}."),
    ] = None,
    utc: UtcOption = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest events, and with -f those that follow."""
    lookup.use(store, home)
    if lines is None:
        lines = _LINES if since is None else lookup.MOST
    among = {"--tenant": tenant, "--name": name, "--state": state}
    if run_id is not None and (given := [option for option, value in among.items() if value is not None]):
        raise exit_codes.UsageError(f"{given[0]} chooses among all runs; leave it out where a run is named")
    if sort is not None and (follow or run_id is not None):
        raise exit_codes.UsageError(
            "--sort puts runs in order; leave it out with -f, and where a run is named"
        )
    if tenant is not None:
        lookup.checked_id(tenant, "--tenant")
    shown = selection.columns(columns, _COLUMNS)
    try:
        while follow and run_id is None and not lookup.store_is_there():
            time.sleep(_POLL)  # the first run is still to come
    except KeyboardInterrupt:
        raise typer.Exit(exit_codes.INTERRUPTED) from None
    with lookup.reading() as guard:
        found = None if run_id is None else lookup.find_run(guard, run_id)
        begin = selection.since_ns(since, guard.components.clock.wall())
        wanted = Wanted(guard.components.store, tenant, name, state, begin)
        show_one = json_printer() if as_json else text_printer(shown, one_run=found is not None)
        events = stream(wanted, found, lines, follow=follow)
        try:
            for numbered in events if sort is None else in_order(events, guard, sort):
                show_one(numbered)
        except KeyboardInterrupt:
            raise typer.Exit(exit_codes.INTERRUPTED) from None


class Wanted:
    """Which events are shown: of which tenant, of runs of which name and state, and from when on."""

    def __init__(
        self, store: EventStore, tenant: str | None, name: str | None, state: str | None, since_ns: int
    ) -> None:
        self.store = store
        self.tenant = tenant
        self._name = name
        self._state = state
        self._since_ns = since_ns
        self._named: dict[str, bool] = {}

    def takes(self, numbered: Numbered) -> bool:
        """Return whether an event of the tenant is shown; a run's state is that of now."""
        run_id, stored = numbered
        if self.is_before(stored):
            return False
        if self._name is not None and run_id not in self._named:
            row = self.store.row(run_id)
            self._named[run_id] = row is not None and selection.named(row.name, self._name)
        if not self._named.get(run_id, True):
            return False
        if self._state is None:
            return True
        row = self.store.row(run_id)
        return row is not None and row.state == self._state

    def is_before(self, stored: Stored) -> bool:
        """Return whether an event is older than what is asked for."""
        return self._since_ns > 0 and codec.decode(stored.body).at_ns < self._since_ns


def stream(wanted: Wanted, run_id: str | None, lines: int, *, follow: bool) -> Iterator[Numbered]:
    """The last `lines` events of a run or of all, and with `follow` those that come after them."""
    store = wanted.store
    if run_id is None:
        top = _top(store)
        yield from _newest(wanted, top, lines)
        if follow:
            yield from filter(wanted.takes, _follow(store, top, wanted.tenant))
        return
    last = store.last(run_id)
    end = 0 if last is None else last.seq
    for stored in store.read(run_id, max(end - lines, 0)):
        end = stored.seq
        if not wanted.is_before(stored):
            yield run_id, stored
    if follow:
        yield from _follow_run(store, run_id, end)


def in_order(events: Iterable[Numbered], guard: Guard, sort: selection.Sort) -> Iterator[Numbered]:
    """Return the events run by run, those of the run with the most of `sort` first, damaged ones last."""
    store, clock = guard.components.store, guard.components.clock
    of_run: dict[str, list[Numbered]] = {}
    for numbered in events:
        of_run.setdefault(numbered[0], []).append(numbered)
    found = []
    for row in filter(None, map(store.row, of_run)):
        with suppress(LogIntegrityError):
            found.append(status_of(store, row, clock))
    first = [status.summary.run_id for status in selection.in_order(found, sort)]
    for run_id in dict.fromkeys([*first, *of_run]):
        yield from of_run[run_id]


def _newest(wanted: Wanted, top: int, count: int) -> list[Numbered]:
    """The last events up to position `top`, in order."""
    back = max(min(count, _PAGE), 1)
    while True:
        after = max(top - back, 0)
        events = (n for n in _from(wanted.store, after, wanted.tenant) if n[1].position <= top)
        first = next(events, None)
        from_first = () if first is None else chain([first], events)
        found = deque(filter(wanted.takes, from_first), maxlen=count)
        # Positions may have gaps, and most events may be of other tenants or runs.
        if len(found) == count or after == 0 or (first is not None and wanted.is_before(first[1])):
            return list(found)
        back *= 4


def _top(store: EventStore) -> int:
    """The highest position: a store says only whether there is anything above one."""
    low, step = 0, 1
    while store.tail(low + step - 1, limit=1):
        low, step = low + step, step * 2
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if store.tail(middle - 1, limit=1) else (low, middle)
    return low


def _from(store: EventStore, after: int, tenant: str | None) -> Iterator[Numbered]:
    while page := store.tail(after, tenant, _PAGE):
        yield from page
        after = page[-1][1].position


def _follow(store: EventStore, after: int, tenant: str | None) -> Iterator[Numbered]:
    """Every event above a position, for ever."""
    while True:
        for run_id, stored in _from(store, after, tenant):
            after = stored.position
            yield run_id, stored
        _pause(store)


def _follow_run(store: EventStore, run_id: str, after: int) -> Iterator[Numbered]:
    """Every event of a run above a sequence, until the run has ended."""
    while True:
        # Asked first, so that nothing is missed of a run that ends meanwhile.
        row = store.row(run_id)
        for stored in store.read(run_id, after):
            after = stored.seq
            yield run_id, stored
        if row is None or row.state not in _LIVE:
            return
        _pause(store)


def json_printer() -> Callable[[Numbered], None]:
    """Prints an event a line, as JSON."""

    def show(numbered: Numbered) -> None:
        output.print_json(timeline.event_data(_entry(numbered)), indent=None)

    return show


def text_printer(columns: Sequence[str] | None, *, one_run: bool) -> Callable[[Numbered], None]:
    """Prints an event a line, for people; `columns`: what of it, or else what is usual."""
    console = output.console()
    log = timeline.Timeline(dated=True)

    def show(numbered: Numbered) -> None:
        entry = _entry(numbered)
        nested = one_run and columns is None
        for line in log.lines([entry]) if nested else [_line(entry.event, columns or _USUAL)]:
            console.print(line, no_wrap=True, overflow="ellipsis", crop=console.is_terminal)

    return show


def _line(event: Event, columns: Sequence[str]) -> Text:
    return Text("  ").join(
        Text(_COLUMNS[name](event), style="" if name == "event" else "dim") for name in columns
    )


def _entry(numbered: Numbered) -> timeline.Entry:
    run_id, stored = numbered
    return timeline.Entry(codec.to_event(run_id, stored, b""), stored.payload)


def _pause(store: EventStore) -> None:
    """Wait a moment, or until the store says that there is something new."""
    live = abilities_of(store).live
    if live is None:
        time.sleep(_POLL)
    else:
        live.wait_for_news(_LONGEST_PAUSE)
