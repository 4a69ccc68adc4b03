"""Where a machine's state lies when nobody says otherwise.  Nothing is created here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from agentguard.errors import StoreUnavailableError

VARIABLE = "AGENTGUARD_HOME"


def default_home() -> Path:
    """Return the state directory: `AGENTGUARD_HOME`, else the platform's place for a user's state.

    Raises:
        StoreUnavailableError: the user has no home directory, and `AGENTGUARD_HOME` is not set.
    """
    try:
        return _default_home()
    except RuntimeError as error:
        raise StoreUnavailableError(
            f"there is no state directory ({str(error).rstrip('.')}): set {VARIABLE} to one of your own"
        ) from error


def _default_home() -> Path:
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "agentguard"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "agentguard"
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    # The XDG specification says that a relative path is to be ignored.
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "agentguard"
