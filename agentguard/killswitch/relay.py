"""The relay of one host: it follows the control log on a server and writes the page that checks read.

Started by the first process that needs it, by `python -m agentguard.killswitch.relay FOLDER`; or
by itself, by `agentguard relay`.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path

from msgspec import structs

from agentguard.errors import KillSwitchUnavailableError
from agentguard.killswitch import relay_process
from agentguard.killswitch.hosts import host_report
from agentguard.killswitch.mirror import Mirror, MirrorFiles
from agentguard.killswitch.network import MAX_STALENESS, open_log
from agentguard.killswitch.participants import Participants
from agentguard.killswitch.processes import Process
from agentguard.killswitch.remote import HostReport
from agentguard.killswitch.waker import live_processes, wake

_logger = logging.getLogger(__name__)

#: Seconds between two readings of the record on the server.
INTERVAL = 0.1
#: Seconds between two looks at processes that have yet to act, which the looks take the processor from;
#: each is followed by a longer one.
_WATCHFUL = 0.002
_SLOWER = 1.2
#: Seconds between two reports without news.
_REPORTING = 1.0
#: Seconds between two checks of the whole log on the server.
_VERIFYING = 60.0
#: Seconds that a relay waits for somebody to take part: at its start, and after the last has left.
#: The second is longer than `agentguard kill` waits, so that it hears of processes that have ended.
GRACE = 15.0
LINGERING = 10.0


class Relay:
    """Follows one server for one folder.

    Args:
        folder: where the page is.
        server: the URL of the server.
        stay: whether it goes on while no process takes part.
        name: what people call this host; by default its host name.
        grace: seconds that it waits for the first to take part.
        lingering: seconds that it goes on after the last has left.
    """

    def __init__(
        self,
        folder: Path,
        server: str,
        *,
        stay: bool,
        name: str | None = None,
        grace: float = GRACE,
        lingering: float = LINGERING,
    ) -> None:
        remote = open_log(server)
        self._remote = remote
        self._files = MirrorFiles(folder, remote.url, MAX_STALENESS)
        self._mirror = Mirror(self._files, remote)
        self._live = folder / "live"
        self._participants = Participants(self._files, self._live)
        self._stay = stay
        self._host = relay_process.host_id(folder)
        self._name = name or platform.node() or "localhost"
        self._stopping = threading.Event()
        self._reported: HostReport | None = None
        #: The generation and who had acted when the report was made; None: it is to be made anew.
        self._seen: tuple[int, dict[Process, int]] | None = None
        self._report_due = 0.0
        self._watchful = _WATCHFUL
        self._verify_due = 0.0
        self._leave_at = time.monotonic() + grace
        self._lingering = lingering

    def stop(self) -> None:
        """Have `run` return soon."""
        self._stopping.set()

    def run(self) -> None:
        """Follow the server until `stop`, or until nobody takes part any more.

        Whatever goes wrong is tried again: until then the page shows no heartbeat, and is not believed.
        """
        pause, said = 0.02, ""
        while not self._stopping.is_set() and not self._is_left():
            try:
                with self._files.failing_closed():
                    self._follow()
                pause, said = 0.02, ""
            except KillSwitchUnavailableError as error:
                if str(error) != said:
                    said = str(error)
                    _logger.warning("%s", said)
                    self._files.complain(said)
                self._verify_due = 0.0
                self._reported = self._seen = None
                self._remote.close()
                self._stopping.wait(pause)
                pause = min(2 * pause, 0.25)
        self._end()

    def _follow(self) -> None:
        """Follow until an error, the end, or nobody is left."""
        due = 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            if now >= due:
                self._agree(now)
                due = now + INTERVAL
                if self._is_left():
                    return
            pause = self._report(now)
            if self._remote.wait(max(min(due - time.monotonic(), pause), 0.001)):
                self._read()

    def _agree(self, now: float) -> None:
        """Read the record on the server, and show that the page agrees with it.

        The server knows of this host before anybody here believes the page, so that no run starts on a
        host that a kill does not wait for.
        """
        began = time.monotonic_ns()
        if now >= self._verify_due:
            self._mirror.verify()
            self._remote.prune()
            self._verify_due = now + _VERIFYING
        self._read()
        self._files.exact()
        self._seen = None  # who has died since is seen by making the report alone
        if not self._remote.knows(self._host):
            self._reported = None
        self._report(now)
        self._files.current().beat(began)
        self._files.complain(None)

    def _read(self) -> None:
        """Take in what is new on the server, and wake those whom it may concern."""
        before, after = self._files.log.generation, None
        try:
            after = self._mirror.sync()
        finally:
            if after != before:
                wake(self._live)

    def _report(self, now: float) -> float:
        """Tell the server what has changed here, and return the seconds until the next look."""
        generation = self._files.log.generation
        seen = generation, self._participants.acknowledged()
        report = self._reported
        if report is None or seen != self._seen:
            report = host_report(self._host, self._name, generation, self._participants)
            if report != self._reported or now >= self._report_due:
                self._remote.report(report)
                if self._reported is None or generation != self._reported.generation:
                    self._watchful = _WATCHFUL
                self._reported, self._report_due = report, now + _REPORTING
            self._seen = seen
        if all(each >= report.generation for each in report.acknowledged):
            return INTERVAL
        # A process that stands still is not looked at all the time.
        pause, self._watchful = self._watchful, min(self._watchful * _SLOWER, INTERVAL)
        return pause

    def _is_left(self) -> bool:
        if self._stay or live_processes(self._live):
            self._leave_at = time.monotonic() + self._lingering
            return False
        return time.monotonic() >= self._leave_at

    def _end(self) -> None:
        try:
            last = self._reported
            if last is not None and not live_processes(self._live):  # else it is waited for as a silent one
                self._remote.report(structs.replace(last, ended=True))
        except KillSwitchUnavailableError as error:
            _logger.info("%s", error)
        self._remote.close()
        self._files.close()


def serve(folder: Path, server: str, *, stay: bool, name: str | None = None) -> bool:
    """Be the relay of a folder until SIGTERM or SIGINT, or until nobody takes part any more.

    Returns:
        False where the folder has a relay already.
    """
    lock = relay_process.claim(folder, patience=0.5)
    if lock is None:
        return False
    with lock:
        relay_process.note_pid(lock)
        relay = Relay(folder, server, stay=stay, name=name)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: relay.stop())
        relay.run()
    return True


def main(arguments: list[str]) -> int:
    """The relay that a process starts: its folder is the one argument, the server in the environment."""
    logging.basicConfig(format="%(asctime)s %(process)d %(message)s")
    serve(Path(arguments[0]), os.environ.pop(relay_process.URL_VARIABLE), stay=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
