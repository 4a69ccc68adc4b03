"""agentguard for the Anthropic SDK: `guard_client(Anthropic())`, and every request to a model is a step."""

from agentguard_anthropic.client import guard_client

__all__ = ["guard_client"]
