"""Runs of many steps and stores of many runs: memory stays bounded, and list and verify stay quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import agentguard
from tests.scale import scaled

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SOURCE = Path(agentguard.__file__).parents[1]

PRELUDE = """
import json, os, resource, sys, time
from agentguard import *

def rss():
    '''Resident memory now, in MB.'''
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

@guarded_step(reserve=Usage(coins=2), usage=lambda _: Usage(coins=1))
def tool(n):
    return n
"""

ONE_RUN = """
steps, parts = int(sys.argv[1]), 10
seconds, memory = [], []
guard = Guard.open(telemetry=False, durability=sys.argv[2])
with guard.run("long", run_id="long", budget=Budget(coins=10**9)) as run:
    for part in range(parts):
        began = time.process_time()
        for n in range(steps // parts):
            tool(n)
        seconds.append(time.process_time() - began)
        memory.append(rss())
summary = guard.summary("long")
verifying = time.perf_counter()
report = guard.verify("long")
verifying = time.perf_counter() - verifying
listing = time.perf_counter()
assert [row.run_id for row in guard.runs()] == ["long"]
listing = time.perf_counter() - listing
assert guard.reconstruct("long") == summary
print(json.dumps({
    "seconds": seconds, "memory": memory, "after": rss(), "steps": summary.steps, "coins": summary.usage["coins"],
    "verified": bool(report), "verifying": verifying, "listing": listing,
}))
"""

MANY_RUNS = """
runs = int(sys.argv[1])
memory = []
guard = Guard.open(telemetry=False)
for number in range(runs):
    with guard.run("short", run_id=f"r{number}", tenant=f"t{number % 7}", budget=Budget(coins=10)):
        tool(number)
    if number % (runs // 10) == 0:
        memory.append(rss())
listing = time.perf_counter()
listed = [row.run_id for row in guard.runs()]
listing = time.perf_counter() - listing
assert listed == [f"r{number}" for number in range(runs - 1, runs - 51, -1)]
tenant = time.perf_counter()
assert len(guard.runs(tenant="t3", state="COMPLETED")) == 50
tenant = time.perf_counter() - tenant
verifying = time.perf_counter()
report = guard.verify()
verifying = time.perf_counter() - verifying
print(json.dumps({
    "memory": memory, "after": rss(), "listing": listing, "tenant": tenant, "verified": bool(report),
    "verifying": verifying,
}))
"""


def measure(program: str, *arguments: object) -> dict:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


STEPS = scaled(1_000_000)
RUNS = scaled(10_000, at_least=1000)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_run_of_very_many_steps(home):
    """Neither memory nor the time of a step grows with the number of steps before it."""
    found = measure(ONE_RUN, STEPS)
    assert found["verified"]
    assert (found["steps"], found["coins"]) == (STEPS, STEPS)
    assert found["memory"][-1] - found["memory"][0] < 25
    assert found["after"] - found["memory"][0] < 100, "verify and reconstruct stream"
    # CPU time, and the quickest of each half, since other programs are at work too.
    assert min(found["seconds"][5:]) < 1.5 * min(found["seconds"][:5])
    assert found["verifying"] < STEPS / 4000
    assert found["listing"] < 0.5, "a list reads the row of a run that has ended, not its events"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_very_many_runs(home):
    found = measure(MANY_RUNS, RUNS)
    assert found["verified"]
    assert found["after"] - found["memory"][1] < 60
    assert found["memory"][-1] - found["memory"][1] < 25
    assert found["listing"] < 0.5
    assert found["tenant"] < 0.5
    assert found["verifying"] < 60
