"""What the guarded SDK clients share: one HTTP request to a model as one guarded step.

It knows no SDK and no provider.  `agentguard_openai` and `agentguard_anthropic` say which requests call a
model, how much they may use, and where the answer tells what they used.
"""

from agentguard_clients.client import ClientOptions, guarded_sdk_client
from agentguard_clients.endpoints import Endpoint, Provider
from agentguard_clients.errors import ProviderStatusError
from agentguard_clients.http import guarding_of

__all__ = [
    "ClientOptions",
    "Endpoint",
    "Provider",
    "ProviderStatusError",
    "guarded_sdk_client",
    "guarding_of",
]
