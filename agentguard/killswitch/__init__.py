"""The kill switch: what a kill is, and the channels that carry it."""

from agentguard.killswitch.model import Acknowledgements, Kill

__all__ = ["Acknowledgements", "Kill"]
