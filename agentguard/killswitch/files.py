"""The control log and the page of one home, and which of them to believe: the stricter.

A record goes into the log first and is then shown in the page.  A page that is behind the log, as
after a crash between the two, is brought up to it.  A page that is ahead means that records were
lost, and then nothing may run.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agentguard._home import make_private
from agentguard.errors import AgentGuardError, KillSwitchUnavailableError, LogIntegrityError
from agentguard.events.codec import Stored, decode
from agentguard.events.model import KILL_SET
from agentguard.killswitch.control import ControlLog
from agentguard.killswitch.kill_requests import check_request
from agentguard.killswitch.layout import (
    ALARM,
    PAGE_BYTES,
    PAGE_NAME,
    Page,
    PageDamagedError,
    request_target,
)
from agentguard.killswitch.lockfile import LockFile
from agentguard.killswitch.model import GENERATION, Kill

_LOCK_SECONDS = 30.0
#: How long a change can stay unseen where the waking failed.
FALLBACK_SECONDS = 1.0


class KillFiles:
    """One process's view of the files under a home.  Safe for threads and fork; opens lazily."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / PAGE_NAME
        self.log = ControlLog(home)
        self._lock = threading.RLock()
        self._file = LockFile(home / "control.lock")
        self._page: Page | None = None
        self._retired: list[Page] = []
        self._floor = 0
        self._closed = False
        #: Whether the watcher has found files that cannot be used, so that hints alone prove nothing.
        self._in_doubt = False

    @property
    def _record_place(self) -> object:
        """Where a record is made, for messages."""
        return self.log.path

    @property
    def next_look(self) -> float:
        """Seconds until somebody who waits to be woken looks without being woken."""
        return FALLBACK_SECONDS

    @contextmanager
    def locked(self, timeout: float = _LOCK_SECONDS) -> Iterator[None]:
        """Keep out everybody else who would write, in this process and others."""
        with self._lock:
            if not self.home.is_dir():
                make_private(self.home)
            check_private(self.home)
            with self._file.held(timeout):
                yield

    @contextmanager
    def failing_closed(self) -> Iterator[None]:
        """Turn whatever goes wrong with the files into the error that refuses steps."""
        try:
            yield
        except LogIntegrityError as error:
            raise KillSwitchUnavailableError(
                f"{self.log.path}, record {error.seq}: {error.problem}; nothing may run until "
                "the file is restored (`agentguard doctor` says more)"
            ) from error
        except OSError as error:
            raise KillSwitchUnavailableError(
                f"the kill switch in {self.home} cannot be used ({error}); see that the directory "
                "is yours and can be written, and that the disk has room, or choose another by "
                "AGENTGUARD_HOME; `agentguard doctor` checks it"
            ) from error

    def check_open(self) -> None:
        """Raise once it was closed."""
        if self._closed:
            raise KillSwitchUnavailableError(f"the kill switch in {self.home} was closed")

    def current(self) -> Page:
        """The page now under its name, mapped; made if there is none."""
        self.check_open()
        page = self._page
        if page is None or not page.is_at(self.path):
            with self.locked():
                page = self._map()
        page.check(self.path)
        return page

    def exact(self) -> int:
        """Read the log on, and give the generation.

        Raises:
            KillSwitchUnavailableError: the page is ahead of the log, or is damaged.
            LogIntegrityError: the log is damaged.
        """
        # In this order, for a record is in the log before the page shows it.
        page = self.current()
        announced = page.newest
        generation = self.log.refresh()
        self._check_loss(max(announced, self._floor), generation)
        page.check_missing(self.log.path)
        self._floor = generation
        return generation

    def examine(self) -> int:
        """See that every file can be used, also where nothing new asks for it, and give the generation.

        Until this has found everything in order again, each look-up asks the files themselves.

        Raises:
            KillSwitchUnavailableError: as `exact`.
            LogIntegrityError: the log is damaged.
            OSError: a file cannot be opened.
        """
        self._in_doubt = True
        check_private(self.home)
        self.log.check_usable()
        generation = self.exact()
        self._in_doubt = False
        return generation

    def find(self, tenant: str, run_id: str, since: int) -> Kill | None:
        """The kill that stops a run; one that is known is given even if the rest is in ruins."""
        log = self.log
        try:
            if self._in_doubt:
                self.examine()
            elif not self.current().excludes(tenant, run_id, after=log.generation, size=log.size()):
                self.exact()
        except (AgentGuardError, OSError):
            self.known()
            kill = log.index.find(tenant, run_id, since)
            if kill is None:
                raise
            return kill
        return log.index.find(tenant, run_id, since)

    def known(self) -> int:
        """The generation as far as the log can be read."""
        with suppress(LogIntegrityError, OSError):
            return self.log.refresh()
        return self.log.generation

    def record(self, event_type: str, data: dict[str, Any], at_ns: int, after: int | None = None) -> int:
        """Append to the log, then show it in the page; see `KillSwitch.record`.

        Where the page is damaged, the record is made all the same before the error is raised.  A kill
        that cannot be recorded stops everybody in another way: every step is refused until it is.
        """
        self.check_open()
        check_request(event_type, data)
        target = request_target(event_type, data)
        try:
            with self.locked():
                page, damage = self._page_to_announce_in()
                generation = self.log.append(event_type, data, at_ns, after)
                if page is not None:
                    self._announce(page, event_type, target)
        except (KillSwitchUnavailableError, LogIntegrityError, OSError) as error:
            if event_type == KILL_SET:
                raise self.unrecorded(target, error) from error
            raise
        if damage is not None:
            raise KillSwitchUnavailableError(
                f"{event_type} was recorded as generation {generation}, but {damage}"
            ) from damage
        return generation

    def _page_to_announce_in(self) -> tuple[Page | None, PageDamagedError | None]:
        """The page, or what is wrong with it."""
        try:
            page = self._map()
            page.check(self.path)
            self._check_loss(max(page.newest, self._floor), self.log.refresh())
        except PageDamagedError as damage:
            return None, damage
        return page, None

    def _announce(self, page: Page, event_type: str, target: str) -> None:
        if event_type == KILL_SET:
            page.make_up(target)
        page.announce(self.log.state, target)

    def unrecorded(self, target: str, error: BaseException) -> KillSwitchUnavailableError:
        """Refuse every step, since nobody would find the kill; gives the error that says so."""
        reached = f"and {self.path} could not be reached either: nothing was stopped"
        try:
            page = self._page
            if page is None or not page.is_at(self.path):
                page = Page.open(self.path)
            page.check(self.path)
            page.raise_alarm(target)
            reached = f"so every step under {self.home} is refused until it is"
        except FileNotFoundError:
            reached = "and no process is attached"
        except (OSError, PageDamagedError) as worse:
            error.add_note(str(worse))
        return KillSwitchUnavailableError(
            f"the kill could not be recorded in {self._record_place} ({_said(error)}), {reached}; "
            f"{_way_out(error)}, then kill again (`agentguard doctor` says more)"
        )

    def mirror(self, entries: Iterable[Stored]) -> int:
        """Take in records that are durable elsewhere, and show them in the page; gives the generation.

        Those that are known already are passed over.  A kill that cannot be written, as on a full disk,
        has every step here refused until it is.

        Raises:
            LogIntegrityError: one does not follow the newest record that is known.
            OSError: one cannot be written.
        """
        self.check_open()
        with self.locked():
            page = self._map()
            page.check(self.path)
            generation = self.log.refresh()
            for stored in entries:
                if stored.seq > generation:
                    record = decode(stored.body)
                    target = request_target(record.type, record.data or {})
                    try:
                        generation = self.log.add(stored, durable=False)
                    except OSError:
                        if record.type == KILL_SET:  # nobody here would find it
                            page.raise_alarm(target)
                        raise
                    self._announce(page, record.type, target)
            return generation

    def catch_up(self) -> None:
        """Bring the page up to the log, unless somebody is at it right now."""
        with suppress(TimeoutError), self.locked(timeout=0):
            self._agree(self._map())

    def spread(self, generation: int) -> None:
        """Show a generation to those who still look at pages that were deleted."""
        for page in self._retired:
            if page.whole and page.words[GENERATION] != generation:
                page.words[GENERATION] = generation

    def alarm(self) -> None:
        """Make everybody look who reads a page that is damaged or no longer under its name."""
        page = self._page
        if page is None:
            return
        with suppress(OSError):
            at_its_place = page.is_at(self.path)
            if at_its_place and not page.whole:
                # Whoever reads what was cut off dies; zeros are no page, but they can be read.
                os.truncate(self.path, PAGE_BYTES)
            if page.whole and not (page.intact and at_its_place):
                page.raise_alarm()
        self.spread(ALARM)

    def repair(self, *, accept_loss: bool = False) -> int:
        """Rebuild the page in place from the whole log, and give the generation.

        Raises:
            LogIntegrityError: the log itself is damaged.
            KillSwitchUnavailableError: the page shows that records were lost, and `accept_loss`
                was not given.
        """
        with self.locked():
            log = ControlLog(self.home)
            generation = log.refresh()
            try:
                page = Page.open(self.path, repair=True)
            except FileNotFoundError:
                Page.create(self.path, log.state)
            else:
                if page.intact and not accept_loss:
                    self._check_loss(page.newest, generation)
                    page.check_missing(log.path)
                page.rewrite(log.state)
            self.log, self._floor = log, generation
            return generation

    def close(self) -> None:
        """Refuse from now on.  What was mapped goes when nobody looks at it any more."""
        self._closed = True
        self._page = None
        self._retired = []

    def after_fork(self) -> None:
        """Keep the shared page; make the locks and the reader anew."""
        self._lock = threading.RLock()
        self._file.after_fork()
        # A thread of the parent may have been half through reading on.
        self.log = ControlLog(self.home)

    def _map(self) -> Page:
        """The page under its name.  The caller holds the lock."""
        old = self._page
        if old is not None and old.is_at(self.path):
            return old
        generation = self.log.refresh()
        self._check_loss(self._floor, generation)
        try:
            page = Page.open(self.path)
        except FileNotFoundError:
            page = Page.create(self.path, self.log.state)
        self._agree(page)
        self._page, self._floor = page, generation
        if old is not None:
            self._retired.append(old)
            self.spread(generation)
        return page

    def _agree(self, page: Page) -> None:
        page.check(self.path)
        self._check_loss(page.newest, self.log.refresh())
        if page.newest < self.log.generation:
            page.announce(self.log.state)

    def _check_loss(self, announced: int, generation: int) -> None:
        if announced > generation:
            raise KillSwitchUnavailableError(
                f"{self.log.path} ends at record {generation}, but {self.path} has announced "
                f"{announced}: records were lost, and nothing may run; restore the file, or "
                "accept the loss by `agentguard doctor --repair --accept-loss`"
            )


def check_private(folder: Path) -> None:
    """Refuse a folder that others may put files in, or that is somewhere else than its name says.

    Raises:
        KillSwitchUnavailableError: everybody may write to it, or it is no folder.
    """
    try:
        mode = folder.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        mode = folder.stat().st_mode
    if not stat.S_ISDIR(mode):
        raise KillSwitchUnavailableError(f"{folder} is no directory; choose another by AGENTGUARD_HOME")
    if mode & stat.S_IWOTH:
        raise KillSwitchUnavailableError(
            f"{folder} has mode {stat.S_IMODE(mode):04o}: every user of this machine could lift a kill; "
            f"`chmod 700 {folder}`, or choose another by AGENTGUARD_HOME"
        )


def _way_out(error: BaseException) -> str:
    if isinstance(error, OSError):
        return "see that the disk has room and that the file is yours"
    return "mend that"


def _said(error: BaseException) -> str:
    return f"record {error.seq}: {error.problem}" if isinstance(error, LogIntegrityError) else str(error)
