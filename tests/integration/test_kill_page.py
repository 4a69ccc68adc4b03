"""The kill page under what happens to real processes and real files."""

from __future__ import annotations

import gc
import json
import logging
import os
import queue
import signal as signals
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import agentguard
from agentguard.errors import KillSwitchUnavailableError, LogIntegrityError
from agentguard.events.codec import Stored, chain, genesis
from agentguard.events.model import CONTROL_RUN_ID, KILL_SET, TENANT_BUDGET_SET
from agentguard.killswitch import control, lockfile
from agentguard.killswitch.control import ControlLog
from agentguard.killswitch.layout import ALARM, MAGIC, PAGE_BYTES, PLACES
from agentguard.killswitch.lockfile import LockFile
from agentguard.killswitch.model import GENERATION
from agentguard.killswitch.orders import kill_data, revive_data
from agentguard.killswitch.page import PageKillSwitch
from agentguard.killswitch.places import WORDS_EACH
from agentguard.killswitch.presence import present
from agentguard.killswitch.processes import Process, current

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs")

DEADLINE = 30.0

PRELUDE = """
import os, sys, threading, time
from pathlib import Path
from agentguard.errors import KillSwitchUnavailableError
from agentguard.killswitch.model import GENERATION
from agentguard.killswitch.orders import kill_data
from agentguard.killswitch.page import PageKillSwitch

switch = PageKillSwitch(Path(sys.argv[1]))

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""

JOINS = """
switch.join(lambda generation: say("told", generation))
say("ready")
sys.stdin.read()
"""

SPINS = """
signal = switch.signal
seen = signal[GENERATION]
say("ready")
while signal[GENERATION] == seen:
    pass
"""


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.002)


class Child:
    """A Python process, read line by line."""

    def __init__(self, program: str, *arguments: object, before: str = "") -> None:
        source = Path(agentguard.__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-c", before + PRELUDE + program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(source)},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        return self._lines.get(timeout=DEADLINE)

    def expect(self, line: str) -> None:
        assert self.line() == line

    def end(self) -> int:
        """Close its input, and give its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(DEADLINE)

    def pause(self) -> None:
        """Stop it, and return when it stands still."""
        self.process.send_signal(signals.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def dispose(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def home(home: Path) -> Path:
    """Below the test's own, and not there yet."""
    return home / "state"


@pytest.fixture
def open_switch(home: Path) -> Iterator[Callable[[], PageKillSwitch]]:
    opened: list[PageKillSwitch] = []

    def open_one() -> PageKillSwitch:
        opened.append(PageKillSwitch(home))
        return opened[-1]

    yield open_one
    for switch in opened:
        switch.close()


@pytest.fixture
def switch(open_switch: Callable[[], PageKillSwitch]) -> PageKillSwitch:
    return open_switch()


@pytest.fixture
def spawn(home: Path) -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(program: str, *arguments: object) -> Child:
        children.append(Child(program, home, *arguments))
        children[-1].expect("ready")
        return children[-1]

    yield start
    for child in children:
        child.dispose()


# --- files ---------------------------------------------------------------------------------------


def test_nothing_is_touched_before_it_is_used(home: Path) -> None:
    switch = PageKillSwitch(home)
    assert not home.exists()
    switch.close()
    assert not home.exists()


def test_everything_is_for_the_user_alone(home: Path, switch: PageKillSwitch) -> None:
    umask = os.umask(0)
    try:
        switch.record(*kill_data("why"))
        switch.join(lambda generation: None)
    finally:
        os.umask(umask)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (home, *home.rglob("*"))}
    fifo = next((home / "live").iterdir()).name
    private = {"control.log", "control.lock", "kill.page", fifo}
    assert modes == {**dict.fromkeys(private, "0o600"), "state": "0o700", "live": "0o700"}


def test_a_line_of_the_log_holds_the_hash_and_the_body_as_hashed(home: Path, switch: PageKillSwitch) -> None:
    switch.record(*kill_data("why", run="r1", actor="ann"))
    stored = next(switch.read())
    line = (home / "control.log").read_bytes()
    assert line == b'{"hash":"%s","event":%s}\n' % (stored.hash.hex().encode(), stored.body)
    event = json.loads(line)["event"]
    assert event["data"] == {"scope": "run", "target": "r1", "reason": "why", "actor": "ann"}


def test_rule_11_a_kill_survives_a_restart(open_switch: Callable[[], PageKillSwitch]) -> None:
    open_switch().record(*kill_data("why", run="r1"))
    again = open_switch()
    assert again.signal[GENERATION] == 1
    kill = again.find("acme", "r1", since=1)
    assert kill is not None
    assert kill.reason == "why"
    assert again.verify().seq == 1


def test_rule_11_the_page_is_never_truncated_or_replaced_while_in_use(
    home: Path, open_switch: Callable[[], PageKillSwitch]
) -> None:
    first = open_switch()
    signal = first.signal
    before = (home / "kill.page").stat()
    for number in range(3):
        open_switch().record(*kill_data("why", run=f"r{number}"))
    first.repair()
    after = (home / "kill.page").stat()
    assert (
        (after.st_ino, after.st_size)
        == (before.st_ino, before.st_size)
        == (
            before.st_ino,
            PAGE_BYTES,
        )
    )
    assert signal[GENERATION] == 3


def test_rule_11_a_record_is_durable_before_the_page_shows_it(
    home: Path, switch: PageKillSwitch, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, int]] = []
    signal = switch.signal
    sync = os.fsync

    def note(descriptor: int) -> None:
        sync(descriptor)
        names = {path.stat().st_ino: path.name for path in (home, *home.iterdir())}
        shown.append((names[os.fstat(descriptor).st_ino], signal[GENERATION]))

    monkeypatch.setattr(control.os, "fsync", note)
    switch.record(*kill_data("why"))
    switch.record(*kill_data("why"))
    assert shown == [("control.log", 0), ("state", 0), ("control.log", 1)]


def test_without_file_locks_it_can_be_imported_and_refuses(home: Path) -> None:
    windows = "import sys; sys.modules['fcntl'] = None"
    program = """
try:
    switch.signal
except KillSwitchUnavailableError as error:
    say(error)
"""
    child = Child(program, home, before=windows)
    try:
        assert "this platform lacks; use kill_switch='memory'" in child.line()
        assert child.end() == 0
    finally:
        child.dispose()


# --- a crash in the middle -----------------------------------------------------------------------


def test_a_torn_last_line_is_passed_over_and_removed_by_the_next_append(
    home: Path, open_switch: Callable[[], PageKillSwitch]
) -> None:
    log = home / "control.log"
    open_switch().record(*kill_data("one", run="r1"))
    whole = log.read_bytes()
    torn = whole[:-1] + b"?" * 1000
    with log.open("ab") as file:
        file.write(torn)
    reader = open_switch()
    assert [kill.reason for kill in reader.kills()] == ["one"]
    assert reader.verify().seq == 1
    assert log.read_bytes() == whole + torn
    assert reader.record(*kill_data("two", run="r2")) == 2
    assert log.read_bytes().startswith(whole)
    assert len(log.read_bytes().splitlines()) == 2
    assert open_switch().verify().seq == 2


def test_rule_11_a_kill_that_never_reached_the_page_counts(
    home: Path, open_switch: Callable[[], PageKillSwitch]
) -> None:
    before = open_switch()
    signal = before.signal
    ControlLog(home).append(*kill_data("why", run="r1"), at_ns=1)
    assert signal[GENERATION] == 0
    assert before.find("acme", "r1", since=0) is not None
    assert open_switch().signal[GENERATION] == 1
    assert signal[GENERATION] == 1


def test_a_participant_brings_the_page_up_to_the_log_by_itself(
    home: Path, spawn: Callable[..., Child], switch: PageKillSwitch
) -> None:
    signal = switch.signal
    child = spawn(JOINS)
    ControlLog(home).append(*kill_data("why"), at_ns=1)
    child.expect("told 1")
    assert signal[GENERATION] == 1


def test_a_lock_outlives_neither_its_holder_nor_its_file(home: Path, spawn: Callable[..., Child]) -> None:
    program = "files = switch._files\nwith files.locked():\n    say('ready')\n    sys.stdin.read()"
    child = spawn(program)
    lock = LockFile(home / "control.lock")
    with pytest.raises(TimeoutError, match=r"control\.lock has been locked"), lock.held(0.05):
        pass
    (home / "control.lock").unlink()
    with lock.held(DEADLINE):
        pass
    child.process.send_signal(signals.SIGKILL)
    with LockFile(home / "control.lock").held(DEADLINE):
        pass


def test_a_lock_on_a_file_that_was_deleted_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control.lock"
    flock = lockfile.fcntl.flock

    def delete(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        flock(descriptor, operation)
        path.unlink()

    monkeypatch.setattr(lockfile.fcntl, "flock", delete)
    with LockFile(path).held(DEADLINE), pytest.raises(TimeoutError), LockFile(path).held(0):
        pass


# --- loss and damage -----------------------------------------------------------------------------


def refused(switch: PageKillSwitch, *words: str) -> None:
    """The switch refuses runs, and says each of the words."""
    with pytest.raises(KillSwitchUnavailableError) as caught:
        switch.find("acme", "nobody's", since=0)
    for word in (*words, "agentguard doctor"):
        assert word in str(caught.value)


@pytest.mark.parametrize("damage", ["magic", "short", "empty", "directory"])
def test_a_damaged_page_refuses_and_is_named(
    home: Path, open_switch: Callable[[], PageKillSwitch], damage: str
) -> None:
    open_switch().find("acme", "r1", since=0)
    page = home / "kill.page"
    content = page.read_bytes()
    page.unlink()
    if damage == "directory":
        page.mkdir()
    else:
        damaged = {"magic": b"not a page" + content[10:], "short": content[:-1], "empty": b""}
        page.write_bytes(damaged[damage])
    refused(open_switch(), str(page))
    with pytest.raises(KillSwitchUnavailableError, match=r"kill\.page"):
        _ = open_switch().signal


@pytest.mark.parametrize("damage", ["magic", "short"])
def test_repair_rebuilds_the_page_in_place_from_the_log(
    home: Path, open_switch: Callable[[], PageKillSwitch], damage: str
) -> None:
    open_switch().record(*kill_data("why", run="r1"))
    page = home / "kill.page"
    content = page.read_bytes()
    page.write_bytes(bytes(PAGE_BYTES) if damage == "magic" else content[:100])
    inode = page.stat().st_ino
    assert open_switch().repair() == 1
    assert page.stat().st_ino == inode
    mended = open_switch()
    assert mended.signal[0] == MAGIC
    assert mended.signal[GENERATION] == 1
    assert mended.find("acme", "r1", since=1) is not None
    assert mended.find("acme", "r2", since=1) is None


def test_rule_11_a_kill_is_recorded_and_delivered_though_the_page_is_damaged(
    home: Path, open_switch: Callable[[], PageKillSwitch], spawn: Callable[..., Child]
) -> None:
    child = spawn(
        """
switch.join(lambda generation: say(generation, switch.find("acme", "r1", since=0).reason))
say("ready")
sys.stdin.read()
"""
    )
    victim = open_switch()
    view = victim._files.current().words
    view[0] = 0
    with pytest.raises(KillSwitchUnavailableError, match="recorded as generation 1, but"):
        open_switch().record(*kill_data("why", run="r1"))
    child.expect("1 why")
    kill = victim.find("acme", "r1", since=0)
    assert kill is not None
    refused_run = pytest.raises(KillSwitchUnavailableError, match="is damaged")
    with refused_run:
        victim.find("acme", "r2", since=0)


def test_records_lost_from_the_log_refuse_until_the_loss_is_accepted(
    home: Path, open_switch: Callable[[], PageKillSwitch]
) -> None:
    log = home / "control.log"
    running = open_switch()
    running.record(*kill_data("one", run="r1"))
    kept = log.read_bytes()
    running.record(*kill_data("two", run="r2"))
    log.write_bytes(kept)
    refused(open_switch(), "ends at record 1", "announced 2")
    with pytest.raises(KillSwitchUnavailableError, match="cut to"):
        running.find("acme", "r3", since=0)
    with pytest.raises(KillSwitchUnavailableError, match="records were lost"):
        open_switch().repair()
    assert open_switch().repair(accept_loss=True) == 1
    assert open_switch().find("acme", "r3", since=1) is None
    with pytest.raises(KillSwitchUnavailableError, match="cut to"):
        running.find("acme", "r3", since=0)


def test_a_log_that_is_gone_refuses(home: Path, open_switch: Callable[[], PageKillSwitch]) -> None:
    running = open_switch()
    running.record(*kill_data("one", run="r2"))
    (home / "control.log").unlink()
    refused(open_switch(), "ends at record 0", "announced 1")
    refused(running, "the log is gone")


def first_misfit(log: Iterator[Stored]) -> int | None:
    """The first record that a verifier who knows the rule of the chain alone finds."""
    head = genesis(CONTROL_RUN_ID)
    for number, stored in enumerate(log, 1):
        head = chain(head, stored.body)
        if (stored.seq, stored.hash) != (number, head):
            return number
    return None


def test_another_log_in_the_place_of_the_one_that_was_read_refuses(
    home: Path, tmp_path: Path, open_switch: Callable[[], PageKillSwitch]
) -> None:
    running = open_switch()
    running.record(*kill_data("one", run="r2", actor="ann"))
    other = PageKillSwitch(tmp_path / "other")
    other.record(*kill_data("two", run="r2", actor="ann"))
    other.close()
    copy = tmp_path / "copy"
    copy.write_bytes((home / "control.log").read_bytes())
    copy.replace(home / "control.log")
    open_switch().record(*kill_data("three", run="r3"))
    assert len(running.kills()) == 2
    (tmp_path / "other" / "control.log").replace(home / "control.log")
    refused(running, "was replaced by another")


def edit(content: bytes) -> bytes:
    return content.replace(b'"two"', b'"owt"')


def drop(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join([lines[0], lines[2]])


def swap(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join([lines[0], lines[2], lines[1]])


def garble(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join([lines[0], b"{}\n", lines[2]])


@pytest.mark.parametrize("change", [edit, drop, swap, garble])
def test_rule_11_a_change_of_the_log_is_found_and_refuses(
    home: Path, open_switch: Callable[[], PageKillSwitch], change: Callable[[bytes], bytes]
) -> None:
    for reason in ("one", "two", "three"):
        open_switch().record(*kill_data(reason, run=f"run-{reason}"))
    log = home / "control.log"
    intact = log.read_bytes()
    log.write_bytes(change(intact))
    with pytest.raises(LogIntegrityError) as caught:
        open_switch().verify()
    assert (caught.value.run_id, caught.value.seq) == ("control", 2)
    assert first_misfit(open_switch().read()) == 2
    refused(open_switch(), str(log), "record 2")
    log.write_bytes(intact)
    assert open_switch().verify().seq == 3
    assert first_misfit(open_switch().read()) is None
    assert open_switch().find("acme", "r1", since=0) is None


def test_a_kill_of_a_damaged_log_makes_everyone_look_and_be_refused(
    home: Path, open_switch: Callable[[], PageKillSwitch]
) -> None:
    running = open_switch()
    running.record(*kill_data("two", run="r2"))
    signal = running.signal
    log = home / "control.log"
    log.write_bytes(edit(log.read_bytes()))
    assert running.find("acme", "r1", since=1) is None
    with pytest.raises(KillSwitchUnavailableError, match="record 1"):
        open_switch().record(*kill_data("stop", run="r1"))
    assert signal[GENERATION] == 2
    refused(running, "records were lost")


def test_an_unreadable_home_refuses_and_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    switch = PageKillSwitch(blocked / "home")
    refused(switch, str(blocked / "home"), "AGENTGUARD_HOME")


# --- a page that is deleted ----------------------------------------------------------------------


def test_a_deleted_page_is_made_again_and_loses_no_kill(
    home: Path, open_switch: Callable[[], PageKillSwitch]
) -> None:
    running = open_switch()
    running.record(*kill_data("one", run="r1"))
    old = running.signal
    (home / "kill.page").unlink()
    assert open_switch().record(*kill_data("two", run="r2")) == 2
    assert running.find("acme", "r2", since=1) is not None
    assert running.signal[GENERATION] == 2
    assert old[GENERATION] == 2


def test_rule_11_holders_of_a_deleted_page_are_reached(
    home: Path, spawn: Callable[..., Child], switch: PageKillSwitch
) -> None:
    child = spawn("switch.join(lambda generation: None)\n" + SPINS + "say('saw')\nsys.stdin.read()")
    (home / "kill.page").unlink()
    generation = switch.record(*kill_data("why"))
    child.expect("saw")
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (1, 1)


def test_holders_of_a_deleted_page_are_live_before_they_have_noticed(
    home: Path, spawn: Callable[..., Child], switch: PageKillSwitch
) -> None:
    child = spawn(JOINS)
    child.pause()
    (home / "kill.page").unlink()
    generation = switch.record(*kill_data("why"))
    assert switch.acknowledgements(generation, timeout=0.05)[:2] == (1, 0)
    assert [process.pid for process in switch.unacknowledged(generation)] == [child.pid]
    child.process.send_signal(signals.SIGCONT)
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (1, 1)


def test_a_deleted_page_is_noticed_within_about_a_second(home: Path, switch: PageKillSwitch) -> None:
    switch.join(lambda generation: None)
    (home / "kill.page").unlink()
    start = time.monotonic()
    wait_until((home / "kill.page").exists)
    assert time.monotonic() - start < 10
    assert switch.acknowledgements(0, DEADLINE)[:2] == (1, 1)


def test_a_home_that_was_swept_away_makes_its_holders_look_and_be_refused(
    home: Path, switch: PageKillSwitch, caplog: pytest.LogCaptureFixture
) -> None:
    switch.record(*kill_data("why", run="r2"))
    switch.join(lambda generation: None)
    signal = switch.signal
    for path in sorted(home.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    wait_until(lambda: signal[GENERATION] == ALARM)
    refused(switch, "the log is gone")
    wait_until(lambda: "the log is gone" in caplog.text)
    assert {record.levelno for record in caplog.records} == {logging.CRITICAL}


# --- participants --------------------------------------------------------------------------------


def test_rule_11_a_kill_reaches_another_process_by_memory_alone(
    spawn: Callable[..., Child], switch: PageKillSwitch
) -> None:
    child = spawn(SPINS + "say('saw', switch.find('acme', 'r1', since=seen).reason)")
    switch.record(*kill_data("why", tenant="acme"))
    child.expect("saw why")


def test_every_live_process_acknowledges(spawn: Callable[..., Child], switch: PageKillSwitch) -> None:
    children = [spawn(JOINS), spawn(JOINS)]
    generation = switch.record(*kill_data("why"))
    live, acknowledged, seconds = switch.acknowledgements(generation, DEADLINE)
    assert (live, acknowledged) == (2, 2)
    assert seconds < DEADLINE
    assert switch.unacknowledged(generation) == []
    for child in children:
        child.expect("told 1")
        assert child.end() == 0
    switch.join(lambda generation: None)
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (1, 1)


def test_a_process_that_cannot_act_is_live_and_named(
    spawn: Callable[..., Child], switch: PageKillSwitch
) -> None:
    stopped, _ = spawn(JOINS), spawn(JOINS)
    stopped.pause()
    generation = switch.record(*kill_data("why"))
    wait_until(lambda: len(switch.unacknowledged(generation)) == 1)
    assert switch.acknowledgements(generation, timeout=0.05)[:2] == (2, 1)
    assert [process.pid for process in switch.unacknowledged(generation)] == [stopped.pid]
    stopped.process.send_signal(signals.SIGCONT)
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (2, 2)


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_process_that_was_killed_is_not_counted(
    home: Path, spawn: Callable[..., Child], switch: PageKillSwitch, reaped: bool
) -> None:
    dead = spawn(JOINS)
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
    spawn: Callable[..., Child], switch: PageKillSwitch
) -> None:
    child = spawn(JOINS)
    child.pause()
    generation = switch.record(*kill_data("why"))
    timer = threading.Timer(0.1, child.process.send_signal, [signals.SIGKILL])
    timer.start()
    live, acknowledged, seconds = switch.acknowledgements(generation, DEADLINE)
    timer.join()
    assert (live, acknowledged) == (0, 0)
    assert seconds < DEADLINE


def test_a_full_table_leaves_a_process_uncounted_but_not_untold(
    spawn: Callable[..., Child], switch: PageKillSwitch
) -> None:
    words = switch._files.current().words
    places = range(PLACES, len(words) - WORDS_EACH + 1, WORDS_EACH)
    other = current()
    for place in places:
        words[place], words[place + 1], words[place + 2] = *other, 9
    child = spawn(JOINS)
    generation = switch.record(*kill_data("why"))
    child.expect("told 1")
    assert switch.participants() == [other]
    assert switch.acknowledgements(generation, timeout=0)[:2] == (1, 1)
    words[places[3]] = 0
    wait_until(lambda: child.pid in [process.pid for process in switch.participants()])
    wait_until(lambda: words[places[3]] == child.pid)
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (2, 2)


def test_places_of_the_dead_are_given_away(switch: PageKillSwitch) -> None:
    places = switch._files.current().places
    dead = Process(2**40, 1)
    while places.claim(dead, 0) is not None and not places.held(511, dead):
        pass
    assert len(list(places.taken())) == 512
    switch.join(lambda generation: None)
    assert [place.number for place in places.taken() if place.holder.alive] == [0]


def test_two_switches_of_one_process_are_one_live_process(
    open_switch: Callable[[], PageKillSwitch],
) -> None:
    told: list[int] = []
    for switch in (open_switch(), open_switch()):
        switch.join(told.append)
    killer = open_switch()
    generation = killer.record(*kill_data("why"))
    assert killer.acknowledgements(generation, DEADLINE)[:2] == (1, 1)
    assert told == [1, 1]


def test_leaving_gives_back_thread_fifo_and_place(home: Path, switch: PageKillSwitch) -> None:
    threads = threading.active_count()
    first = switch.join(lambda generation: None)
    second = switch.join(lambda generation: None)
    assert threading.active_count() == threads + 1
    assert present(home / "live") == {current()}
    first.leave()
    assert threading.active_count() == threads + 1
    second.leave()
    assert threading.active_count() == threads
    assert list((home / "live").iterdir()) == []
    assert list(switch._files.current().places.taken()) == []


def test_leaving_inside_on_change_ends_the_thread_too(
    home: Path, switch: PageKillSwitch, caplog: pytest.LogCaptureFixture
) -> None:
    threads = threading.active_count()
    seat = switch.join(lambda generation: seat.leave())
    switch.record(*kill_data("why"))
    wait_until(lambda: threading.active_count() == threads)
    assert list((home / "live").iterdir()) == []
    assert caplog.text == ""


def test_a_switch_that_nobody_closed_leaks_neither_thread_nor_fifo(home: Path) -> None:
    threads = threading.active_count()

    class Owner:
        def __init__(self) -> None:
            self.switch = PageKillSwitch(home)
            self.seat = self.switch.join(self.act)

        def act(self, generation: int) -> None: ...

    def gone() -> bool:
        gc.collect()
        return threading.active_count() == threads

    Owner()
    wait_until(gone)
    assert list((home / "live").iterdir()) == []


def test_a_process_can_end_without_leaving(
    home: Path, spawn: Callable[..., Child], switch: PageKillSwitch
) -> None:
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


# --- many processes, and fork --------------------------------------------------------------------


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


def test_rule_11_recorders_of_many_processes_make_one_chain_without_gaps(
    spawn: Callable[..., Child], switch: PageKillSwitch
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
    wait_until(lambda: told[-1:] == [160])
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


def test_rule_16_a_forked_child_keeps_the_page_and_takes_part_by_itself(
    home: Path, spawn: Callable[..., Child], switch: PageKillSwitch
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
    switch: PageKillSwitch, open_switch: Callable[[], PageKillSwitch]
) -> None:
    other = open_switch()
    assert other.find("acme", "r1", since=0) is None
    switch.record(TENANT_BUDGET_SET, {"tenant": "acme"})
    assert other.find("acme", "r1", since=0) is None
    switch.record(KILL_SET, {"scope": "tenant", "target": "acme", "reason": "why"})
    switch.record(*revive_data("fixed", tenant="acme"))
    assert other.find("acme", "r1", since=1) is not None
    assert other.find("acme", "r1", since=3) is None
