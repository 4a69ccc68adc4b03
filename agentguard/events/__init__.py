"""Events: their types, their stored form, and the chain that binds them."""

from agentguard.events.model import Event, Head

__all__ = ["Event", "Head"]
