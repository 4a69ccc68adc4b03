"""Where a machine's state lies when nobody says otherwise, and how its folders are made."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import quote, unquote

from agentguard.errors import StoreUnavailableError

VARIABLE = "AGENTGUARD_HOME"
STORE_VARIABLE = "AGENTGUARD_STORE"


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


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone.

    `mkdir(parents=True)` would leave those above to the umask; who may write there replaces what is in them.
    """
    if folder != folder.parent and not folder.exists():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def store_url(home: Path | None = None) -> str:
    """Return the URL of the event store: `AGENTGUARD_STORE`, else SQLite in `home`, the state directory.

    Raises:
        StoreUnavailableError: as `default_home`.
    """
    return os.environ.get(STORE_VARIABLE) or sqlite_url((home or default_home()) / "agentguard.db")


def sqlite_url(file: Path | str) -> str:
    """Return the URL of a SQLite file."""
    return f"sqlite:///{quote(str(file))}"


def sqlite_path(url: str) -> Path:
    """Return the file of `sqlite:///relative.db` or `sqlite:////absolute.db`, without options after `?`.

    Raises:
        ValueError: there is no path, or the URL has a host.
    """
    if not url.startswith("sqlite:///") or len(url) == len("sqlite:///"):
        raise ValueError(f"{url!r} names no file; write sqlite:///relative.db or sqlite:////absolute.db")
    return Path(unquote(url.removeprefix("sqlite:///").partition("?")[0])).expanduser()
