"""What is registered with LangChain for the whole process: a listener, a watcher, and `install`."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

from langchain_core.tracers.context import register_configure_hook

from agentguard_langchain._listening import Listener
from agentguard_langchain.callback import GuardCallbackHandler

if TYPE_CHECKING:
    from langchain_core.callbacks import BaseCallbackHandler

_listener = Listener()
_LISTENER: ContextVar[BaseCallbackHandler | None] = ContextVar("agentguard_langchain", default=_listener)
#: The handler of the middleware whose call is under way here: it sees streamed tokens, and whatever the call
#: makes of further calls.  A handler that is there already does that too.
WATCHING: ContextVar[BaseCallbackHandler | None] = ContextVar("agentguard_langchain_watching", default=None)


@cache
def listen() -> None:
    """Let LangChain tell where calls lie, and let the middleware watch over what is inside its calls."""
    register_configure_hook(WATCHING, inheritable=True, handle_class=GuardCallbackHandler)
    # Last: it stays away where a handler listens already.
    register_configure_hook(_LISTENER, inheritable=True, handle_class=Listener)


class _Installed(GuardCallbackHandler):
    """The handler of the whole process, which must find the run where no context tells."""

    by_table = True


_lock = threading.Lock()
_installed: list[_Installed] = []


def install(**options: Any) -> GuardCallbackHandler:
    """Guard every call that LangChain makes in this process, wherever it is made.

    The handler is the default value of a context variable, so it is there in every context, also in the
    bare threads of a tool's own executor, and with `callbacks=[]`.  A call belongs to the run that is active
    in its context; where none is, to the run of its parent in LangChain's tree; else to the only run
    alive in which LangChain was used.  With several alive it is refused: hand the function to the thread
    as `run.bind(fn)`.

    Calling it again replaces the options; it cannot be undone, as LangChain keeps its hooks.

    Args:
        options: those of `GuardCallbackHandler`, but for the run.  Calls outside a run are refused, unless
            `outside="allow"`; those of a bare thread beside a live run still count as that run's.

    Returns:
        The handler.
    """
    if "run" in options:
        raise TypeError("install() takes no run: a call belongs to the run that it is made in")
    with _lock:
        if _installed:
            _installed[0].__init__(**options)  # type: ignore[misc]
        else:
            handler = _Installed(**options)
            variable: ContextVar[BaseCallbackHandler | None] = ContextVar(
                "agentguard_langchain_installed", default=handler
            )
            register_configure_hook(variable, inheritable=True)
            _installed.append(handler)
    return _installed[0]
