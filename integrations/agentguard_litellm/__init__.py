"""agentguard for LiteLLM: `litellm = guard_client(litellm)`, and every call of a model is a guarded step."""

from agentguard_litellm.client import GuardedLiteLLM, guard_client

__all__ = ["GuardedLiteLLM", "guard_client"]
