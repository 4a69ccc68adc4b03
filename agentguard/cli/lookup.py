"""From what was typed to a store and a run in it.

Reading commands change nothing on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agentguard import config
from agentguard._clock import SYSTEM_CLOCK
from agentguard._home import STORE_VARIABLE, VARIABLE, sqlite_path, store_url
from agentguard._secrets.urls import public_url
from agentguard.cli.exit_codes import UsageError
from agentguard.errors import AgentGuardError, RunNotFoundError, StoreUnavailableError
from agentguard.events.model import CONTROL_RUN_ID
from agentguard.guard import Guard
from agentguard.protocols import EventStore, KillSwitch
from agentguard.tenancy import check_id

if TYPE_CHECKING:
    from agentguard.events.codec import Stored
    from agentguard.killswitch.readonly import ReadOnlyKillSwitch

#: More than anybody lists, and less than a store's integers hold.
MOST = 1_000_000_000
#: Of the runs that may be meant, so many are named.
MOST_NAMED = 5
_UUID_LENGTH = 36
_SHORTEST = 8


class AmbiguousRunError(UsageError):
    """What was typed begins the ids of several runs."""


def use(store: str | None, home: str | None) -> None:
    """Set the environment of this process from `--store` and `--home`.

    Raises:
        UsageError: one is empty, as a variable of a shell that is not set: another one would be used.
    """
    for option, given, variable in (("--store", store, STORE_VARIABLE), ("--home", home, VARIABLE)):
        if given == "":
            raise UsageError(f"{option} must not be empty; leave it out for the default")
        if given is not None:
            os.environ[variable] = given


def store_file() -> Path | None:
    """The file of a SQLite store; None for another one."""
    url = store_url()
    if url.startswith("memory://"):
        raise UsageError(
            f"{url} lives in the process that uses it, and no other can look inside; give --store a "
            "sqlite:/// URL"
        )
    if not url.startswith("sqlite:"):
        return None
    try:
        return sqlite_path(url)
    except ValueError as error:
        raise UsageError(str(error)) from error


def store_is_there() -> bool:
    """Whether there is something to read.

    Raises:
        StoreUnavailableError: a store was named, and its file does not exist.
    """
    file = store_file()
    if file is None or file.exists():
        return True
    if os.environ.get(STORE_VARIABLE):
        raise StoreUnavailableError(f"there is no store at {file}; check --store and {STORE_VARIABLE}")
    return False


@contextmanager
def opened_store() -> Iterator[EventStore]:
    """The store alone, for what only reads from it: a guard loads longer than that takes.

    Raises:
        StoreUnavailableError: the store cannot be read.
    """
    try:
        store = config.open_store(None, None, SYSTEM_CLOCK)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        yield store
    finally:
        store.close()


@contextmanager
def reading() -> Iterator[Guard]:
    """A guard to ask questions of; it stays away from the kill page, whose state must not matter.

    Raises:
        StoreUnavailableError: there is no store, or it cannot be read.
    """
    if not store_is_there():
        raise StoreUnavailableError(f"there is no store at {store_file()} yet; nothing has run here")
    with _opened(kill_switch="memory") as guard:
        yield guard


@contextmanager
def looking() -> Iterator[Guard]:
    """A guard that knows of kills, from the control log alone, and writes nothing.

    Raises:
        StoreUnavailableError: there is no store, or it cannot be read.
    """
    if not store_is_there():
        raise StoreUnavailableError(f"there is no store at {store_file()} yet; nothing has run here")
    from agentguard.killswitch.readonly import ReadOnlyKillSwitch

    log = control_log()

    def intact() -> Iterator[Stored]:
        with suppress(AgentGuardError, OSError):  # what is wrong with it is for `verify` and `doctor` to say
            yield from log.read()

    with _opened(kill_switch=ReadOnlyKillSwitch(log.where, intact)) as guard:
        yield guard


@contextmanager
def acting() -> Iterator[Guard]:
    """A guard that writes, with the kill switch that runs use."""
    if not store_is_there():
        raise StoreUnavailableError(f"there is no store at {store_file()} yet; nothing has run here")
    with _opened(kill_switch=None) as guard:
        yield guard


@contextmanager
def _opened(kill_switch: str | KillSwitch | None) -> Iterator[Guard]:
    with Guard.open(kill_switch=kill_switch, telemetry=False) as guard:
        try:
            _ = guard.components
        except ValueError as error:
            raise UsageError(str(error)) from error
        yield guard


def control_log(guard: Guard | None = None) -> ReadOnlyKillSwitch:
    """The control log to look at: an export's own, that of the kill server, or the file of the home."""
    from agentguard.killswitch.control import ControlLog
    from agentguard.killswitch.layout import announced
    from agentguard.killswitch.readonly import ReadOnlyKillSwitch

    own = None if guard is None else guard.components.abilities.switch
    if isinstance(own, ReadOnlyKillSwitch):
        return own
    if (server := kill_server()) is not None:
        return ReadOnlyKillSwitch(public_url(server), lambda: _read_remote(server))
    home = config.home()
    log = ControlLog(home)
    return ReadOnlyKillSwitch(str(log.path), log.read, announced=announced(home))


def kill_server(named: str | None = None) -> str | None:
    """The URL of the server that has the kills; None where they lie in the home alone.

    Raises:
        UsageError: a URL cannot be meant.
    """
    from agentguard.killswitch.network import SCHEMES, split_url

    url = named or os.environ.get("AGENTGUARD_KILL_SWITCH") or os.environ.get(STORE_VARIABLE) or ""
    if named is None and url.partition(":")[0] not in SCHEMES:
        return None
    try:
        return split_url(url)[0]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _read_remote(server: str) -> Iterator[Stored]:
    from agentguard.killswitch.network import open_log

    log = open_log(server)
    try:
        yield from log.read()
    finally:
        log.close()


def find_run(guard: Guard, typed: str) -> str:
    """The id of the run that `typed` names, or begins as no other id does; the control log is no run.

    Raises:
        RunNotFoundError: no id begins like this.
        AmbiguousRunError: several do.
    """
    if typed == CONTROL_RUN_ID:
        raise RunNotFoundError(typed)
    return find_log(guard, typed)


def find_log(guard: Guard, typed: str) -> str:
    """The same, where `control` is as good as a run.

    Raises:
        RunNotFoundError: no id begins like this.
        AmbiguousRunError: several do.
    """
    checked_id(typed, "RUN")
    store = guard.components.store
    if typed == CONTROL_RUN_ID or store.row(typed) is not None:
        return typed
    found = beginning(store, typed)
    if not found:
        raise RunNotFoundError(typed)
    if len(found) > 1:
        some = ", ".join(found[:MOST_NAMED]) + (", ..." if len(found) > MOST_NAMED else "")
        raise AmbiguousRunError(f"several runs begin with {typed!r}: {some}; type more of the id")
    return found[0]


def beginning(store: EventStore, typed: str) -> list[str]:
    """Return ids of runs that begin so and are longer, in their order: at most one more than are named."""
    found: list[str] = []
    _, after = store.neighbours(typed)
    while after is not None and after.startswith(typed) and len(found) <= MOST_NAMED:
        found.append(after)
        _, after = store.neighbours(after)
    return found


def checked_id(typed: str, what: str) -> str:
    """What was typed, if it can be an id at all."""
    try:
        return check_id(typed, what)
    except ValueError as error:
        raise UsageError(str(error)) from error


def short_ids(ids: Iterable[str], store: EventStore) -> dict[str, str]:
    """Each id with a beginning of it that no other run of the store has; only UUIDs are shortened.

    Ids made by agentguard begin with the time, so that those of one minute have much in common.
    """
    return {run_id: _shortened(run_id, store) for run_id in ids}


def _shortened(own: str, store: EventStore) -> str:
    if len(own) != _UUID_LENGTH or own.count("-") != 4:
        return own
    length = _SHORTEST
    for other in store.neighbours(own):
        while other is not None and other.startswith(own[:length]) and length < len(own):
            length += 1
    return own[:length]


def complete_run(incomplete: str) -> list[tuple[str, str]]:
    """Ids for the shell's completion, newest first; nothing where there is no store."""
    try:
        with reading() as guard:
            runs = [(s.run_id, f"{s.name} {s.state}") for s in guard.runs(limit=50)]
    except Exception:  # noqa: BLE001 - a shell that completes must not see a traceback
        return []
    return [run for run in runs if run[0].startswith(incomplete)]
