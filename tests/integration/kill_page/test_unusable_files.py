"""Where the control log cannot be read or written any more, nothing runs, and a kill stops what it can."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agentguard import Guard, guarded_step
from agentguard.errors import KillSwitchTriggeredError, KillSwitchUnavailableError
from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.layout import PAGE_BYTES
from agentguard.killswitch.page import PageKillSwitch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the faults are Linux's")

Wait = Callable[[Callable[[], object]], None]


@guarded_step
def step() -> str:
    return "done"


@contextmanager
def in_its_place(home: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Something else where the control log was."""
    log, aside = home / "control.log", home / "aside"
    log.rename(aside)
    make(log)
    try:
        yield
    finally:
        log.rmdir() if log.is_dir() and not log.is_symlink() else log.unlink()
        aside.rename(log)


@contextmanager
def immutable(home: Path) -> Iterator[None]:
    """A control log that not even root may write to."""
    if subprocess.run(["chattr", "+i", home / "control.log"], check=False, capture_output=True).returncode:
        pytest.skip("chattr does not work here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", home / "control.log"], check=True)


@contextmanager
def no_room(home: Path) -> Iterator[None]:
    """No file may grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((home / "control.log").stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_descriptors(home: Path) -> Iterator[None]:
    """No file can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


FAULTS: dict[str, Callable[[Path], Any]] = {
    "directory": lambda home: in_its_place(home, Path.mkdir),
    "link": lambda home: in_its_place(home, lambda log: log.symlink_to(home / "aside")),
    "pipe": lambda home: in_its_place(home, os.mkfifo),
    "immutable": immutable,
    "no room": no_room,
    "no descriptors": no_descriptors,
}


@pytest.fixture
def agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """A guard in memory that hears the kills of the home, which has had one already."""
    monkeypatch.setenv("AGENTGUARD_HOME", str(home))
    with Guard.open("memory://", telemetry=False) as guard:
        guard.kill(reason="another", run="another")
        yield guard


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kill_that_cannot_be_recorded_refuses_every_step_until_it_is(
    home: Path, agent: Guard, fault: str
) -> None:
    with pytest.raises(KillSwitchTriggeredError), agent.run("agent") as run:
        step()
        with FAULTS[fault](home):
            with pytest.raises(KillSwitchUnavailableError, match="could not be recorded"):
                agent.kill(reason="stop", run=run.id)
            with pytest.raises(KillSwitchUnavailableError):
                step()
        with pytest.raises(KillSwitchUnavailableError, match="kill again"):
            step()
        agent.kill(reason="stop", run=run.id)
        step()
    with agent.run("later"):
        assert step() == "done"


@pytest.mark.parametrize("fault", ["directory", "immutable"])
def test_a_control_log_that_cannot_be_used_refuses_steps_before_anybody_kills(
    home: Path, agent: Guard, eventually: Wait, fault: str
) -> None:
    def refused() -> bool:
        try:
            step()
        except KillSwitchUnavailableError:
            return True
        return False

    with agent.run("agent"):
        with FAULTS[fault](home):
            eventually(refused)
        eventually(lambda: not refused())


def test_a_home_that_can_no_longer_be_written_refuses_steps_before_anybody_kills(
    home: Path, monkeypatch: pytest.MonkeyPatch, eventually: Wait
) -> None:
    """No kill was recorded yet, and none could be."""
    monkeypatch.setenv("AGENTGUARD_HOME", str(home))
    with Guard.open("memory://", telemetry=False) as guard, guard.run("agent"):
        assert step() == "done"
        if subprocess.run(["mount", "--bind", home, home], check=False, capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", home], check=True)
            eventually(lambda: _is_refused("no file can be made here"))
        finally:
            subprocess.run(["umount", home], check=True)
        eventually(lambda: not _is_refused("no file can be made here"))


def _is_refused(why: str) -> bool:
    try:
        step()
    except KillSwitchUnavailableError as error:
        assert why in str(error)
        return True
    return False


def test_a_kill_of_another_run_does_not_make_up_for_the_one_that_is_missing(home: Path, agent: Guard) -> None:
    with FAULTS["no room"](home):
        for run in ("r1", "r2"):
            with pytest.raises(KillSwitchUnavailableError):
                agent.kill(reason="stop", run=run)
    switch = PageKillSwitch(home)
    for run in ("r3", "r1"):
        switch.record(*kill_data("stop", run=run))
        with pytest.raises(KillSwitchUnavailableError, match="kill again"):
            switch.find("acme", "r9", since=0)
    with pytest.raises(KillSwitchUnavailableError, match="kill again"):
        switch.repair()
    switch.repair(accept_loss=True)
    assert switch.find("acme", "r9", since=0) is None
    switch.close()


def test_a_kill_on_the_command_line_that_cannot_be_recorded_stops_others_and_says_so(
    home: Path, spawn: Callable[..., Any]
) -> None:
    child = spawn(
        """
switch.record(*kill_data("another", run="another"))
signal = switch.signal
seen = signal[GENERATION]
say("ready")
while signal[GENERATION] == seen:
    time.sleep(0.001)
try:
    switch.find("acme", "r1", since=1)
except KillSwitchUnavailableError:
    say("refused")
"""
    )
    with FAULTS["directory"](home):
        command = [sys.executable, "-m", "agentguard.cli", "kill", "--run", "r1", "--reason", "stop"]
        done = subprocess.run([*command, "--home", str(home)], check=False, capture_output=True, text=True)
        child.expect("refused")
    assert done.returncode == 5
    assert f"every step under {home} is refused" in done.stderr


def test_a_full_disk_refuses_the_kill_and_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k,mode=700", "none", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        monkeypatch.setenv("AGENTGUARD_HOME", str(disk))
        with Guard.open("memory://", telemetry=False) as guard, guard.run("agent") as run:
            step()
            filler = disk / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            with pytest.raises(KillSwitchUnavailableError, match="No space left"):
                guard.kill(reason="stop", run=run.id)
            with pytest.raises(KillSwitchUnavailableError, match="kill again"):
                step()
            filler.unlink()
            guard.kill(reason="stop", run="other")
            with pytest.raises(KillSwitchUnavailableError, match="kill again"):
                step()
            guard.kill(reason="stop")
            guard.revive()
            with pytest.raises(KillSwitchTriggeredError):
                step()
    except KillSwitchTriggeredError:
        pass
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_page_that_is_cut_off_while_it_is_mapped_is_noticed_before_it_is_touched(
    home: Path, spawn: Callable[..., Any], eventually: Wait
) -> None:
    child = spawn(
        """
switch.join(lambda generation: None)
say("ready")
for line in sys.stdin:
    try:
        switch.find("acme", "r1", since=0)
        switch.record(*kill_data("why", run="r2"))
    except KillSwitchUnavailableError as error:
        say("refused", "kill.page" in str(error))
"""
    )
    page = home / "kill.page"
    os.truncate(page, 0)
    child.process.stdin.write("\n")
    child.process.stdin.flush()
    child.expect("refused True")
    eventually(lambda: page.stat().st_size == PAGE_BYTES)
    assert child.end() == 0
    switch = PageKillSwitch(home)
    switch.repair()
    assert switch.find("acme", "r1", since=0) is None
    switch.close()


@pytest.mark.parametrize("name", ["control.lock", "control.log", "kill.page", "live"])
def test_links_inside_the_home_are_refused(home: Path, tmp_path: Path, name: str) -> None:
    switch = PageKillSwitch(home)
    switch.record(*kill_data("why", run="r2"))
    switch.join(lambda generation: None).leave()
    switch.close()
    (home / name).rename(tmp_path / name)
    (home / name).symlink_to(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    switch = PageKillSwitch(home)
    with pytest.raises(KillSwitchUnavailableError):
        switch.join(lambda generation: None)
        switch.find("acme", "r1", since=0)
        switch.record(*kill_data("why", run="r3"))
    switch.close()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o703])
def test_a_home_that_everybody_may_write_to_is_refused(home: Path, mode: int) -> None:
    home.mkdir()
    home.chmod(mode)
    switch = PageKillSwitch(home)
    for use in (
        lambda: switch.signal,
        lambda: switch.find("acme", "r1", since=0),
        lambda: switch.record(*kill_data("why")),
    ):
        with pytest.raises(KillSwitchUnavailableError, match=f"{mode:04o}"):
            use()
    assert list(home.iterdir()) == []
    switch.close()
