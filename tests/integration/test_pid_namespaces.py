"""Two containers that share a host name and a state directory: a pid of one means nothing in the other.

Each side runs in a PID namespace of its own, which takes root and unshare(1).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agentguard import Guard, RunState
from agentguard.errors import RunOwnedError
from agentguard.killswitch.page import PageKillSwitch

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
AGENT = """
import sys
from agentguard import Guard, guarded_step
@guarded_step(effect="idempotent")
def work(n):
    print(n, flush=True)
    return sys.stdin.readline()
guard = Guard.open(telemetry=False)
with guard.run("job", run_id="job-000001"):
    for n in range(3):
        work(n)
print("ended", flush=True)
"""


def _is_possible() -> bool:
    if shutil.which("unshare") is None or not hasattr(os, "geteuid") or os.geteuid():
        return False
    return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _is_possible(), reason="PID namespaces take root and unshare(1)")


@pytest.fixture
def contained(home: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent in a container, in its first step; each line that it is given ends a step."""
    agent = subprocess.Popen(
        [*CONTAINER, sys.executable, "-c", AGENT],
        env={**os.environ, "AGENTGUARD_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == "0\n"
    yield agent
    agent.kill()
    agent.communicate()


def test_a_live_run_of_another_container_is_not_taken_over(
    contained: subprocess.Popen[str], sqlite_guard: Guard
) -> None:
    with pytest.raises(RunOwnedError), sqlite_guard.recover("job-000001"):
        pytest.fail("it was claimed")
    out, err = contained.communicate("\n\n\n", timeout=60)
    assert (out.splitlines()[-1], err) == ("ended", "")
    assert sqlite_guard.summary("job-000001").state is RunState.COMPLETED


def test_a_kill_counts_and_stops_the_live_processes_of_another_container(
    contained: subprocess.Popen[str], home: Path, sqlite_guard: Guard
) -> None:
    with closing(PageKillSwitch(home)) as switch:
        generation = sqlite_guard.kill(run="job-000001", reason="enough", actor="ann")
        reached = switch.acknowledgements(generation, timeout=60)
    assert (reached.live, reached.acknowledged) == (1, 1)
    _, err = contained.communicate("\n", timeout=60)
    assert "KillSwitchTriggeredError" in err
    assert sqlite_guard.summary("job-000001").state is RunState.KILLED


def test_a_container_that_is_gone_is_counted_no_more(
    contained: subprocess.Popen[str], home: Path, eventually: Callable[[Callable[[], object]], None]
) -> None:
    contained.kill()
    contained.communicate()
    with closing(PageKillSwitch(home)) as switch:
        generation = switch.record("kill_set", {"scope": "global", "reason": "all", "actor": "ann"})
        eventually(lambda: switch.acknowledgements(generation, timeout=0).live == 0)
