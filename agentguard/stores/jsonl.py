"""An export read back: every question is answered from the file, and nothing can be written."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import msgspec

from agentguard import _typed
from agentguard._clock import SYSTEM_CLOCK, Clock
from agentguard.errors import StoreUnavailableError
from agentguard.events.codec import Stored
from agentguard.events.model import CONTROL_RUN_ID
from agentguard.killswitch.readonly import ReadOnlyKillSwitch
from agentguard.protocols import RunLock, RunRow
from agentguard.runs.summary import from_data
from agentguard.stores._jsonl_lines import FORMAT, End, EndLine, Header, Run, RunLine, event, rewritten

if TYPE_CHECKING:
    from agentguard.budget.account import Account


class _Log(msgspec.Struct):
    """Where a log lies in the file: its first event's offset, how many there are, and how many before it."""

    row: RunRow
    offset: int
    before: int
    events: int = 0


class JsonlEventStore:
    """The logs of an export, by their offsets in the file; what is read is read from there each time.

    `switch` answers for the control log in the file.  `damage` names what is wrong with the file as a
    whole, for `verify`: a missing or wrong last line.
    """

    def __init__(self, path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.path = Path(path)
        self.url = f"file://{self.path}"
        self.clock = clock
        self.switch = ReadOnlyKillSwitch(self.url, self._control)
        self._lock = threading.RLock()
        self._logs: dict[str, _Log] | None = None
        self._damage: list[tuple[str, int, str]] = []
        self._closed = False

    def lock_for(self, run_id: str) -> RunLock:
        """Return a lock that guards nothing but the index."""
        return self._lock

    def damage(self) -> tuple[tuple[str, int, str], ...]:
        """Run, sequence and problem of what is wrong with the file as a whole."""
        self._index()
        return tuple(self._damage)

    # --- the file ------------------------------------------------------------------------------

    def _open(self) -> BinaryIO:
        if self._closed:
            raise StoreUnavailableError(f"{self.url} is closed; open another guard")
        try:
            return self.path.open("rb")
        except OSError as error:
            raise StoreUnavailableError(f"{self.url} cannot be read: {error.strerror}") from error

    def _index(self) -> dict[str, _Log]:
        with self._lock:
            if self._logs is None or self._closed:
                with self._open() as file:
                    self._logs = self._scan(file)
            return self._logs

    def _scan(self, file: BinaryIO) -> dict[str, _Log]:
        """Find where each log begins; the events are looked at when they are read."""
        self._check_header(file.readline())
        logs: dict[str, _Log] = {}
        log: _Log | None = None
        end: End | None = None
        total, offset = 0, file.tell()
        for number, line in enumerate(file, 2):
            offset += len(line)
            if line.startswith(b'{"run":'):
                log = _Log(self._row(line, number, len(logs)), offset, total)
                logs[log.row.run_id] = log
            elif line.startswith(b'{"end":'):
                end = self._decoded(line, number, EndLine).end
            elif log is None:
                raise StoreUnavailableError(f"{self.url}: line {number} belongs to no run")
            else:
                log.events += 1
                total += 1
        self._damage = list(_damage(logs, total, end))
        return logs

    def _check_header(self, line: bytes) -> None:
        if (problem := rewritten(line)) is not None:
            raise StoreUnavailableError(f"{self.url} {problem}")
        try:
            version = _typed.decode(line, Header).agentguard_export
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreUnavailableError(f"{self.url} is no export of agentguard: {error}") from error
        if version > FORMAT:
            raise StoreUnavailableError(
                f"{self.url} has export format {version}, newer than {FORMAT}; upgrade agentguard"
            )

    def _decoded(self, line: bytes, number: int, kind: type[Any]) -> Any:
        try:
            return _typed.decode(line, kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreUnavailableError(f"{self.url}: line {number} is damaged: {error}") from error

    def _row(self, line: bytes, number: int, logs: int) -> RunRow:
        run: Run = self._decoded(line, number, RunLine).run
        fields = {name: getattr(run, name) for name in run.__struct_fields__}
        try:
            fields["salt"] = None if run.salt is None else bytes.fromhex(run.salt)
            if run.run_id != CONTROL_RUN_ID:
                from_data(run.summary)
        except (LookupError, TypeError, ValueError) as error:
            raise StoreUnavailableError(f"{self.url}: line {number} is damaged: {error!r}") from error
        return RunRow(**fields, number=logs + 1)

    # --- reading -------------------------------------------------------------------------------

    def row(self, run_id: str) -> RunRow | None:
        """The run's row, or None."""
        log = self._index().get(run_id)
        return None if log is None or run_id == CONTROL_RUN_ID else log.row

    def _rows(self) -> list[RunRow]:
        return [log.row for run_id, log in self._index().items() if run_id != CONTROL_RUN_ID]

    def rows(
        self,
        *,
        tenant: str | None = None,
        state: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[RunRow]:
        """The newest runs first, the last of the file; with `before`, those older than that run."""
        limiting = None if before is None else self.row(before)
        if before is not None and limiting is None:
            return []
        rows = (row for row in reversed(self._rows()) if limiting is None or row.number < limiting.number)
        found = (row for row in rows if tenant in (None, row.tenant))
        return list(islice((row for row in found if state in (None, row.state)), min(limit, 2**62)))

    def neighbours(self, run_id: str) -> tuple[str | None, str | None]:
        """The ids just before and after an id, in the order of their characters."""
        ids = [row.run_id for row in self._rows()]
        before = max((other for other in ids if other < run_id), default=None)
        return before, min((other for other in ids if other > run_id), default=None)

    def children(self, run_id: str) -> list[RunRow]:
        """The runs nested directly in a run, oldest first."""
        return [row for row in self._rows() if row.parent_id == run_id]

    def read(self, run_id: str, after: int = 0) -> Iterator[Stored]:
        """The events of a log with a sequence above `after`, read from the file as they are asked for.

        Raises:
            LogIntegrityError: at a line that is no event.
        """
        log = self._index().get(run_id)
        if log is None:
            return
        with self._open() as file:
            file.seek(log.offset)
            for number, line in enumerate(islice(file, log.events), 1):
                stored = event(line, run_id, number, log.before + number)
                if stored.seq > after:
                    yield stored

    def last(self, run_id: str) -> Stored | None:
        """The run's newest event."""
        newest = None
        for stored in self.read(run_id):
            newest = stored
        return newest

    def tail(self, after: int = 0, tenant: str | None = None, limit: int = 1000) -> list[tuple[str, Stored]]:
        """Events of all runs with a position above `after`; positions count the events in the file."""
        logs = (log for log in self._index().values() if log.row.run_id != CONTROL_RUN_ID)
        wanted = (log for log in logs if tenant in (None, log.row.tenant) and log.before + log.events > after)
        events = ((log.row.run_id, stored) for log in wanted for stored in self.read(log.row.run_id))
        return list(islice((pair for pair in events if pair[1].position > after), limit))

    def _control(self) -> Iterator[Stored]:
        return self.read(CONTROL_RUN_ID)

    def snapshot(self) -> AbstractContextManager[None]:
        """The file is one moment already."""
        return contextlib.nullcontext()

    def settle(self) -> None:
        """Nothing was written."""

    def durable(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Read no more."""
        self._closed = True

    # --- what an export cannot do --------------------------------------------------------------

    def accounts(self, ids: Sequence[str]) -> dict[str, Account]:
        """An export has no accounts: what tenants have spent stands in the store."""
        return self._refuse("holds no shared accounts")

    def create(self, *_: Any, **__: Any) -> int:
        """Refused."""
        return self._refuse()

    def append(self, *_: Any, **__: Any) -> dict[str, Account]:
        """Refused."""
        return self._refuse()

    def exclusive(self, run_id: str) -> AbstractContextManager[None]:
        """Refused."""
        return self._refuse()

    def update_row(self, row: RunRow) -> bool:
        """Refused."""
        return self._refuse()

    def erase(self, run_id: str) -> int:
        """Refused."""
        return self._refuse()

    def prune(self, ended_before_ns: int, keep: Collection[str] = ()) -> list[str]:
        """Refused."""
        return self._refuse()

    def _refuse(self, problem: str = "is read-only") -> NoReturn:
        raise StoreUnavailableError(f"{self.url} is an export and {problem}; open the store it came from")


def _damage(logs: dict[str, _Log], events: int, end: End | None) -> Iterator[tuple[str, int, str]]:
    last = next(reversed(logs.values()), None)
    run_id, seq = (last.row.run_id, last.events) if last is not None else ("?", 0)
    if end is None:
        yield run_id, seq, "the export ends here without its last line: it was cut off"
    elif (end.runs, end.events) != (len(logs), events):
        said = f"{end.events} events of {end.runs} logs"
        yield run_id, seq, f"the export says that it holds {said}, and holds {events} of {len(logs)}"
