"""agentguard for the OpenAI Agents SDK: model calls and tool calls as guarded steps.

`Runner.run(guard_agent(agent), "...", hooks=GuardHooks())` inside `with guard.run(...)` is all it
takes; `GuardedModel` and `guard_tools` are the parts that `guard_agent` puts together.
"""

from agentguard_openai_agents.agent import guard_agent
from agentguard_openai_agents.hooks import GuardHooks, UnguardedModelError
from agentguard_openai_agents.model import GuardedModel, GuardedModelProvider
from agentguard_openai_agents.stops import (
    AgentBudgetExceededError,
    AgentKillSwitchTriggeredError,
    AgentRunStopped,
    AgentUnknownCostError,
)
from agentguard_openai_agents.tools import guard_tools

__all__ = [
    "AgentBudgetExceededError",
    "AgentKillSwitchTriggeredError",
    "AgentRunStopped",
    "AgentUnknownCostError",
    "GuardHooks",
    "GuardedModel",
    "GuardedModelProvider",
    "UnguardedModelError",
    "guard_agent",
    "guard_tools",
]
