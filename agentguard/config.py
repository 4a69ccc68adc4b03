"""Settings and URLs to components: the only file that knows every backend, and each by dotted path alone."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from agentguard._clock import Clock
from agentguard._home import default_home, sqlite_path, store_url
from agentguard._loading import load
from agentguard._optional import require
from agentguard._secrets.urls import public_url, url_parts, with_options
from agentguard.budget.rules import BudgetRule, BudgetRules, budget_rules, parse_budget
from agentguard.protocols import EventStore, KillSwitch, abilities_of
from agentguard.tenancy import check_id


class _Backend(NamedTuple):
    module: str
    name: str


_STORES = {
    "memory": _Backend("agentguard.stores.memory", "MemoryEventStore"),
    "file": _Backend("agentguard.stores.jsonl", "JsonlEventStore"),
    "sqlite": _Backend("agentguard.stores.sqlite", "SQLiteEventStore"),
    "postgresql": _Backend("agentguard.stores.postgres", "PostgresEventStore"),
}
_SWITCHES = {
    "memory": _Backend("agentguard.killswitch.memory", "MemoryKillSwitch"),
    "page": _Backend("agentguard.killswitch.page", "PageKillSwitch"),
}
_NETWORK = _Backend("agentguard.killswitch.network", "NetworkKillSwitch")
_NETWORK_SCHEMES = ("redis", "rediss", "unix", "postgresql", "postgres")


def home() -> Path:
    """The state directory: `AGENTGUARD_HOME`, else the platform's user state directory."""
    return default_home()


def open_store(
    url: str | None, durability: str | None, clock: Clock, store_timeout: float | None = None
) -> EventStore:
    """The event store of a URL; by default `AGENTGUARD_STORE`, else SQLite in the state directory.

    Raises:
        ValueError: the URL names no store, or asks `memory://` for a durability it has not.
    """
    url = url or store_url()
    check_store(url, durability)
    scheme = urlsplit(url).scheme
    if scheme == "postgresql":
        require("psycopg", extra="postgres", feature="an event store in PostgreSQL")
    backend = _load(_STORES[scheme])
    store: EventStore
    if scheme == "memory":
        store = backend(clock=clock)
    elif scheme == "file":
        store = backend(export_path(url), clock=clock)
    elif scheme == "postgresql":
        server, options = postgres_options(url)
        if store_timeout is not None:
            options["store_timeout"] = store_timeout
        store = backend(server, clock=clock, **options)
    else:
        options = sqlite_options(url)
        if store_timeout is not None:
            options["store_timeout"] = store_timeout
        store = backend(sqlite_path(url), durability=durability or "process", clock=clock, **options)
    return store


def check_store(url: str, durability: str | None) -> None:
    """Refuse a URL that names no store, and a promise that its store cannot keep.

    Raises:
        ValueError: the URL names no store, has an option that cannot be meant, or asks `memory://` for a
            durability it has not.
    """
    scheme = url_parts(url).scheme
    if scheme not in _STORES:
        raise ValueError(f"no event store for {public_url(url)!r}; known are {_known(_STORES)}")
    if scheme == "postgresql":
        postgres_options(url)
    if scheme != "memory":
        return
    if url != "memory://":
        raise ValueError(f"{url!r}: memory:// takes no name and no options; it is one guard's own")
    if durability is not None:
        raise ValueError(
            f"memory:// promises nothing across the process's death, so durability="
            f"{durability!r} is refused; use sqlite:///path, or leave durability out"
        )


def export_path(url: str) -> Path:
    """The file of `file:///path/run.jsonl`; where there is none, that path from the current directory.

    Raises:
        ValueError: there is no path, or the URL has a host.
    """
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.strip("/"):
        raise ValueError(f"{url!r} names no file; write file:///path/run.jsonl")
    absolute, relative = Path("/" + path.lstrip("/")), Path(path.lstrip("/"))
    return relative if relative.exists() and not absolute.exists() else absolute


def sqlite_options(url: str) -> dict[str, Any]:
    """What follows the `?` of a SQLite URL: `store_timeout=SECONDS`.

    Raises:
        ValueError: another option, or no number.
    """
    options: dict[str, Any] = {}
    for name, value in parse_qsl(url.partition("?")[2], keep_blank_values=True):
        if name != "store_timeout":
            raise ValueError(f"{url!r}: sqlite:// has no option {name!r}; known is store_timeout")
        try:
            options[name] = float(value)
        except ValueError:
            raise ValueError(f"{url!r}: store_timeout must be seconds, not {value!r}") from None
    return options


def postgres_options(url: str) -> tuple[str, dict[str, Any]]:
    """A PostgreSQL URL as the driver takes it, and our own options of those after its `?`.

    They are `store_timeout=SECONDS`, `connections=NUMBER` and `tenant=ID`.

    Raises:
        ValueError: one of ours has a value that cannot be meant.
    """
    kinds: dict[str, Any] = {"store_timeout": float, "connections": int, "tenant": _tenant}
    parts = url_parts(url)
    options: dict[str, Any] = {}
    others = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in kinds:
            others.append((name, value))
            continue
        try:
            options[name] = kinds[name](value)
        except ValueError as error:
            said = str(error) if name == "tenant" else f"{name} must be a number, not {value!r}"
            raise ValueError(f"{public_url(url)!r}: {said}") from None
    return with_options(parts, others), options


def _tenant(value: str) -> str:
    """The tenant that a URL narrows its store to; an empty one is refused, and does not mean all of them."""
    return check_id(value, "tenant")


def open_switch(setting: str | KillSwitch | None, clock: Clock, store: EventStore) -> KillSwitch:
    """The kill switch of a setting: `page`, `memory`, a URL of a server, or an object of yours.

    The default is `page`, and the store's own server where the store is one of many hosts.  A store that
    has a switch of its own, as an export has, brings it.

    Raises:
        ValueError: nothing is known by that name.
    """
    abilities = abilities_of(store)
    if setting is None and abilities.switch is not None:
        return abilities.switch
    setting = setting or os.environ.get("AGENTGUARD_KILL_SWITCH") or abilities.switch_url or "page"
    if not isinstance(setting, str):
        return setting
    check_switch(setting)
    if urlsplit(setting).scheme in _NETWORK_SCHEMES:
        network: KillSwitch = _load(_NETWORK)(setting, home(), clock=clock)
        return network
    name = setting.removesuffix("://")
    backend = _load(_SWITCHES[name])
    switch: KillSwitch = backend(home(), clock=clock) if name == "page" else backend(clock=clock)
    return switch


def check_switch(setting: str) -> None:
    """Refuse a setting that names no kill switch.

    Raises:
        ValueError: nothing is known by that name.
    """
    if url_parts(setting).scheme in _NETWORK_SCHEMES or setting.removesuffix("://") in _SWITCHES:
        return
    known = f"{_known(_SWITCHES)}, {', '.join(f'{scheme}://' for scheme in _NETWORK_SCHEMES)}"
    several = "sentinel" in setting or "cluster" in setting
    hint = "; Redis Sentinel and Redis Cluster are not supported: name one server" if several else ""
    raise ValueError(f"no kill_switch {public_url(setting)!r}; known are {known}{hint}")


def check_ledger(setting: object) -> None:
    """Refuse a ledger apart from the store, which earlier versions had.

    Raises:
        ValueError: `ledger=` or `AGENTGUARD_LEDGER` asks for one.
    """
    if setting is not None or os.environ.get("AGENTGUARD_LEDGER"):
        named = "AGENTGUARD_LEDGER is set" if setting is None else "ledger= is given"
        raise ValueError(
            f"{named}, but there is no ledger apart from the store any more: the budgets of tenants lie in "
            "the store, in one act with each event; for many hosts, give them one store (postgresql://...)"
        )


def outside_budgets() -> BudgetRules:
    """Return the budgets of runs that name none, as they are set outside the code.

    `AGENTGUARD_BUDGET` is for every run.  Without it they are in the first of these files that has any:
    `agentguard.toml` in the state directory (`[budgets]`); then, from the current directory upwards,
    `agentguard.toml` or `pyproject.toml` (`[tool.agentguard.budgets]`).

    Raises:
        ValueError: the variable or the file cannot be read, or says what cannot be right.
    """
    if text := os.environ.get("AGENTGUARD_BUDGET"):
        budget = parse_budget(text, "AGENTGUARD_BUDGET")
        return BudgetRules((BudgetRule("*", "*", "*", budget),), "AGENTGUARD_BUDGET")
    for path in _settings_files():
        table = _budgets_table(path)
        if table is not None:
            return budget_rules(table, str(path))
    return BudgetRules((), "")


def _settings_files() -> Iterator[Path]:
    yield home() / "agentguard.toml"  # first: what works in the current directory might write the others
    try:
        here = Path.cwd()
    except OSError:  # the directory is gone
        return
    for folder in (here, *here.parents):
        yield folder / "agentguard.toml"
        yield folder / "pyproject.toml"


def _budgets_table(path: Path) -> Any:
    """Return the table of budgets in a file, or None where it has none."""
    project = path.name == "pyproject.toml"
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if project and isinstance(error, PermissionError):
            return None  # of a directory further up, which is somebody else's
        raise ValueError(f"{path} cannot be read: {error}") from error
    if project and b"tool.agentguard" not in text:
        return None  # most of them; reading it all takes time
    # Imported here, since most programs have no such file, and some have to start fast.
    loads = load("tomllib").loads
    try:
        settings: dict[str, Any] = loads(text.decode())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if project:
        settings = settings.get("tool", {}).get("agentguard", {})
    unknown = sorted(set(settings) - {"budgets"})
    if unknown:
        likely = difflib.get_close_matches(unknown[0], ["budgets"], n=1)
        hint = f"did you mean {likely[0]!r}?" if likely else "known is budgets"
        raise ValueError(f"{path}: there is no setting {unknown[0]!r}; {hint}")
    return settings.get("budgets")


def open_telemetry(setting: Any) -> Any:
    """The telemetry of a setting: True (OpenTelemetry's global providers), False, or an object."""
    if setting is True:
        return _load(_Backend("agentguard.telemetry.spans", "Telemetry"))()
    return setting or None


def _load(backend: _Backend) -> Any:
    return getattr(load(backend.module), backend.name)


def _known(backends: dict[str, _Backend]) -> str:
    return ", ".join(name if backends is _SWITCHES else f"{name}://" for name in backends)
