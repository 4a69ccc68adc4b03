"""A loss of power under `durability="power"`, simulated: what the disk is sure to hold, and no more.

A process that works keeps, in its own memory, an image of the database and its WAL as they were when the
last fsync began: that is all that the disk is sure to have.  When "the power fails", the image is put down
as a home of its own, together with every step that a caller had been told of by then.  What was written
after that fsync may have reached the disk or not, in any order: some images get a random choice of those
sectors on top.

It shows that nothing is reported before an fsync that began after it was written has ended, and that what
is found then is whole.  It does not show what drives do that lie about an fsync, and takes SQLite's own
word for its checkpoints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import agentguard
from agentguard import Guard
from agentguard.sessions.recovered import check_owner
from tests.scale import scaled

SOURCE = Path(agentguard.__file__).parents[1]

WORKER = r"""
import asyncio, json, os, random, sys, threading
from pathlib import Path
from agentguard import *
from agentguard.stores import _sqlite_file, _wal_sync

durability, seed, shape, target = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
rng = random.Random(seed)
db = os.path.join(os.environ["AGENTGUARD_HOME"], "agentguard.db")
lock = threading.Lock()
began, reported = [], []
image = (b"", b"")  # as of the beginning of the last fsync that has ended
limit = rng.randrange(2, 60)
failed = threading.Event()

if shape == "checkpoints":  # many, so that the WAL is begun anew in between
    _sqlite_file._CHECKPOINT_PAGES = 10

def files():
    return tuple(Path(db + end).read_bytes() if Path(db + end).exists() else b"" for end in ("", "-wal"))

really_sync = _wal_sync._sync_file

def sync(fd):
    global image
    before = files()
    really_sync(fd)
    with lock:
        if not failed.is_set():
            image = before

_wal_sync._sync_file = sync

def begin():
    '''A body has begun: its start is promised to be on the disk.'''
    key = current_step().key
    with lock:
        if not failed.is_set():
            began.append(key)
    return key

def report(key):
    '''A caller was told that a step is done; at some such moment the power fails.'''
    with lock:
        if failed.is_set():
            return
        reported.append(key)
        if len(reported) >= limit:
            put_down()
            failed.set()

def put_down():
    now = files()
    target.mkdir()
    (target / "agentguard.db").write_bytes(image[0])
    (target / "agentguard.db-wal").write_bytes(with_some_of(image[1], now[1]))
    (target / "seen").write_text(json.dumps([began, reported]))

def with_some_of(synced, later):
    '''The synced WAL, and of what was written after it whichever sectors happened to reach the disk.'''
    if seed % 2 or later[:32] != synced[:32] or len(later) < len(synced):
        return synced
    rest = bytearray(later[len(synced):])
    for start in range(0, len(rest), 512):
        if rng.random() < 0.5:
            rest[start:start + 512] = bytes(len(rest[start:start + 512]))
    return synced + rest

@guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
def tool(text):
    return begin()

@guarded_step(reserve=Usage(coins=3), usage=lambda _: Usage(coins=2))
async def atool(text):
    return begin()

def works():
    while not failed.is_set():
        report(tool("x" * rng.randrange(3000)))

async def all_at_once():
    async def one():
        while not failed.is_set():
            report(await atool("x"))
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(one())

guard = Guard.open(durability=durability, telemetry=False)
if shape == "tenant":
    guard.set_tenant_budget("acme", Budget(coins=10**6))
run = guard.run("r", run_id="r", tenant="acme").__enter__()
if shape == "async":
    asyncio.run(all_at_once())
elif shape == "threads":
    threads = [threading.Thread(target=run.bind(works)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
else:
    works()
os._exit(0)
"""


def lose_power(home: Path, target: Path, *arguments: object) -> tuple[list[str], list[str]]:
    """Let a worker run until its power fails; gives the keys of what had begun and was reported by then."""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", WORKER, *map(str, arguments), str(target)],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "AGENTGUARD_HOME": str(home)},
    )
    began, reported = json.loads((target / "seen").read_text())
    assert set(reported) <= set(began)
    return began, reported


def keys(guard: Guard, event_type: str) -> set[str]:
    return {event.key for event in guard.history("r") if event.type == event_type}


def check_after_power_loss(monkeypatch, tmp_path: Path, number: int, shape: str) -> None:
    home, target = tmp_path / f"home{number}", tmp_path / f"after{number}"
    home.mkdir()
    began, reported = lose_power(home, target, "power", number, shape)
    assert len(reported) >= 2
    monkeypatch.setenv("AGENTGUARD_HOME", str(target))
    with Guard.open(telemetry=False) as guard:
        assert guard.verify()
        completed = keys(guard, "step_completed")
        assert set(began) <= keys(guard, "step_started")
        assert set(reported) <= completed
        assert guard.reconstruct("r").usage["coins"] == 2 * len(completed)
        account = guard.components.store.accounts(["tenant:acme"]).get("tenant:acme")
        assert (account is not None) is (shape == "tenant")
        if account is not None:
            assert account.spent["coins"] == 2 * len(completed)
        check_owner(guard.components.store.row("r"), 0, take_over=False)  # seen as dead
        with guard.attach("r", branch="next") as run:
            run.call("helps", lambda: None)
        guard.kill(run="r", reason="its host has lost power")
        assert str(guard.summary("r").state) == "KILLED"
        assert guard.verify()


@pytest.mark.parametrize("shape", ["alone", "threads", "async", "checkpoints", "tenant"])
def test_what_was_reported_under_power_is_on_the_disk(monkeypatch, tmp_path, shape):
    for number in range(2):
        check_after_power_loss(monkeypatch, tmp_path, number, shape)


@pytest.mark.long
@pytest.mark.parametrize("shape", ["alone", "threads", "async", "checkpoints", "tenant"])
def test_what_was_reported_under_power_is_on_the_disk_at_forty_moments(monkeypatch, tmp_path, shape):
    for number in range(scaled(40)):
        check_after_power_loss(monkeypatch, tmp_path, number, shape)


def test_under_process_the_simulation_loses_what_was_reported(monkeypatch, tmp_path):
    """So that it is known to be able to fail."""
    (tmp_path / "home").mkdir()
    _, reported = lose_power(tmp_path / "home", tmp_path / "after", "process", 1, "alone")
    assert reported
    monkeypatch.setenv("AGENTGUARD_HOME", str(tmp_path / "after"))
    with Guard.open(telemetry=False) as guard:
        assert guard.runs() == []
