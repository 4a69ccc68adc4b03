"""The relay as a process of its own: started where none runs, and known by a lock that it holds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO

from agentguard._home import make_private

if sys.platform != "win32":  # which has no page to relay to
    import fcntl

#: Names the server to the process, where other users cannot read it.
URL_VARIABLE = "AGENTGUARD_RELAY_URL"
LOCK_NAME = "relay.lock"
LOG_NAME = "relay.log"
#: Where the relay says why it does not agree with the server.
COMPLAINT_NAME = "relay.error"
#: More bytes than that are not kept of what relays had to say.
_LONGEST_LOG = 1_000_000
_PAUSE = 0.005


def claim(folder: Path, *, patience: float = 0.0) -> IO[bytes] | None:
    """Become the relay of a folder: gives a file to keep open, or None where there is one already.

    Who only looks whether there is one holds the lock for a moment too, which `patience` seconds outlast.
    """
    make_private(folder)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(folder / LOCK_NAME, flags, 0o600), "rb+")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(_PAUSE)
        else:
            return file


def note_pid(lock: IO[bytes]) -> None:
    """Write into a relay's lock whose it is."""
    lock.truncate(0)
    lock.write(b"%d\n" % os.getpid())
    lock.flush()


def pid(folder: Path) -> int | None:
    """The process id of a folder's relay, or None where none runs."""
    if not is_running(folder):
        return None
    text = (folder / LOCK_NAME).read_text("ascii").strip()
    return int(text) if text.isdigit() else None


def is_running(folder: Path) -> bool:
    """Whether a folder has a relay, be it halted."""
    lock = claim(folder)
    if lock is not None:
        lock.close()
    return lock is None


def start(folder: Path, server: str) -> None:
    """Start a relay that ends with the last process that takes part, unless there is one.

    Of several that are started at once, one stays.
    """
    if is_running(folder):
        return
    (folder / COMPLAINT_NAME).unlink(missing_ok=True)  # it was another's
    log = folder / LOG_NAME
    mode = "wb" if log.exists() and log.stat().st_size > _LONGEST_LOG else "ab"
    command = [sys.executable, "-m", "agentguard.killswitch.relay", str(folder)]
    with log.open(mode) as output:
        # The shell ends at once, so that the relay is nobody's child and is left in nobody's way.
        subprocess.run(  # noqa: S603 - our own interpreter
            ["/bin/sh", "-c", '"$0" "$@" &', *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, URL_VARIABLE: server},
            start_new_session=True,
            check=False,
        )


def host_id(folder: Path) -> str:
    """The id of this host's page, made at first use."""
    path = folder / "host"
    with suppress(FileNotFoundError):
        if known := path.read_text("ascii").strip():
            return known
    make_private(folder)
    made = folder / f"host.{os.getpid()}.{uuid.uuid4().hex}"
    made.write_text(uuid.uuid4().hex, "ascii")
    with suppress(FileExistsError):
        os.link(made, path)
    made.unlink()
    return path.read_text("ascii").strip()
