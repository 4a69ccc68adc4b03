"""Kills over a server that forgets, that denies a right, or whose answer is lost; and hosts without room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agentguard import KillSwitchUnavailableError
from agentguard.events.codec import Stored
from agentguard.killswitch.kill_requests import kill_data
from agentguard.killswitch.network import NetworkKillSwitch, open_log
from agentguard.killswitch.relay import Relay
from tests.kit import wait_until
from tests.relays import Hosts, refused, running_relay
from tests.servers import Valkey

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")


@pytest.fixture
def url(own_redis: Valkey) -> str:
    return f"{own_redis.url}?prefix={uuid.uuid4().hex}"


@pytest.fixture(params=["redis", "postgres"])
def either(request: pytest.FixtureRequest) -> str:
    """A server of either kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


def test_a_record_that_is_sent_again_is_there_once_and_counts_as_recorded(
    either: str, tmp_path: Path
) -> None:
    """As where the server took it and its answer was lost."""
    switch = NetworkKillSwitch(either, tmp_path)
    log = open_log(either)
    try:
        switch.record(*kill_data("stop", run="r1"))
        stored, previous = _next(switch)
        assert log.append(stored, previous)
        assert log.append(stored, previous)
        other, previous = _next(switch)
        assert not log.append(other, previous), "it follows record 1 no more"
        assert [entry.hash for entry in log.read(1)] == [stored.hash]
    finally:
        log.close()
        switch.close()


def _next(switch: NetworkKillSwitch) -> tuple[Stored, bytes]:
    return switch._files.log.draft(*kill_data("stop", run="r2"), time.time_ns(), None)


def test_a_kill_by_a_user_who_may_not_publish_reaches_every_host(own_redis: Valkey, host: Hosts) -> None:
    switch = host.following("a")
    own_redis.command("ACL", "SETUSER", "killer", "on", ">p", "~*", "&*", "+@all", "-publish")
    killer = host("b", url=host.url.replace("//", "//killer:p@"))
    generation = killer.record(*kill_data("stop", run="r1"))
    assert killer.acknowledgements(generation, timeout=60)[:2] == (1, 1)
    assert [kill.target for kill in switch.kills()] == ["r1"]


def test_hosts_are_waited_for_though_the_server_was_flushed_before_the_kill(
    own_redis: Valkey, host: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is known there when the kill is recorded, which does not say that nobody is there."""
    monkeypatch.setattr("agentguard.killswitch.hosts.REPORTED_AGAIN", 60.0)
    relay = running_relay(host.following("a"))
    killer = host("b")
    wait_until(lambda: [len(report.acknowledged) for report in killer.hosts()] == [1])
    os.kill(relay, signal.SIGSTOP)
    own_redis.command("FLUSHALL")
    generation = killer.record(*kill_data("stop", run="r1"))
    threading.Timer(0.1, os.kill, [relay, signal.SIGCONT]).start()
    assert killer.acknowledgements(generation, timeout=60)[:2] == (1, 1)


def test_a_kill_where_no_host_is_says_so(host: Hosts) -> None:
    killer = host("a")
    live, acknowledged, seconds = killer.acknowledgements(killer.record(*kill_data("stop")), timeout=60)
    assert (live, acknowledged) == (0, 0)
    assert seconds < 60


def test_a_host_reports_again_as_soon_as_the_server_has_lost_its_report(
    own_redis: Valkey, host: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentguard.killswitch.relay._REPORTING", 1e9)
    watching = host("b")
    relay = Relay(host("a").home, host.url, stay=True)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        wait_until(lambda: len(watching.hosts()) == 1)
        own_redis.command("FLUSHALL")
        wait_until(lambda: len(watching.hosts()) == 1)
    finally:
        relay.stop()
        thread.join()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The state directory of host a on a disk of 400 kB."""
    folder = tmp_path / "a"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def filled(disk: Path) -> Path:
    """Leave no room on a disk, and give the file that takes it."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return filler


def test_a_host_that_has_no_room_for_a_kill_refuses_every_step_until_it_has(
    small_disk: Path, host: Hosts
) -> None:
    """Its relay knows of the kill and cannot write down whom it stops."""
    switch = host.following("a")
    filler = filled(small_disk)
    host("b").record(*kill_data("stop", run="r1"))
    wait_until(lambda: refused(switch))
    with pytest.raises(KillSwitchUnavailableError, match="a kill could not be written .* the disk has room"):
        switch.find("acme", "r9", since=0)
    filler.unlink()
    wait_until(lambda: not refused(switch))
    assert switch.find("acme", "r1", since=0) is not None
    assert switch.find("acme", "r9", since=0) is None


def test_a_kill_by_a_host_without_room_is_recorded_and_says_what_is_not(
    small_disk: Path, host: Hosts
) -> None:
    there = host.following("b")
    killer = host("a")
    killer.record(*kill_data("before", run="r0"))
    filler = filled(small_disk)
    said = r"kill_set was recorded by redis://.* as generation 2, but this host cannot write"
    with pytest.raises(KillSwitchUnavailableError, match=said):
        killer.record(*kill_data("why " * 1000, run="r1"))  # more than the file's last block takes
    wait_until(lambda: there.find("acme", "r1", since=0) is not None)
    filler.unlink()
    assert killer.record(*kill_data("more", run="r2")) == 3
    assert [kill.target for kill in killer.kills()] == ["r0", "r1", "r2"]
