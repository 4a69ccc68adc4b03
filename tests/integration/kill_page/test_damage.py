"""What is lost, damaged, altered or deleted refuses, and is named."""

from __future__ import annotations

import logging
import os
import signal as signals
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentguard.errors import KillSwitchUnavailableError, LogIntegrityError
from agentguard.events.codec import Stored, chain, genesis
from agentguard.events.model import CONTROL_RUN_ID
from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.layout import ALARM, MAGIC, PAGE_BYTES
from agentguard.killswitch.model import GENERATION
from agentguard.killswitch.page import PageKillSwitch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs")

Open = Callable[[], PageKillSwitch]
Start = Callable[..., Any]
Wait = Callable[[Callable[[], object]], None]

DEADLINE = 60.0

SPINS = """
signal = switch.signal
seen = signal[GENERATION]
say("ready")
while signal[GENERATION] == seen:
    pass
"""


def refused(switch: PageKillSwitch, *words: str) -> None:
    """The switch refuses runs, and says each of the words."""
    with pytest.raises(KillSwitchUnavailableError) as caught:
        switch.find("acme", "nobody's", since=0)
    for word in (*words, "agentguard doctor"):
        assert word in str(caught.value)


@pytest.mark.parametrize("damage", ["magic", "short", "empty", "directory", "device"])
def test_a_damaged_page_refuses_and_is_named(home: Path, open_switch: Open, damage: str) -> None:
    open_switch().find("acme", "r1", since=0)
    page = home / "kill.page"
    content = page.read_bytes()
    page.unlink()
    if damage == "directory":
        page.mkdir()
    elif damage == "device":
        os.mkfifo(page)
    else:
        damaged = {"magic": b"not a page" + content[10:], "short": content[:-1], "empty": b""}
        page.write_bytes(damaged[damage])
    refused(open_switch(), str(page))
    with pytest.raises(KillSwitchUnavailableError, match=r"kill\.page"):
        _ = open_switch().signal


@pytest.mark.parametrize("damage", ["magic", "short"])
def test_repair_rebuilds_the_page_in_place_from_the_log(home: Path, open_switch: Open, damage: str) -> None:
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


def test_a_kill_is_recorded_and_delivered_though_the_page_is_damaged(
    home: Path, open_switch: Open, spawn: Start
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


def test_records_lost_from_the_log_refuse_until_the_loss_is_accepted(home: Path, open_switch: Open) -> None:
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


def test_a_log_that_is_gone_refuses(home: Path, open_switch: Open) -> None:
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
    home: Path, tmp_path: Path, open_switch: Open
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
def test_a_change_of_the_log_is_found_and_refuses(
    home: Path, open_switch: Open, change: Callable[[bytes], bytes]
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


def test_a_kill_of_a_damaged_log_makes_everyone_look_and_be_refused(home: Path, open_switch: Open) -> None:
    running = open_switch()
    running.record(*kill_data("two", run="r2"))
    signal = running.signal
    log = home / "control.log"
    log.write_bytes(edit(log.read_bytes()))
    assert running.find("acme", "r1", since=1) is None
    with pytest.raises(KillSwitchUnavailableError, match="record 1"):
        open_switch().record(*kill_data("stop", run="r1"))
    assert signal[GENERATION] == ALARM
    refused(running, "could not be written")


def test_an_unreadable_home_refuses_and_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    switch = PageKillSwitch(blocked / "home")
    refused(switch, str(blocked / "home"), "AGENTGUARD_HOME")


def test_a_deleted_page_is_made_again_and_loses_no_kill(home: Path, open_switch: Open) -> None:
    running = open_switch()
    running.record(*kill_data("one", run="r1"))
    old = running.signal
    (home / "kill.page").unlink()
    assert open_switch().record(*kill_data("two", run="r2")) == 2
    assert running.find("acme", "r2", since=1) is not None
    assert running.signal[GENERATION] == 2
    assert old[GENERATION] == 2


def test_holders_of_a_deleted_page_are_reached(home: Path, spawn: Start, switch: PageKillSwitch) -> None:
    child = spawn("switch.join(lambda generation: None)\n" + SPINS + "say('saw')\nsys.stdin.read()")
    (home / "kill.page").unlink()
    generation = switch.record(*kill_data("why"))
    child.expect("saw")
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (1, 1)


def test_holders_of_a_deleted_page_are_live_before_they_have_noticed(
    home: Path, attach: Start, switch: PageKillSwitch
) -> None:
    child = attach()
    child.pause()
    (home / "kill.page").unlink()
    generation = switch.record(*kill_data("why"))
    assert switch.acknowledgements(generation, timeout=0.05)[:2] == (1, 0)
    assert [process.pid for process in switch.unacknowledged(generation)] == [child.pid]
    child.process.send_signal(signals.SIGCONT)
    assert switch.acknowledgements(generation, DEADLINE)[:2] == (1, 1)


def test_a_deleted_page_is_noticed_though_nobody_kills(
    home: Path, switch: PageKillSwitch, eventually: Wait
) -> None:
    switch.join(lambda generation: None)
    (home / "kill.page").unlink()
    eventually((home / "kill.page").exists)
    assert switch.acknowledgements(0, DEADLINE)[:2] == (1, 1)


def test_a_home_that_was_swept_away_makes_its_holders_look_and_be_refused(
    home: Path,
    switch: PageKillSwitch,
    caplog: pytest.LogCaptureFixture,
    eventually: Wait,
) -> None:
    switch.record(*kill_data("why", run="r2"))
    switch.join(lambda generation: None)
    signal = switch.signal
    for path in sorted(home.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    eventually(lambda: signal[GENERATION] == ALARM)
    refused(switch, "the log is gone")
    eventually(lambda: "the log is gone" in caplog.text)
    assert {record.levelno for record in caplog.records} == {logging.CRITICAL}
