"""agentguard for LangChain and LangGraph: every model and tool call is a guarded step.

`model.invoke(..., config={"callbacks": [GuardCallbackHandler()]})`, or
`create_agent(..., middleware=[..., GuardMiddleware()])`, inside `with guard.run(...)` is all it takes.
"""

from agentguard_langchain._checkpoints import CheckpointedReplayError
from agentguard_langchain._hooks import install
from agentguard_langchain.callback import GuardCallbackHandler
from agentguard_langchain.middleware import GuardMiddleware
from agentguard_langchain.stops import (
    GraphBudgetExceededError,
    GraphKillSwitchTriggeredError,
    GraphRunStopped,
    GraphUnknownCostError,
)
from agentguard_langchain.tools import guard_tools

__all__ = [
    "CheckpointedReplayError",
    "GraphBudgetExceededError",
    "GraphKillSwitchTriggeredError",
    "GraphRunStopped",
    "GraphUnknownCostError",
    "GuardCallbackHandler",
    "GuardMiddleware",
    "guard_tools",
    "install",
]
