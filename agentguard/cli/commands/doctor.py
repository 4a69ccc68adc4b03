"""`agentguard doctor`: is everything here as it should be, and if not, what to do about it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from agentguard import _process, config
from agentguard._home import store_url
from agentguard._secrets.urls import public_url
from agentguard.audit.verify import AccountFault, verify_all
from agentguard.cli import deployment, exit_codes, lookup, output
from agentguard.cli.app import app
from agentguard.cli.findings import FAULT, NOTE, OK, Finding
from agentguard.cli.options import HomeOption, JsonOption, StoreOption
from agentguard.errors import AgentGuardError
from agentguard.guard import Guard
from agentguard.killswitch import kill_requests
from agentguard.killswitch.network import folder_of
from agentguard.protocols import abilities_of
from agentguard.sessions.abandoned import AbandonedStep, charge_abandoned, find_abandoned
from agentguard.stores._checkpointer import wal_size
from agentguard.stores._sqlite_errors import RAISED
from agentguard.stores._sqlite_file import known_schema

_LITTLE_SPACE = 100 * 2**20
_LARGE_WAL = 64 * 2**20
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+).*;.*\bextra == ['\"]([^'\"]+)['\"]")
_STYLES = {OK: "green", NOTE: "yellow", FAULT: "bold red"}


@app.command(epilog="--json: {ok, checks: [{check, status, detail}]}; status is ok, note or FAULT.")
def doctor(  # noqa: PLR0917 - Typer's options
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Rebuild the kill page from the control log; charge abandoned steps."),
    ] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="With --repair: even where control records were lost.")
    ] = False,
    rebuild_ledger: Annotated[bool, typer.Option("--rebuild-ledger", hidden=True)] = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this installation, its state directory, store and kill switch; ends with 1 at a fault."""
    lookup.use(store, home)
    if rebuild_ledger:
        raise exit_codes.UsageError(
            "there is no ledger apart from the store any more, so nothing to rebuild: the budgets of tenants "
            "lie in the store"
        )
    code = _report(repair=repair, accept_loss=accept_loss, as_json=as_json)
    raise typer.Exit(code)


def _report(*, repair: bool, accept_loss: bool, as_json: bool) -> int:
    """Examine everything and give the exit code."""
    if accept_loss and not repair:
        raise exit_codes.UsageError("--accept-loss goes with --repair")
    findings = []
    console = output.console()
    for finding in examine(repair=repair, accept_loss=accept_loss):
        findings.append(finding)
        if not as_json:  # at once: a server that does not answer takes its time
            check, status, detail = finding
            line = Text().append(f"{status:<6}", style=_STYLES[status]).append(f"{check:<14}", style="bold")
            console.print(line.append(output.one_line(detail)), soft_wrap=True)
    ok = not any(finding.status == FAULT for finding in findings)
    if as_json:
        output.print_json({"ok": ok, "checks": [finding._asdict() for finding in findings]})
    return exit_codes.OK if ok else exit_codes.FAULT


def examine(*, repair: bool = False, accept_loss: bool = False) -> Iterator[Finding]:
    """Look at everything; nothing is made that is not there.

    Args:
        repair: rebuild a kill page that is damaged, and charge steps that dead processes left in ended runs.
        accept_loss: with `repair`, also where the page shows that control records were lost.
    """
    yield from _python()
    yield from _environment()
    yield _budgets()
    home = config.home()
    yield from _home(home)
    kills = home
    try:
        server = lookup.kill_server()
    except exit_codes.UsageError as error:
        server = None
        yield Finding("kill server", FAULT, str(error))
    if server is not None:
        kills = folder_of(server, home)
    if repair:
        yield from deployment.repair_page(kills, accept_loss=accept_loss)
        yield from _charge_abandoned()
    yield from _store()
    if server is not None:
        yield from deployment.kill_server(server)
    yield from deployment.kill_page(kills, is_copy=server is not None)
    yield from deployment.live_files(kills)
    yield from _extras()
    yield _telemetry()


def _python() -> Iterator[Finding]:
    python = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    yield Finding("python", OK, f"{python}, SQLite {sqlite3.sqlite_version}")
    names = ("agentguard", "msgspec", "wrapt", "opentelemetry-api")
    yield Finding("versions", OK, ", ".join(f"{name} {_version(name) or 'missing'}" for name in names))


def _environment() -> Iterator[Finding]:
    ours = {name: value for name, value in os.environ.items() if name.startswith("AGENTGUARD_")}
    said = ", ".join(f"{name}={_shown(name, value)}" for name, value in sorted(ours.items()))
    yield Finding("environment", OK, said or "no AGENTGUARD_ variable is set")


def _shown(name: str, value: str) -> str:
    """Return a setting without what is secret in it: people show these lines to others."""
    if "://" not in value:
        return value
    try:
        shown = public_url(value)
    except ValueError:
        return "(no URL)"
    return "/".join(shown.split("/")[:3]) if "WEBHOOK" in name else shown  # its path lets anybody in


def _budgets() -> Finding:
    """What runs may use whose code names no budget."""
    try:
        found = config.outside_budgets()
    except ValueError as error:
        return Finding(
            "budgets", FAULT, f"{error}; mend it there, until then runs that name no budget are refused"
        )
    if not found.rules:
        return Finding("budgets", OK, "none is set outside the code: runs that name none have no limits")
    said = "; ".join(f"{rule.key}: {output.limits(rule.budget)}" for rule in found.rules)
    return Finding("budgets", OK, f"{said} (from {found.source}; for runs that name none)")


def _home(home: Path) -> Iterator[Finding]:
    try:
        info = home.stat()
    except FileNotFoundError:
        yield Finding("home", OK, f"{home} is not there yet; the first run makes it")
        return
    except OSError as error:
        said = f"{home} cannot be read: {error}; give its user the right to, or set AGENTGUARD_HOME"
        yield Finding("home", FAULT, said)
        return
    if not stat.S_ISDIR(info.st_mode):
        yield Finding("home", FAULT, f"{home} is no directory; set AGENTGUARD_HOME to one")
        return
    yield _rights(home, info)
    free = shutil.disk_usage(home).free
    if free < _LITTLE_SPACE:
        said = f"{free // 2**20} MB free under {home}; without room, steps are refused"
        yield Finding("disk", NOTE, f"{said}: free some, or agentguard prune --older-than 90d")


def _rights(home: Path, info: os.stat_result) -> Finding:
    mode = stat.S_IMODE(info.st_mode)
    if hasattr(os, "getuid") and info.st_uid != os.getuid():
        said = f"{home} belongs to uid {info.st_uid}, you are {os.getuid()}"
        return Finding(
            "home", FAULT, f"{said}: work as that user, or set AGENTGUARD_HOME to a directory of yours"
        )
    if mode & 0o077:
        return Finding("home", FAULT, f"{home} is open to others (mode {mode:04o}): chmod 700 {home}")
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return Finding("home", FAULT, f"{home} cannot be written (mode {mode:04o}): chmod 700 {home}")
    return Finding("home", OK, f"{home} (mode {mode:04o})")


def _store() -> Iterator[Finding]:
    try:
        there, file, url = lookup.store_is_there(), lookup.store_file(), store_url()
        if not there:
            yield Finding("store", OK, f"{public_url(url)} is not there yet; the first run makes it")
            return
        with lookup.reading() as guard:
            runs = guard.components.store.rows(limit=1)
            schema = _schema(file) if file is not None else ""
            newest = f"newest run {runs[0].run_id}" if runs else "no runs"
            yield Finding("store", OK, f"{public_url(url)}{schema}, {newest}")
            yield from _file_rights(file)
            yield from _wal(file)
            yield from _indexes(guard)
            yield from _accounts(guard)
            yield from _abandoned(guard)
            yield from _abandoned_steps(guard)
            yield from deployment.helpers(guard)
    except (AgentGuardError, *RAISED) as error:
        way_out = "check --store and the rights to the file, or restore a copy of it"
        yield Finding("store", FAULT, f"{error}; {way_out}" if isinstance(error, RAISED) else str(error))


def _schema(file: Path) -> str:
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    newest = known_schema()
    return f", schema {version}" + ("" if version == newest else f" (the next that writes makes it {newest})")


def _file_rights(file: Path | None) -> Iterator[Finding]:
    if file is None:
        return
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        yield Finding("store file", NOTE, f"{file} can be read by others (mode {mode:04o}): chmod 600 {file}")
    if not os.access(file, os.W_OK):
        said = f"{file} cannot be written (mode {mode:04o}); steps are refused: chmod 600 {file}"
        yield Finding("store file", FAULT, said)


def _wal(file: Path | None) -> Iterator[Finding]:
    size = 0 if file is None else wal_size(str(file))
    if size > _LARGE_WAL:
        pinned = "a reader that stays keeps it from being emptied; end it, or close its transaction"
        yield Finding("store file", NOTE, f"its WAL has {size >> 20} MB: {pinned}")


def _indexes(guard: Guard) -> Iterator[Finding]:
    """Runs that are there and not found."""
    indexed = abilities_of(guard.components.store).indexed
    misfiled = [] if indexed is None else list(indexed.misfiled())
    if misfiled:
        run_id, problem = misfiled[0]
        more = f" (and {len(misfiled) - 1} more)" if len(misfiled) > 1 else ""
        yield Finding("indexes", FAULT, f"run {run_id}: {problem}{more}")


def _accounts(guard: Guard) -> Iterator[Finding]:
    """Budgets that could be spent again, since an account says less than its logs."""
    faults = [
        fault
        for fault in verify_all(guard.components.store, {}, tuple).faults
        if isinstance(fault, AccountFault)
    ]
    if faults:
        more = f" (and {len(faults) - 1} more: agentguard verify)" if len(faults) > 1 else ""
        yield Finding("accounts", FAULT, f"{faults[0]}{more}")


def _abandoned(guard: Guard) -> Iterator[Finding]:
    """Runs that nobody will end."""
    rows = [
        row
        for state in ("CREATED", "RUNNING")
        for row in guard.components.store.rows(state=state, limit=1000)
    ]
    dead = [row.run_id for row in rows if _process.is_alive(row.owner) is False]
    if dead:
        some = ", ".join(dead[:3]) + (", ..." if len(dead) > 3 else "")
        next_step = (
            f"agentguard recover {dead[0]} --module pkg.mod:fn, or give it up: agentguard end {dead[0]}"
        )
        said = f"{len(dead)} not ended though their process is gone: {some}; carry on: {next_step}"
        yield Finding("runs", NOTE, f"{said} --failed TEXT")


def _abandoned_steps(guard: Guard) -> Iterator[Finding]:
    """Steps of ended runs whose reservations nobody will settle."""
    steps = list(find_abandoned(guard.components))
    proven = [step for step in steps if step.proven]
    unseen = [step for step in steps if not step.proven]
    way_out = "agentguard resolve RUN KEY failed, with --free if it cost nothing"
    if proven:
        said = (
            f"{_named(proven)}, though the process is gone; charge them with doctor --repair, or: {way_out}"
        )
        yield Finding("steps", FAULT, said)
    if unseen:
        said = f"{_named(unseen)}, and whether the process lives cannot be told from here; if not: {way_out}"
        yield Finding("steps", NOTE, said)


def _named(steps: list[AbandonedStep]) -> str:
    some = ", ".join(f"{step.run_id} {step.key}" for step in steps[:3]) + (", ..." if len(steps) > 3 else "")
    return f"{len(steps)} of ended runs still hold what they reserved ({some})"


def _charge_abandoned() -> Iterator[Finding]:
    try:
        if not lookup.store_is_there():
            return
        with lookup.reading() as guard:
            if not any(step.proven for step in find_abandoned(guard.components)):
                return
        with lookup.acting() as guard:
            charged = charge_abandoned(guard.components, f"{kill_requests.default_actor()} (doctor)")
    except (AgentGuardError, *RAISED) as error:
        yield Finding("repair", FAULT, f"abandoned steps could not be charged: {error}")
        return
    if charged:
        some = ", ".join(f"{step.run_id} {step.key}" for step in charged[:3])
        yield Finding("repair", OK, f"{len(charged)} abandoned steps were charged what they reserved: {some}")


def _extras() -> Iterator[Finding]:
    wanted: dict[str, list[str]] = {}
    for requirement in _requirements():
        match = _REQUIREMENT.match(requirement)
        if match is not None and match[2] != "all":
            wanted.setdefault(match[2], []).append(match[1])
    found = {extra: all(_version(name) for name in names) for extra, names in wanted.items()}
    yield Finding("extras", OK, _listed(found, there=True) or "none")
    yield Finding("not installed", OK, _listed(found, there=False) or "none")


def _requirements() -> list[str]:
    try:
        return metadata.requires("agentguard") or []
    except metadata.PackageNotFoundError:
        return []


def _listed(found: dict[str, bool], *, there: bool) -> str:
    return ", ".join(extra for extra, installed in sorted(found.items()) if installed is there)


def _telemetry() -> Finding:
    sdk = _version("opentelemetry-sdk")
    if sdk is None:
        return Finding("telemetry", OK, "no OpenTelemetry SDK: spans and metrics go nowhere")
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    where = f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}" if endpoint else "no OTEL_EXPORTER_OTLP_ENDPOINT"
    return Finding("telemetry", OK, f"OpenTelemetry SDK {sdk}; {where}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
