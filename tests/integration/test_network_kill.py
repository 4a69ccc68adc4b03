"""Kills over a server: every host is reached, and without the server nobody is believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agentguard import Guard, KillSwitchTriggeredError, KillSwitchUnavailableError, guarded_step
from agentguard.errors import LogIntegrityError
from agentguard.killswitch import relay_process
from agentguard.killswitch.kill_requests import kill_data, revive_data
from agentguard.killswitch.mirror import MirrorFiles
from agentguard.killswitch.network import NetworkKillSwitch
from tests.servers import Valkey, wait_for

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the page needs flock and FIFOs"),
    # Relays and stopped servers: on a loaded machine, what they have to say comes late.
    pytest.mark.long,
]

Host = Callable[[str], NetworkKillSwitch]


@guarded_step
def step() -> str:
    return "done"


@pytest.fixture
def server(own_redis: Valkey) -> Valkey:
    return own_redis


@pytest.fixture
def url(server: Valkey) -> str:
    return f"{server.url}?max_staleness=1"


@pytest.fixture
def host(url: str, tmp_path: Path) -> Iterator[Host]:
    """A switch on a host, which is a home here; its relay is ended with the test."""
    opened: list[NetworkKillSwitch] = []

    def switch(name: str) -> NetworkKillSwitch:
        opened.append(NetworkKillSwitch(url, tmp_path / name))
        return opened[-1]

    yield switch
    for each in opened:
        each.close()
        end_relay(each)


def end_relay(switch: NetworkKillSwitch) -> None:
    if (pid := relay_process.pid(switch.home)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: relay_process.pid(switch.home) != pid)


def refused(switch: NetworkKillSwitch) -> bool:
    """Whether a run that nobody killed would be refused."""
    try:
        return switch.find("acme", "nobody's", since=0) is not None
    except KillSwitchUnavailableError:
        return True


def follows(switch: NetworkKillSwitch) -> None:
    """Take part, as a process with runs does, so that the host has a relay."""
    switch.join(lambda generation: None)
    assert not refused(switch)


def test_a_new_host_knows_what_was_recorded_before(host: Host) -> None:
    host("a").record(*kill_data("stop", tenant="acme"))
    late = host("b")
    assert late.signal[1] == 1
    found = late.find("acme", "r1", since=1)
    assert found is not None
    assert late.verify().seq == 1


def test_a_kill_reaches_every_host_and_says_whom_it_hit(host: Host) -> None:
    told: dict[str, list[int]] = {"a": [], "b": []}
    for name, generations in told.items():
        host(name).join(generations.append)
    outside = host("c")
    wait_for(lambda: len(outside.hosts()) == 2)  # only who has reported is waited for
    generation = outside.record(*kill_data("stop", run="r1"))
    assert outside.acknowledgements(generation, timeout=20)[:2] == (2, 2)
    assert told == {"a": [1], "b": [1]}
    assert [report.count(generation)[:2] for report in host("c").hosts()] == [(1, 1), (1, 1)]
    for name in ("a", "b", "c"):
        found = host(name).find("acme", "r1", since=0)
        assert found is not None
        assert found.reason == "stop"
        assert [kill.target for kill in host(name).kills()] == ["r1"]
    host("b").record(*revive_data("fixed", run="r1"))
    wait_for(lambda: host("a").find("acme", "r1", since=2) is None)


def test_a_process_that_stands_still_on_another_host_has_not_acknowledged(
    host: Host, url: str, tmp_path: Path
) -> None:
    program = """
import sys
from pathlib import Path
from agentguard.killswitch.network import NetworkKillSwitch
switch = NetworkKillSwitch(sys.argv[1], Path(sys.argv[2]))
switch.join(lambda generation: None)
print("ready", flush=True)
sys.stdin.read()
"""
    away = [sys.executable, "-c", program, url, str(tmp_path / "b")]
    with subprocess.Popen(away, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        wait_for(lambda: len(host("a").hosts()) == 1)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        generation = host("a").record(*kill_data("stop"))
        assert host("a").acknowledgements(generation, timeout=0.2)[:2] == (1, 0)
        child.send_signal(signal.SIGCONT)
        assert host("a").acknowledgements(generation, timeout=20)[:2] == (1, 1)
        child.kill()
    end_relay(host("b"))


def test_the_relay_ends_with_the_last_that_takes_part(host: Host) -> None:
    switch = host("a")
    participants = [switch.join(lambda generation: None) for _ in range(2)]
    pid = relay_process.pid(switch.home)
    assert pid is not None
    participants[0].leave()
    other = NetworkKillSwitch(f"{switch.url}", switch.home.parents[1])
    participants[1].leave()
    wait_for(lambda: relay_process.pid(switch.home) is None)
    wait_for(lambda: other.hosts() == [])
    other.close()


def test_a_relay_that_was_killed_is_replaced(host: Host) -> None:
    switch = host("a")
    follows(switch)
    first = relay_process.pid(switch.home)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: relay_process.pid(switch.home) not in (None, first))
    wait_for(lambda: not refused(switch))
    host("b").record(*kill_data("stop", run="r1"))
    wait_for(lambda: not refused(switch) and switch.find("acme", "r1", since=0) is not None)


def test_while_the_relay_stands_still_nobody_is_believed(host: Host) -> None:
    switch = host("a")
    follows(switch)
    pid = relay_process.pid(switch.home)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: refused(switch))
    with pytest.raises(KillSwitchUnavailableError, match="silent for"):
        switch.find("acme", "r1", since=0)
    host("b").record(*kill_data("stop", run="r1"))
    assert refused(switch)
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not refused(switch))
    wait_for(lambda: switch.find("acme", "r1", since=0) is not None)


@pytest.mark.parametrize("fault", ["paused", "stopped"])
def test_while_the_server_is_gone_steps_are_refused_and_then_go_on_without_a_restart(
    server: Valkey, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Host, fault: str
) -> None:
    monkeypatch.setenv("AGENTGUARD_HOME", str(tmp_path / "a"))

    def step_is_refused() -> bool:
        try:
            step()
        except KillSwitchUnavailableError:
            return True
        return False

    with Guard.open("memory://", kill_switch=url, telemetry=False) as guard:
        with pytest.raises(KillSwitchTriggeredError), guard.run("agent") as run:
            step()
            guard.kill(reason="another", run="another")
            if fault == "paused":
                server.send(signal.SIGSTOP)
            else:
                server.stop()
            wait_for(step_is_refused)
            if fault == "paused":
                server.send(signal.SIGCONT)
            else:
                server.start()
            wait_for(lambda: not step_is_refused())
            host("b").record(*kill_data("stop", run=run.id))
            wait_for(step_is_refused)
        assert [kill.target for kill in guard.kills()] == ["another", run.id]
    end_relay(host("a"))


@pytest.mark.parametrize("fault", ["flushed", "failed over to an empty one"])
def test_records_that_the_server_lost_are_given_back_and_stay_in_force(
    server: Valkey, host: Host, fault: str
) -> None:
    switch = host("a")
    follows(switch)
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
    wait_for(lambda: len(new.kills()) == 2)
    assert new.record(*kill_data("three", run="r3")) == 3
    wait_for(lambda: switch.find("acme", "r3", since=0) is not None)
    assert switch.find("acme", "r1", since=0) is not None
    assert switch.verify() == new.verify()


def test_a_server_with_another_history_is_not_believed_until_somebody_decides(
    server: Valkey, host: Host
) -> None:
    switch = host("a")
    switch.record(*kill_data("one", run="r1"))
    server.command("FLUSHALL")
    host("b").record(*kill_data("another", run="r2"))
    switch.join(lambda generation: None)
    wait_for(lambda: (switch.home / relay_process.COMPLAINT_NAME).exists() and refused(switch))
    with pytest.raises(KillSwitchUnavailableError, match="another record than this host has seen"):
        switch.find("acme", "r9", since=0)
    assert switch.find("acme", "r1", since=0) is not None, "what is known stays in force"
    assert host("a").repair(accept_loss=True) == 1
    wait_for(lambda: not refused(host("a")))
    assert [kill.target for kill in host("a").kills()] == ["r2"]


def test_an_altered_record_on_the_server_is_found_wherever_it_lies(server: Valkey, host: Host) -> None:
    for reason in ("one", "two", "three"):
        host("a").record(*kill_data(reason, run="r1"))
    key = "{agentguard}:kills"
    entry = server.command("LINDEX", key, "1")
    server.command("LSET", key, "1", entry.replace(b'"two"', b'"owt"'))
    with pytest.raises(LogIntegrityError) as caught:
        host("a").verify()
    assert caught.value.seq == 2
    host("b").join(lambda generation: None)
    with pytest.raises(KillSwitchUnavailableError, match="record 2"):
        host("b").find("acme", "r9", since=0)


def test_a_kill_that_the_server_does_not_take_refuses_this_host_until_it_does(
    server: Valkey, host: Host
) -> None:
    switch = host("a")
    follows(switch)
    server.stop()
    with pytest.raises(KillSwitchUnavailableError, match="could not be recorded"):
        host("a").record(*kill_data("stop", run="r1"))
    assert refused(switch)
    server.start()
    with pytest.raises(KillSwitchUnavailableError, match="kill again"):
        switch.find("acme", "r2", since=0)
    host("b").record(*kill_data("stop", run="r1"))
    wait_for(lambda: not refused(switch))


def test_the_command_line_kills_on_every_host_and_names_each(
    url: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follows(host("a"))
    monkeypatch.setenv("AGENTGUARD_KILL_SWITCH", url)

    def kill(*options: str) -> Any:
        words = [sys.executable, "-m", "agentguard.cli", "kill", "--yes", "--reason", "stop", "--home"]
        return subprocess.run(
            [*words, str(tmp_path / "c"), *options], check=False, capture_output=True, text=True
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


def test_a_relay_runs_by_itself(url: str, host: Host, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "agentguard.cli", "relay", "--kill-switch", url, "--name", "box"]
    with subprocess.Popen([*words, "--home", str(tmp_path / "a")]) as relay:
        switch = host("a")
        wait_for(lambda: relay_process.pid(switch.home) == relay.pid)
        follows(switch)
        assert relay_process.pid(switch.home) == relay.pid
        wait_for(lambda: [report.name for report in switch.hosts()] == ["box"])
        second = subprocess.run(
            [*words, "--home", str(tmp_path / "a")], check=False, capture_output=True, text=True
        )
        assert second.returncode == 2
        assert "has a relay already" in second.stderr
        relay.terminate()
        assert relay.wait(20) == 0
        assert switch.hosts() == []


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
