"""Hosts of a test, each with a state directory and a relay of its own, which are ended with the test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from agentguard import Guard, Run, guarded_step
from agentguard.errors import KillSwitchUnavailableError
from agentguard.events.codec import Stored, chain, encode
from agentguard.events.model import Record
from agentguard.killswitch import relay_process
from agentguard.killswitch.control import format_entry
from agentguard.killswitch.network import NetworkKillSwitch
from tests.kit import wait_until

#: Seconds of silence that are tolerated where silence is not what is tested.
PATIENT = 60.0


def with_option(url: str, **options: float) -> str:
    """Return a URL with options added."""
    words = "&".join(f"{name}={value:g}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{words}"


class Hosts:
    """Opens switches on one server, each on the host, which is a home here, of the name it is asked for."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self._opened: list[NetworkKillSwitch] = []

    def __call__(
        self, name: str, *, url: str | None = None, max_staleness: float = PATIENT
    ) -> NetworkKillSwitch:
        """Open a switch on a host."""
        switch = NetworkKillSwitch(
            with_option(url or self.url, max_staleness=max_staleness), self.folder / name
        )
        self._opened.append(switch)
        return switch

    def following(self, name: str, *, max_staleness: float = PATIENT) -> NetworkKillSwitch:
        """Open a switch that takes part, as a process with runs does, so that the host has a relay."""
        switch = self(name, max_staleness=max_staleness)
        switch.join(lambda generation: None)
        wait_until(lambda: not refused(switch))
        return switch

    def close(self) -> None:
        """Close every switch, and end every relay."""
        for switch in self._opened:
            switch.close()
        end_relays(self.folder)


def end_relays(folder: Path) -> None:
    """End the relay of every home in a folder, and of the folder where it is one."""
    relays = {page.parent: relay_pid(page.parent) for page in folder.rglob("relay/*/kill.page")}
    for pid in relays.values():
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGTERM)
    for home, pid in relays.items():
        wait_until(lambda home=home, pid=pid: pid is None or relay_pid(home) != pid)  # type: ignore[misc]


def relay_pid(home: Path) -> int | None:
    """Return the process id of the relay of a page, or None where none runs."""
    return relay_process.pid(home)


def running_relay(switch: NetworkKillSwitch) -> int:
    """Return the process id of a host's relay, which has to run."""
    pid = relay_pid(switch.home)
    assert pid is not None
    return pid


@contextmanager
def believed_run(guard: Guard, name: str) -> Iterator[Run]:
    """A run that is begun once the relay is heard, which may miss its time on a loaded machine."""
    opened: list[Run] = []
    with ExitStack() as stack:

        def begins() -> bool:
            with suppress(KillSwitchUnavailableError):
                opened.append(stack.enter_context(guard.run(name)))
            return bool(opened)

        wait_until(begins)
        yield opened[0]


def control_entry(after: Stored, event_type: str, data: dict[str, Any]) -> str:
    """Return a record that would follow another one, as relays were told of it by early servers."""
    body = encode(Record(seq=after.seq + 1, type=event_type, at_ns=1, data=data))
    stored = Stored(after.seq + 1, body, chain(after.hash, body), None, after.seq + 1)
    return f"{stored.seq} {format_entry(stored).decode()}"


def refused(switch: NetworkKillSwitch) -> bool:
    """Say whether a run that nobody killed would be refused."""
    try:
        return switch.find("acme", "nobody's", since=0) is not None
    except KillSwitchUnavailableError:
        return True


@guarded_step
def step() -> str:
    """Do nothing, as a step."""
    return "done"


def step_is_refused() -> bool:
    """Say whether a step of the current run is refused for want of the kill switch."""
    try:
        step()
    except KillSwitchUnavailableError:
        return True
    return False
