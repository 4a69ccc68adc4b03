"""The agents: they follow rules, know nothing of budgets or kills, and use the tools of a `Folder`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any, NamedTuple

from agentguard.demo.folder import Folder

#: How many reviews the polisher has in flight at once.
AT_ONCE = 16


class Survey(NamedTuple):
    """What the surveyor found."""

    files: int
    lines: int
    todos: int
    #: Name, lines, the longest part and the beginning of the hash of the largest files.
    largest: list[tuple[str, int, str, str]]


def surveyor(folder: Folder, tell: Callable[[int, str], None]) -> Survey:
    """Measure every file, then look closer at the three largest."""
    sizes: dict[str, dict[str, int]] = {}
    for name in folder.list_files():
        sizes[name] = folder.measure(name)
        tell(len(sizes), name)
    ranked = sorted(sizes, key=lambda name: (-sizes[name]["lines"], name))
    largest = [
        (name, sizes[name]["lines"], folder.longest_part(name), folder.fingerprint(name)[:12])
        for name in ranked[:3]
    ]
    lines, todos = (sum(size[what] for size in sizes.values()) for what in ("lines", "todos"))
    return Survey(len(sizes), lines, todos, largest)


class Polisher:
    """Reviews files 16 at a time, is never satisfied, and takes no error for an answer."""

    def __init__(self, folder: Folder, bind: Callable[..., Any], tell: Callable[[int, str], None]) -> None:
        self._folder = folder
        self._bind = bind
        self._tell = tell
        self.rounds = 0
        self.swallowed = 0

    def work(self) -> None:
        """Go round and round, until a whole round has failed."""
        names = cycle(self._folder.names)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            remarks = [0]
            while any(remark is not None for remark in remarks):
                self.rounds += 1
                # What is handed to a thread is bound to the run first.
                jobs = [pool.submit(self._bind(self._review), name) for name in islice(names, AT_ONCE)]
                remarks = [job.result() for job in jobs]

    def _review(self, name: str) -> int | None:
        try:
            remarks = self._folder.review(name)
        except Exception:  # noqa: BLE001 - the point: not even this keeps the agent going
            self.swallowed += 1
            return None
        self._tell(len(self._folder.reviewed), name)
        return remarks


async def watcher(folder: Folder) -> None:
    """Survey a few files, then wait for a change, and survey again."""
    while True:
        for name in folder.names[:3]:
            folder.measure(name)
        await folder.watch()
