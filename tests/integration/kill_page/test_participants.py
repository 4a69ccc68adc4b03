"""Who takes part is told, counted, and forgotten when it is gone."""

from __future__ import annotations

import gc
import os
import signal as signals
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.layout import TABLE
from agentguard.killswitch.page import PageKillSwitch
from agentguard.killswitch.participant_table import WORDS_EACH
from agentguard.killswitch.processes import Process, current
from agentguard.killswitch.telling import Telling
from agentguard.killswitch.waker import live_processes, wake

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs")

Open = Callable[[], PageKillSwitch]
Start = Callable[..., Any]
Wait = Callable[[Callable[[], object]], None]

DEADLINE = 60.0
#: Who waits for so long does not return within a test.
FOR_EVER = 3600.0

SPINS = """
signal = switch.signal
seen = signal[GENERATION]
say("ready")
while signal[GENERATION] == seen:
    pass
"""


def test_a_kill_reaches_another_process_by_memory_alone(spawn: Start, switch: PageKillSwitch) -> None:
    child = spawn(SPINS + "say('saw', switch.find('acme', 'r1', since=seen).reason)")
    switch.record(*kill_data("why", tenant="acme"))
    child.expect("saw why")


def test_every_live_process_acknowledges(attach: Start, switch: PageKillSwitch) -> None:
    children = [attach(), attach()]
    generation = switch.record(*kill_data("why"))
    live, acknowledged, _ = switch.acknowledgements(generation, FOR_EVER)
    assert (live, acknowledged) == (2, 2)
    assert switch.unacknowledged(generation) == []
    for child in children:
        child.expect("told 1")
        assert child.end() == 0
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (2, 2), "those that the kill ended count"
    later = switch.record(*kill_data("why"))
    assert switch.acknowledgements(later, DEADLINE)[:2] == (0, 0)


LEAVES = """
participant = switch.join(lambda generation: {act})
say("ready")
sys.stdin.readline()
switch.close()
say("left")
sys.stdin.read()
"""


@pytest.mark.parametrize("act", ["None", "participant.leave()", "os.kill(os.getpid(), 9)"])
def test_a_process_that_has_left_is_not_waited_for_although_it_lives(
    spawn: Start, switch: PageKillSwitch, act: str
) -> None:
    child = spawn(LEAVES.format(act=act))
    generation = switch.record(*kill_data("why"))
    if act == "None":
        child.process.stdin.write("\n")
        child.process.stdin.flush()
        child.expect("left")
    live, acknowledged, _ = switch.acknowledgements(generation, FOR_EVER)
    assert live == acknowledged == (0 if "kill" in act else 1)
    assert switch.unacknowledged(generation) == []


def test_a_process_that_leaves_before_a_kill_is_not_counted(spawn: Start, switch: PageKillSwitch) -> None:
    child = spawn(LEAVES.format(act="None"))
    first = switch.record(*kill_data("why", run="r1"))
    assert switch.acknowledgements(first, DEADLINE)[:2] == (1, 1)
    child.process.stdin.write("\n")
    child.process.stdin.flush()
    child.expect("left")
    assert switch.acknowledgements(switch.record(*kill_data("why")), DEADLINE)[:2] == (0, 0)


@pytest.mark.parametrize("found_by", ["the waker", "a step"])
def test_a_process_that_acts_before_the_page_shows_the_kill_counts_after_its_end(
    home: Path, switch: PageKillSwitch, eventually: Wait, found_by: str
) -> None:
    told: list[int] = []
    participant = switch.join(told.append)
    files = PageKillSwitch(home)._files
    page = files.current()
    with files.locked():  # the writer is between its two acts, and nobody else can show the record
        generation = files.log.append(*kill_data("why"), at_ns=1)
        if found_by == "the waker":
            wake(home / "live")
            eventually(lambda: told == [generation])
        else:
            assert switch.find("acme", "r1", since=0) is not None
        participant.leave()
        assert page.newest < generation
    assert page.table.acknowledged() == {current(): generation}


def test_a_process_that_cannot_act_is_live_and_named(
    attach: Start, switch: PageKillSwitch, eventually: Wait
) -> None:
    stopped, _ = attach(), attach()
    stopped.pause()
    generation = switch.record(*kill_data("why"))
    eventually(lambda: len(switch.unacknowledged(generation)) == 1)
    assert switch.acknowledgements(generation, timeout=0.05)[:2] == (2, 1)
    assert [process.pid for process in switch.unacknowledged(generation)] == [stopped.pid]
    stopped.process.send_signal(signals.SIGCONT)
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (2, 2)


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_process_that_was_killed_is_not_counted(
    home: Path, attach: Start, switch: PageKillSwitch, reaped: bool
) -> None:
    dead = attach()
    dead.process.send_signal(signals.SIGKILL)
    if reaped:
        dead.process.wait()
    else:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    generation = switch.record(*kill_data("why"))
    assert switch.acknowledgements(generation, timeout=0)[:2] == (0, 0)
    assert switch.participants() == []
    assert list((home / "live").iterdir()) == []


def test_a_process_that_dies_while_it_is_waited_for_counts_no_more(
    attach: Start, switch: PageKillSwitch
) -> None:
    child = attach()
    child.pause()
    generation = switch.record(*kill_data("why"))
    timer = threading.Timer(0.1, child.process.send_signal, [signals.SIGKILL])
    timer.start()
    live, acknowledged, _ = switch.acknowledgements(generation, FOR_EVER)
    timer.join()
    assert (live, acknowledged) == (0, 0)


def test_a_full_table_leaves_a_process_uncounted_but_not_untold(
    attach: Start, switch: PageKillSwitch, eventually: Wait
) -> None:
    words = switch._files.current().words
    places = range(TABLE, len(words) - WORDS_EACH + 1, WORDS_EACH)
    other = current()
    for place in places:
        words[place], words[place + 1], words[place + 2] = other.word, other.start, 9
    child = attach()
    generation = switch.record(*kill_data("why"))
    child.expect("told 1")
    assert switch.participants() == [other]
    assert switch.acknowledgements(generation, timeout=0)[:2] == (1, 1)
    words[places[3]] = 0
    eventually(lambda: child.pid in [process.pid for process in switch.participants()])
    eventually(lambda: words[places[3]] == child.pid)
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (2, 2)


def test_places_of_the_dead_are_given_away(switch: PageKillSwitch) -> None:
    places = switch._files.current().table
    dead = Process(2**30, 1, current().namespace)
    while places.claim(dead, 0) is not None and not places.held(511, dead):
        pass
    assert len(list(places.taken())) == 512
    switch.join(lambda generation: None)
    assert [place.number for place in places.taken() if place.holder.alive] == [0]


def test_two_switches_of_one_process_are_one_live_process(
    open_switch: Open,
) -> None:
    told: list[int] = []
    for switch in (open_switch(), open_switch()):
        switch.join(told.append)
    killer = open_switch()
    generation = killer.record(*kill_data("why"))
    assert killer.acknowledgements(generation, DEADLINE)[:2] == (1, 1)
    assert told == [1, 1]


def begun_since(before: list[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that run and did not then: one of another test may end at any time."""
    return [thread for thread in threading.enumerate() if thread not in before]


def test_leaving_gives_back_thread_fifo_and_place(home: Path, switch: PageKillSwitch) -> None:
    before = threading.enumerate()
    first = switch.join(lambda generation: None)
    second = switch.join(lambda generation: None)
    assert len(begun_since(before)) == 1
    assert live_processes(home / "live") == {current()}
    first.leave()
    assert len(begun_since(before)) == 1
    second.leave()
    assert not begun_since(before)
    assert list((home / "live").iterdir()) == []
    assert list(switch._files.current().table.taken()) == []


def test_leaving_inside_on_change_ends_the_thread_too(
    home: Path,
    switch: PageKillSwitch,
    caplog: pytest.LogCaptureFixture,
    eventually: Wait,
) -> None:
    before = threading.enumerate()
    participant = switch.join(lambda generation: participant.leave())
    switch.record(*kill_data("why"))
    eventually(lambda: not begun_since(before))
    assert list((home / "live").iterdir()) == []
    assert caplog.text == ""


def test_a_switch_that_nobody_closed_leaks_neither_thread_nor_fifo(home: Path, eventually: Wait) -> None:
    before = threading.enumerate()

    class Owner:
        def __init__(self) -> None:
            self.switch = PageKillSwitch(home)
            self.participant = self.switch.join(self.act)

        def act(self, generation: int) -> None: ...

    def gone() -> bool:
        gc.collect()
        return not begun_since(before)

    Owner()
    eventually(gone)
    assert list((home / "live").iterdir()) == []


def test_a_process_can_end_without_leaving(home: Path, spawn: Start, switch: PageKillSwitch) -> None:
    child = spawn("switch.join(lambda generation: None)\nsay('ready')")
    assert child.process.wait(DEADLINE) == 0
    switch.join(lambda generation: None)
    assert [process.pid for process in switch.participants()] == [os.getpid()]
    assert len(list((home / "live").iterdir())) == 1


def test_on_change_that_failed_is_tried_again(
    switch: PageKillSwitch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []

    def fails_once(generation: int) -> None:
        told.append(generation)
        if len(told) == 1:
            raise RuntimeError("not yet")

    switch.join(fails_once)
    generation = switch.record(*kill_data("why"))
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (1, 1)
    assert told == [1, 1]
    assert "not yet" in caplog.text


def test_strange_files_among_the_fifos_are_left_alone(home: Path, switch: PageKillSwitch) -> None:
    switch.join(lambda generation: None)
    live = home / "live"
    process = current()
    strange = live / f"{process.pid}.{process.start}.999.fifo"
    strange.write_text("keep")
    (live / "notes").write_text("keep")
    switch.record(*kill_data("why"))
    assert strange.read_text() == (live / "notes").read_text() == "keep"


def test_a_process_whose_pid_was_given_to_another_is_dead() -> None:
    mine = current()
    assert mine.alive
    assert not Process(mine.pid, mine.start + 1).alive
    assert not Process(2**63, 0).alive


def test_who_does_not_return_keeps_neither_others_nor_later_changes_waiting(
    switch: PageKillSwitch, eventually: Wait
) -> None:
    returns, told = threading.Event(), set()

    def slow(generation: int) -> None:
        told.add(("slow", generation))
        returns.wait(DEADLINE)

    switch.join(slow)
    switch.join(lambda generation: told.add(("quick", generation)))
    generations = [switch.record(*kill_data("why", run=run_id)) for run_id in "ab"]
    eventually(lambda: {("slow", generations[-1]), ("quick", generations[-1])} <= told)
    assert switch.unacknowledged(generations[-1]) == [current()]
    returns.set()
    eventually(lambda: not switch.unacknowledged(generations[-1]))


def test_where_no_thread_can_be_started_everybody_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread that watches must not end of it."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    told: list[int] = []
    acknowledged: list[int] = []
    Telling().tell(3, [told.append, told.append], acknowledged.append)
    assert (told, acknowledged) == ([3, 3], [3])
