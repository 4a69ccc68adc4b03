"""Which session `guard.run` opens: by what is around it, and by what is on record."""

from __future__ import annotations

from agentguard.replay.divergence import NOT_REPLAYABLE
from agentguard.replay.player import Player
from agentguard.runtime import Runtime
from agentguard.sessions.base import Session
from agentguard.sessions.joined import JoinedSession
from agentguard.sessions.live import LiveSession
from agentguard.sessions.nested import NestedSession
from agentguard.sessions.options import RunOptions
from agentguard.sessions.recovered import RecoverySession
from agentguard.steps.current import current_position


def session_for(runtime: Runtime, options: RunOptions) -> LiveSession | RecoverySession | JoinedSession:
    """Return the session of `guard.run`.

    Raises:
        ValueError: the run exists and is to be recovered inside another one, whose log does not have it.
        ReplayDivergenceError: the run around it is replayed, and its log does not have this one.
    """
    if options.if_exists == "join":
        refuse_in_replay(options.name, 'if_exists="join"')
        return JoinedSession(runtime, options)
    if options.detached:
        refuse_in_replay(options.name, "detached=True")
    position = None if options.detached else current_position()
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


def refuse_in_replay(run: str, how: str) -> None:
    """Refuse to open a run while another is replayed whose log does not have it.

    Its bodies would run and be charged, where nothing is to happen.

    Raises:
        ReplayDivergenceError: a replay is active here.
    """
    position = current_position()
    player = None if position is None else position.live_run.player
    if position is not None and isinstance(player, Player) and not player.live:
        recorded = f"no run of the log of run {position.run.id}"
        player.diverge(NOT_REPLAYABLE, run, recorded, f"{how}: its steps would be done anew")
