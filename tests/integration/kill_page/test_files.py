"""The files of the kill page: what is written, when, and what a crash leaves."""

from __future__ import annotations

import json
import os
import signal as signals
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentguard.killswitch import control, lockfile
from agentguard.killswitch.control import ControlLog
from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.layout import PAGE_BYTES
from agentguard.killswitch.lockfile import LockFile
from agentguard.killswitch.model import GENERATION
from agentguard.killswitch.page import PageKillSwitch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs")

Open = Callable[[], PageKillSwitch]
Start = Callable[..., Any]

DEADLINE = 60.0


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


def test_a_kill_survives_a_restart(open_switch: Open) -> None:
    open_switch().record(*kill_data("why", run="r1"))
    again = open_switch()
    assert again.signal[GENERATION] == 1
    kill = again.find("acme", "r1", since=1)
    assert kill is not None
    assert kill.reason == "why"
    assert again.verify().seq == 1


def test_the_page_is_never_truncated_or_replaced_while_in_use(home: Path, open_switch: Open) -> None:
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


def test_a_record_is_durable_before_the_page_shows_it(
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


def test_without_file_locks_it_can_be_imported_and_refuses(spawn: Start) -> None:
    windows = "import sys; sys.modules['fcntl'] = None"
    program = """
say("ready")
try:
    switch.signal
except KillSwitchUnavailableError as error:
    say(error)
"""
    child = spawn(program, before=windows)
    assert "this platform lacks; use kill_switch='memory'" in child.line()
    assert child.end() == 0


def test_a_torn_last_line_is_passed_over_and_removed_by_the_next_append(
    home: Path, open_switch: Open
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


def test_a_kill_that_never_reached_the_page_counts(home: Path, open_switch: Open) -> None:
    before = open_switch()
    signal = before.signal
    ControlLog(home).append(*kill_data("why", run="r1"), at_ns=1)
    assert signal[GENERATION] == 0
    assert before.find("acme", "r1", since=0) is not None
    assert open_switch().signal[GENERATION] == 1
    assert signal[GENERATION] == 1


def test_a_participant_brings_the_page_up_to_the_log_by_itself(
    home: Path, attach: Start, switch: PageKillSwitch
) -> None:
    signal = switch.signal
    child = attach()
    ControlLog(home).append(*kill_data("why"), at_ns=1)
    child.expect("told 1")
    assert signal[GENERATION] == 1


def test_a_lock_outlives_neither_its_holder_nor_its_file(home: Path, spawn: Start) -> None:
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


def test_a_lock_is_waited_for_by_the_threads_of_a_process_too(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "control.lock")
    with lock.held(DEADLINE):
        with pytest.raises(TimeoutError, match="another process or thread for 0.01 s"), lock.held(0.01):
            pass
    with lock.held(0):
        pass
