"""Modules that are loaded when they are first used, and what a fork waits for.

A child that is forked while another thread loads a module has that module half loaded, and its lock held by a
thread that is not there: its next use of the module would never return.  So agentguard loads nothing later on
but under `LOADING`, for which a fork waits.
"""

from __future__ import annotations

import importlib
import logging  # noqa: F401 - its fork hook is to come before those below, so that its lock is taken last
import os
import threading
from types import ModuleType

#: Held while a module is loaded that is not loaded with the one that needs it.  Not while a module of ours is
#: imported, which another thread may wait for under this lock; nor for modules of users, for the same reason.
LOADING = threading.RLock()
#: Held while it is learnt how a type is read (`_typed`), which may load something.
LEARNING = threading.RLock()

# Here, before anything is loaded later on: of a hook that is registered while a fork waits, only what comes
# after the fork would be called.
if hasattr(os, "register_at_fork"):
    for _lock in (LOADING, LEARNING):
        os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def load(module: str) -> ModuleType:
    """Import a module of agentguard or of a package that it needs, by its full name.

    Raises:
        ImportError: it is not there.
    """
    with LOADING:
        return importlib.import_module(module)
