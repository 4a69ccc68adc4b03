"""Faults done for real: a full disk, a home that cannot be written, a database that another holds.

Each asks the same: a clear error; the step refused, its body not run; nothing lost that was reported
durable; accounts and log agree; the next process can carry on.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import agentguard
from agentguard import (
    Budget,
    Guard,
    KillSwitchUnavailableError,
    RunState,
    StoreUnavailableError,
    Usage,
    guarded_step,
)
from tests.integration.faults import agree, tool

SOURCE = Path(agentguard.__file__).parents[1]

#: What the programs that run in fresh processes begin with.
PRELUDE = """
import os, resource, sqlite3, subprocess, sys
from collections import Counter
from agentguard import *
from agentguard.runs.summary import from_data

began, returned = [], []

@guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2), effect="read")
def tool(text=""):
    began.append(current_step().key)
    return current_step().key

def call(text=""):
    returned.append(tool(text))

def refused(work, *words, error=StoreUnavailableError):
    '''It raises, says each word, and runs no body.'''
    before = len(began)
    try:
        work()
    except error as caught:
        assert all(word in str(caught) for word in words), caught
    else:
        raise AssertionError("not refused")
    assert len(began) == before, "the body ran"

def until_refused(text):
    '''Steps until the store refuses one, whose body may have run if only its outcome was refused.'''
    for _ in range(10_000):
        try:
            call(text)
        except StoreUnavailableError as error:
            return str(error)
    raise AssertionError("never refused")

def intact(guard, run_id):
    '''Log, row and accounts agree, and the log has all that bodies and callers saw.'''
    assert guard.verify(), guard.verify()
    events = guard.history(run_id)
    started = [e.key for e in events if e.type == "step_started"]
    completed = {e.key for e in events if e.type == "step_completed"}
    assert set(began) <= set(started) and set(returned) <= completed, (began, returned, events)
    assert len(began) == len(set(began)), "a body ran twice"
    spent = Counter()
    for event in events:
        if event.type in ("step_completed", "step_failed", "step_resolved") and event.usage is not None:
            spent.update(event.usage.amounts())
    assert +spent == +Counter(guard.reconstruct(run_id).usage.amounts()), (spent, events)
    row = guard.components.store.row(run_id)
    if row.ended_ns is not None:
        assert guard.reconstruct(run_id) == from_data(row.summary)
    account = guard.components.store.accounts(["tenant:acme"]).get("tenant:acme")
    if account is not None:
        assert +Counter(account.spent) == +spent
        resolved = [e.key for e in events if e.type == "step_resolved"]
        assert account.reserved.get("coins", 0) == 3 * (len(started) - len(completed) - len(resolved))

def next_process(program):
    subprocess.run([sys.executable, "-W", "error", "-c", PRELUDE + program], check=True)
"""

RECOVERS = """
guard = Guard.open(telemetry=False)
with guard.recover("r") as run:
    for text in run.inputs:
        call(text)
began.clear()  # what is read again is a second attempt
intact(guard, "r")
assert guard.summary("r").state == "COMPLETED"
"""


def in_fresh_process(program: str, *arguments: object, wrapper: tuple[str, ...] = ()) -> str:
    """Run a program that does its own asserting, and give what it said."""
    ran = subprocess.run(
        [*wrapper, sys.executable, "-W", "error", "-c", f"PRELUDE = {PRELUDE!r}" + PRELUDE + program]
        + [*map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return ran.stdout


# --- a full disk -------------------------------------------------------------------------------------

FULL_DISK = """
guard = Guard.open(telemetry=False)
guard.set_tenant_budget("acme", Budget(coins=10**6)) if sys.argv[1] == "tenant" else None
text = "x" * 3000
run = guard.run("r", run_id="r", tenant="acme", inputs=[text] * 3).__enter__()
call(text)
limit()
said = until_refused(text)
assert os.path.basename(guard.components.store.path) in said and WORDS in said, said
refused(lambda: call(text), WORDS)
refused(run.pause, WORDS)
assert run.state == "RUNNING", run.state
intact(guard, "r")
make_room()
call(text)
run.close()
assert guard.summary("r").state == run.state == "COMPLETED"
intact(guard, "r")
next_process('''
guard = Guard.open(telemetry=False)
intact(guard, "r")
with guard.run("s"):
    call()
''')
"""

BY_FILE_SIZE = """
WORDS = "the disk failed to read or write it"
def limit():
    # The system's own limit on the size of files, which each write beyond meets as EFBIG.
    wal = os.path.getsize(guard.components.store.path + "-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(wal, 60_000) + 50_000, resource.RLIM_INFINITY))
def make_room():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
"""

BY_FILE_SYSTEM = """
WORDS = "the disk is full"
home = os.environ["AGENTGUARD_HOME"]
def limit():
    # The disk has 4 MB; this leaves a few pages.
    with open(home + "/ballast", "wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            ballast.truncate(os.path.getsize(home + "/ballast") - 60_000)
def make_room():
    os.unlink(home + "/ballast")
"""

#: The program in a file system of its own, 4 MB in memory, which goes with it.
TMPFS = (
    *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c"),
    'mount -t tmpfs -o size=4m,mode=700 none "$AGENTGUARD_HOME" && exec "$@"',
    "sh",
)


def can_mount(home: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*TMPFS, "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("charged", ["run", "tenant"])
def test_a_full_disk_refuses_steps_until_there_is_room(home, charged):
    """A small file system of its own, where the system lets us have one."""
    if not can_mount(home):
        pytest.skip("no user namespaces here to mount a small file system in")
    in_fresh_process(BY_FILE_SYSTEM + FULL_DISK, charged, wrapper=TMPFS)


@pytest.mark.parametrize("charged", ["run", "tenant"])
def test_a_file_that_may_not_grow_refuses_steps_until_it_may(home, charged):
    """RLIMIT_FSIZE: everywhere, and with writes that end in the middle of a page."""
    in_fresh_process(BY_FILE_SIZE + FULL_DISK, charged)


@pytest.mark.parametrize("charged", ["run", "tenant"])
def test_under_power_a_full_disk_refuses_steps_and_loses_nothing_that_was_reported(home, charged):
    """Once there is room, this process goes on too."""
    in_fresh_process(
        BY_FILE_SIZE
        + """
guard = Guard.open(telemetry=False, durability="power")
guard.set_tenant_budget("acme", Budget(coins=10**6)) if sys.argv[1] == "tenant" else None
texts = ["x" * 3000] * 60
run = guard.run("r", run_id="r", tenant="acme", inputs=texts).__enter__()
limit()
until_refused(texts[0])
before = list(returned)
refused(lambda: call(texts[0]))
refused(run.close)
make_room()
with guard.run("s"):  # not charged to the tenant, whose account is counted below
    call(texts[0])
""",
        charged,
    )
    in_fresh_process(
        """
guard = Guard.open(telemetry=False)
assert guard.reconstruct("r").state == "RUNNING"
intact(guard, "r")
"""
        + RECOVERS
        + "assert sum(e.type == 'step_completed' for e in guard.history('r')) == 60\n"
    )


# --- a home that cannot be written -------------------------------------------------------------------


def test_a_home_that_is_no_directory_refuses_and_is_named(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("AGENTGUARD_HOME", str(tmp_path / "home"))
    with (
        Guard.open(telemetry=False) as guard,
        pytest.raises((StoreUnavailableError, KillSwitchUnavailableError), match=r"Not a directory|home"),
        guard.run("r"),
    ):
        pytest.fail("entered")


def test_a_read_only_home_refuses_runs_and_says_whose_rights(home):
    """Under another user's id where we are root, for whom no rights hold."""
    with Guard.open(telemetry=False) as guard, guard.run("r", run_id="r"):
        tool([])
    for path in (home, *home.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in home.parents:
        if parent.stat().st_uid == os.getuid() and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    said = in_fresh_process("""
import tempfile, agentguard.killswitch.page
# Imports what another user may not read.
warm = Guard.open("sqlite:///" + tempfile.mkdtemp() + "/warm.db", kill_switch="memory", telemetry=False)
with warm.run("warm"):
    call()
warm.verify()
warm.runs()
warm.close()
if os.getuid() == 0:
    os.setuid(65534)
guard = Guard.open(telemetry=False)
def use():
    with guard.run("s"):
        call()
for _ in range(2):
    refused(use, os.environ["AGENTGUARD_HOME"], error=(StoreUnavailableError, KillSwitchUnavailableError))
refused(guard.runs, "it is read-only here; check the rights of this user")
print("refused")
""")
    assert said == "refused\n"
    for path in (home, *home.rglob("*")):
        path.chmod(0o755)
    with Guard.open(telemetry=False) as guard:
        agree(guard, "r", 1)
        with guard.run("s"):
            tool([])


# --- a database that another holds -------------------------------------------------------------------


def test_a_database_locked_beyond_the_timeout_refuses_and_names_who_holds_it(home, sqlite_guard):
    store = sqlite_guard.components.store
    store._timeout = 0.05
    began: list[str] = []
    other = sqlite3.connect(store.path, isolation_level=None)
    with sqlite_guard.run("r", run_id="r", tenant="acme") as run:
        tool(began)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=r"locked for 0\.05 s by .*store_timeout"):
                tool(began)
        assert len(began) == 1
        assert run.state is RunState.RUNNING
        other.execute("ROLLBACK")
        tool(began)
    other.close()
    agree(sqlite_guard, "r", 2)


def test_a_lock_held_by_another_process_while_a_body_runs_loses_its_outcome_alone(home, sqlite_guard):
    """The start is on record; that the body returned is not, and the caller is told so."""
    sqlite_guard.set_tenant_budget("acme", Budget(coins=100))
    store = sqlite_guard.components.store
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "for order in sys.stdin: c.execute(order); print('done', flush=True)",
            store.path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def order(sql: str) -> None:
        holder.stdin.write(sql + "\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "done\n"

    @guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
    def holds() -> None:
        store._timeout = 0.05
        order("BEGIN IMMEDIATE")

    with sqlite_guard.run("r", run_id="r", tenant="acme") as run:
        with pytest.raises(StoreUnavailableError, match=rf"by process {holder.pid}"):
            holds()
        order("ROLLBACK")
        store._timeout = 30.0
        tool([])
        assert run.spent["coins"] == 2
    holder.communicate()
    agree(sqlite_guard, "r", 1)
    account = store.accounts(["tenant:acme"])["tenant:acme"]
    assert (account.spent["coins"], account.reserved["coins"]) == (2, 3), (
        "what may have been used stays reserved"
    )
