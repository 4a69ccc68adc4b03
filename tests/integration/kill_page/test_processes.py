"""Many processes, and processes that fork."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentguard.events.model import KILL_SET, TENANT_BUDGET_SET
from agentguard.killswitch.kill_requests import kill_data, revive_data
from agentguard.killswitch.model import GENERATION
from agentguard.killswitch.page import PageKillSwitch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs")

Open = Callable[[], PageKillSwitch]
Start = Callable[..., Any]
Wait = Callable[[Callable[[], object]], None]

DEADLINE = 60.0


RECORDS = """
say("ready")
def work(name):
    for number in range(10):
        say(switch.record(*kill_data("why", run=f"{os.getpid()}-{name}-{number}")))
threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
say("done")
"""


def test_recorders_of_many_processes_make_one_chain_without_gaps(
    spawn: Start, switch: PageKillSwitch, eventually: Wait
) -> None:
    told: list[int] = []
    switch.join(told.append)
    children = [spawn(RECORDS) for _ in range(4)]
    generations: list[int] = []
    for child in children:
        lines = iter(child.line, "done")
        generations.extend(int(number) for line in lines for number in line.split())
        assert child.end() == 0
    assert sorted(generations) == list(range(1, 161))
    assert switch.verify().seq == 160
    assert switch.signal[GENERATION] == 160
    assert len({kill.target for kill in switch.kills()}) == 160
    eventually(lambda: told[-1:] == [160])
    assert told == sorted(told)


FORKS = """
import contextlib, warnings
warnings.simplefilter("ignore", DeprecationWarning)
read, write = os.pipe()

def tell(generation):
    os.write(write, f"{os.getpid()} told {generation}\\n".encode())

switch.join(tell)
signal = switch.signal
seen = signal[GENERATION]
locked, forked = threading.Event(), threading.Event()

def hold():
    with switch._files.locked():
        locked.set()
        forked.wait()

holder = threading.Thread(target=hold)
holder.start()
locked.wait()
fifos = {path.stat().st_ino for path in (switch.home / "live").iterdir()}
parent = os.getpid()
say("ready")
pid = os.fork()
forked.set()
if pid == 0:
    os.close(read)
    opened = set()
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            opened.add(os.fstat(descriptor).st_ino)
    say("inherited", len(fifos & opened), "of", len(fifos))
    assert switch.find("acme", "r0", since=seen) is None
    say("child")
    while signal[GENERATION] == seen and os.getppid() == parent:
        time.sleep(0.001)
    kill = switch.find("acme", "r1", since=seen)
    say("found", kill.reason)
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
os.waitpid(pid, 0)
switch.record(*kill_data("after"))
say("acks", *switch.acknowledgements(2, 20)[:2])
os.close(write)
with open(read) as told:
    names = {str(pid): "child", str(os.getpid()): "parent"}
    for line in sorted(" ".join(names.get(word, word) for word in line.split()) for line in told):
        say(line)
"""


def test_a_forked_child_keeps_the_page_and_takes_part_by_itself(
    home: Path, spawn: Start, switch: PageKillSwitch
) -> None:
    parent = spawn(FORKS)
    parent.expect("inherited 0 of 1")
    parent.expect("child")
    assert len(switch.participants()) == 2
    assert len(list((home / "live").iterdir())) == 2
    generation = switch.record(*kill_data("why", run="r1"))
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (2, 2)
    parent.expect("found why")
    assert parent.end() == 0
    assert [parent.line() for _ in range(4)] == [
        "acks 1 1",
        "child told 1",
        "parent told 1",
        "parent told 2",
    ]


def test_records_that_are_no_kills_raise_the_generation_and_stop_nobody(
    switch: PageKillSwitch, open_switch: Open
) -> None:
    other = open_switch()
    assert other.find("acme", "r1", since=0) is None
    switch.record(TENANT_BUDGET_SET, {"tenant": "acme"})
    assert other.find("acme", "r1", since=0) is None
    switch.record(KILL_SET, {"scope": "tenant", "target": "acme", "reason": "why"})
    switch.record(*revive_data("fixed", tenant="acme"))
    assert other.find("acme", "r1", since=1) is not None
    assert other.find("acme", "r1", since=3) is None
