"""Which session `guard.run` opens: by what is around it, and by what is on record."""

from __future__ import annotations

from agentguard.runtime import Runtime
from agentguard.sessions.base import Session
from agentguard.sessions.joined import JoinedSession
from agentguard.sessions.live import LiveSession
from agentguard.sessions.nested import NestedSession
from agentguard.sessions.options import RunOptions
from agentguard.sessions.recovered import RecoverySession
from agentguard.steps.current import CURRENT


def session_for(runtime: Runtime, options: RunOptions) -> LiveSession | RecoverySession | JoinedSession:
    """Return the session of `guard.run`.

    Raises:
        ValueError: the run exists and is to be recovered inside another one, whose log does not have it.
    """
    if options.if_exists == "join":
        return JoinedSession(runtime, options)
    position = None if options.detached else CURRENT.get()
    session = None if position is None else position.run.session
    if isinstance(session, Session) and session.runtime.adopts:
        runtime = session.runtime
    if position is not None and position.live_run.player is not None:
        return NestedSession(runtime, options)
    if options.if_exists == "recover" and options.run_id is not None:
        row = runtime.components.store.row(options.run_id)
        if row is not None and position is not None:
            raise ValueError(
                f"run_id={options.run_id!r}: that run exists and is not in the log of run {position.run.id}, "
                "whose budget could not be charged for it; pass detached=True, or recover it outside"
            )
        if row is not None:
            return RecoverySession(runtime, row, options)
    return LiveSession(runtime, options)
