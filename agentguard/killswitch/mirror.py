"""This host's copy of the control log on a server: a page and a log like those of a home without one.

The server has the truth and the copy is what checks read.  A record is on the server before it is
in the copy, so a server that has less than the copy has lost records: the copy gives them back.  One
that has other records than the copy is not believed, and nothing may run until somebody decides.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentguard.errors import KillSwitchUnavailableError, LogIntegrityError
from agentguard.events.codec import Stored, genesis
from agentguard.events.model import CONTROL_RUN_ID, KILL_SET, Head
from agentguard.killswitch import relay_process
from agentguard.killswitch.control import check_chain
from agentguard.killswitch.files import FALLBACK_SECONDS, KillFiles
from agentguard.killswitch.kill_requests import check_request
from agentguard.killswitch.layout import request_target
from agentguard.killswitch.model import Kill
from agentguard.killswitch.remote import RemoteLog

_logger = logging.getLogger(__name__)

#: Seconds of silence after which it is seen whether the relay has died, however long silence is tolerated.
_SILENT = 1.0
#: How often a record is tried to be appended while others append too.
_ATTEMPTS = 1000


class MirrorFiles(KillFiles):
    """The files of a home whose truth is elsewhere, believed while the relay is heard.

    Args:
        home: the folder of the copy.
        url: where the truth is, for messages.
        max_staleness: seconds for which a silent relay is believed.
        server: the URL that a relay is started with where there is none; None starts none.
    """

    def __init__(self, home: Path, url: str, max_staleness: float, server: str | None = None) -> None:
        super().__init__(home)
        self.url = url
        self.max_staleness = max_staleness
        self._server = server
        self._asked = -math.inf

    @property
    def _record_place(self) -> str:
        return self.url

    @property
    def fresh(self) -> bool:
        """Whether the relay was heard of late."""
        with suppress(KillSwitchUnavailableError, OSError):
            return self.current().silence <= self.max_staleness
        return False

    def check_fresh(self) -> None:
        """Raise `KillSwitchUnavailableError` once the relay has been silent for too long."""
        silence = self.current().silence
        if silence > self.max_staleness:
            heard = "not been heard yet" if silence == math.inf else f"been silent for {silence:.1f} s"
            raise KillSwitchUnavailableError(
                f"the relay of {self.url} has {heard}, and kills from other hosts may be missing "
                f"(max_staleness is {self.max_staleness:g} s): {self._complaint()}"
            )

    def keep_relay(self) -> None:
        """Start a relay where none runs, at most once a second."""
        now = time.monotonic()
        if self._server is not None and now - self._asked >= 1.0:
            self._asked = now
            relay_process.start(self.home, self._server)

    def find(self, tenant: str, run_id: str, since: int) -> Kill | None:
        """The kill that stops a run; one that is known is given even while the relay is silent."""
        kill = super().find(tenant, run_id, since)
        if kill is None:
            self.check_fresh()
        return kill

    def examine(self) -> int:
        """See that every file can be used and that the relay is heard."""
        generation = super().examine()
        if self.current().silence > min(self.max_staleness / 4, _SILENT):
            self.keep_relay()
        self.check_fresh()
        return generation

    @property
    def next_look(self) -> float:
        """Seconds until somebody looks without being woken: when the relay would be silent for too long."""
        with suppress(KillSwitchUnavailableError, OSError):
            left = self.max_staleness - self.current().silence
            soon = min(self.max_staleness / 8, _SILENT)
            return min(max(left, 0.01) if left > -0.1 else FALLBACK_SECONDS, soon)
        return FALLBACK_SECONDS

    def complain(self, problem: str | None) -> None:
        """Leave word for those who are refused, or take it back."""
        path = self.home / relay_process.COMPLAINT_NAME
        with suppress(OSError):
            if problem is None:
                path.unlink(missing_ok=True)
                return
            draft = path.with_suffix(".draft")  # a reader never finds half of it
            draft.write_text(problem, "utf-8")
            draft.replace(path)

    def _complaint(self) -> str:
        with suppress(OSError, UnicodeDecodeError):
            return (self.home / relay_process.COMPLAINT_NAME).read_text("utf-8")
        return "see that the server runs, and `agentguard relay` or its log beside the page"


class Mirror:
    """The copy and the server, and how one follows the other.  Safe for threads and processes."""

    def __init__(self, files: MirrorFiles, remote: RemoteLog) -> None:
        self.files = files
        self.remote = remote

    def sync(self) -> int:
        """Take in what the server has, give it back what it has lost, and give the generation.

        Raises:
            KillSwitchUnavailableError: the server cannot be reached.
            LogIntegrityError: it has other records than this host has seen, or altered ones.
        """
        local, head = self.files.log.newest()
        entries = self.remote.read(max(local - 1, 0))
        if local:
            if not entries:
                self._restore()
            elif entries[0].hash != head:
                raise self._other_record(local)
            entries = entries[1:]
        return self.files.mirror(entries) if entries else local

    def record(self, event_type: str, data: dict[str, Any], at_ns: int, after: int | None = None) -> int:
        """Append to the server's log, then show it in this host's page; see `KillSwitch.record`.

        A kill that cannot be recorded refuses every step of this host until it is.
        """
        check_request(event_type, data)
        try:
            stored = self._record(event_type, data, at_ns, after)
        except (KillSwitchUnavailableError, LogIntegrityError, OSError) as error:
            if event_type == KILL_SET:
                raise self.files.unrecorded(request_target(event_type, data), error) from error
            raise
        try:
            self.files.mirror([stored])
        except OSError as error:
            raise KillSwitchUnavailableError(
                f"{event_type} was recorded by {self.remote.url} as generation {stored.seq}, but this host "
                f"cannot write it to {self.files.log.path} ({error}): see that the disk has room and that "
                "the file is yours"
            ) from error
        return stored.seq

    def _record(self, event_type: str, data: dict[str, Any], at_ns: int, after: int | None) -> Stored:
        for _ in range(_ATTEMPTS):
            # Where this copy is up to date, as it is beside a relay, nothing has to be asked first.
            stored, previous = self.files.log.draft(event_type, data, at_ns, after)
            if self.remote.append(stored, previous):
                return stored
            self.sync()
        raise KillSwitchUnavailableError(f"{self.remote.url} takes records of others, and never this one")

    def verify(self) -> Head:
        """Check the chain on the server and of the copy from their start, and give the server's head.

        Raises:
            LogIntegrityError: the first record that does not fit, or is not the same in both.
        """
        self.files.log.verify()
        copies = {stored.seq: stored.hash for stored in self.files.log.read()}
        seq, digest = 0, b""
        for stored in check_chain(self.remote.read()):
            if copies.get(stored.seq, stored.hash) != stored.hash:
                raise self._other_record(stored.seq)
            seq, digest = stored.seq, stored.hash
        return Head(seq, digest.hex())

    def _restore(self) -> None:
        """Give back to the server what it had, as after a flush or a failover to an empty one."""
        there = len([*check_chain(self.remote.read())])
        mine = [*self.files.log.read()]
        hashes = [genesis(CONTROL_RUN_ID), *(stored.hash for stored in mine)]
        restored = [
            stored.seq for stored in mine[there:] if self.remote.append(stored, hashes[stored.seq - 1])
        ]
        if restored:
            _logger.warning(
                "%s had lost the control records %d to %d; this host gave them back",
                self.remote.url,
                restored[0],
                restored[-1],
            )

    def _other_record(self, seq: int) -> LogIntegrityError:
        problem = f"{self.remote.url} has another record than this host has seen"
        return LogIntegrityError(CONTROL_RUN_ID, seq, problem)
