"""Whether SQLite's indexes of the runs say what the table does.

A damaged entry hides a run from who asks for it, while every row and event is as it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from agentguard.errors import LogIntegrityError

Select = Callable[[str, Any], list[tuple[Any, ...]]]

_WAY_OUT = "`agentguard verify` tells of every run; `sqlite3 FILE REINDEX` makes the indexes again"


def check_beside(select: Select, run_id: str) -> None:
    """Refuse to say that a run is not there where the entries next to its place lie.

    Whatever entry is damaged, a search that it leads astray ends beside it.

    Raises:
        LogIntegrityError: an entry names another run than the row that it leads to.
    """
    if found := select("misfiled_beside", {"run_id": run_id}):
        raise misfiled_error(_text(found[0][0]))


def misfiled_error(run_id: str) -> LogIntegrityError:
    """The error of who comes upon a damaged entry of the index of ids."""
    return LogIntegrityError(run_id, 0, _problem("id"))


def misfiled(select: Select) -> Iterator[tuple[str, str]]:
    """The runs that an index does not find, each once, or else what SQLite says of the indexes."""
    runs: dict[str, str] = {}
    for run_id, by in select("misfiled", ()):
        runs.setdefault(_text(run_id), by)
    if runs:
        yield from ((run_id, _problem(by)) for run_id, by in runs.items())
        return
    for (said,) in select("check_indexes", ()):
        if " index " in said:
            yield "?", f"the indexes of the runs are damaged ({said}); {_WAY_OUT}"


def _problem(by: str) -> str:
    return f"the index by {by} does not find it; {_WAY_OUT}"


def _text(run_id: bytes | None) -> str:
    return (run_id or b"?").decode("utf-8", "replace")
