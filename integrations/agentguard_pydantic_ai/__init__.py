"""agentguard for Pydantic AI: every model request and tool call of an agent as a guarded step.

`Agent(model, capabilities=[GuardCapability()])` inside `with guard.run(...)` is all it takes.
"""

from agentguard_pydantic_ai.capability import GuardCapability
from agentguard_pydantic_ai.model import GuardedModel

__all__ = ["GuardCapability", "GuardedModel"]
