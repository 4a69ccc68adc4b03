"""agentguard for the OpenAI SDK: `guard_client(OpenAI())`, and every request to a model is a guarded step."""

from agentguard_openai.client import guard_client

__all__ = ["guard_client"]
