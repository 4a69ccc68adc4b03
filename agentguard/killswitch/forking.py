"""What has to be made anew in a forked child: locks held by threads that do not exist there."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something that holds locks, threads or descriptors of its own."""

    def after_fork(self) -> None:
        """Make them anew, in the child; nothing of the parent's may be touched."""


_forkables: WeakSet[Forkable] = WeakSet()


def renew_after_fork(forkable: Forkable) -> None:
    """Have `after_fork` called in every child of this process while the object lives."""
    _forkables.add(forkable)


def _in_child() -> None:
    for forkable in list(_forkables):
        forkable.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
