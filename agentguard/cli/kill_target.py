"""Which run `kill --run` means, asked of the store's file by the standard library alone.

The file helps, and is never in the way: a run may live in a store that this command does not know of, so
whatever is not found there, or cannot be read, is killed as it was typed.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

#: What listings show of an id at least; less is not taken for the beginning of one.
_SHORTEST = 8
#: How long, in seconds, somebody who writes to the file is waited for.
_PATIENCE = 0.5


class Target(NamedTuple):
    """The run that was meant; `known` is None where nobody could be asked."""

    run_id: str
    known: bool | None


class AmbiguousError(ValueError):
    """What was typed begins the ids of several runs."""


def find(typed: str, home: Path) -> Target:
    """The run that `typed` names, or begins as no other does.

    Raises:
        AmbiguousError: several begin with it.
    """
    file = _store_file(home)
    if file is None or not file.exists():
        return Target(typed, None)
    try:
        found = _begin_with(file, typed)
    except sqlite3.Error:
        return Target(typed, None)
    if typed in found:
        return Target(typed, True)
    if len(found) > 1 and len(typed) >= _SHORTEST:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise AmbiguousError(f"several runs begin with {typed!r}: {some}; type more of the id")
    if len(found) == 1 and len(typed) >= _SHORTEST:
        return Target(found[0], True)
    return Target(typed, False)


def _store_file(home: Path) -> Path | None:
    url = os.environ.get("AGENTGUARD_STORE")
    if not url:
        return home / "agentguard.db"
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return Path(unquote(url.removeprefix("sqlite:///").partition("?")[0])).expanduser()
    return None


def _begin_with(file: Path, typed: str) -> list[str]:
    uri = f"file:{quote(str(file.absolute()))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as connection:
        query = (
            "SELECT run_id FROM run WHERE run_id = :typed "
            "UNION ALL SELECT run_id FROM run WHERE run_id > :typed AND substr(run_id, 1, :length) = :typed "
            "LIMIT 7"
        )
        return [row[0] for row in connection.execute(query, {"typed": typed, "length": len(typed)})]
