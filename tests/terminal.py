"""What a command writes to a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress


def on_a_terminal(command: Sequence[str], environment: Mapping[str, str], columns: int = 80) -> str:
    """Run a command to its end; return what it wrote, standard error among it."""
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    # A worker of pytest-xdist has a COLUMNS of its own.
    settings = {"TERM": "xterm-256color", **environment, "COLUMNS": str(columns)}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=settings):
        os.close(theirs)
        written = b""
        # A terminal whose other side has gone ends with an error on Linux.
        with suppress(OSError):
            while part := os.read(ours, 65536):
                written += part
    os.close(ours)
    return written.decode()


def without_styles(text: str) -> str:
    """Return what is to be read of it."""
    return re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", text)
