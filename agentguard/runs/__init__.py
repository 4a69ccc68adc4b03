"""Runs: their states, what their log adds up to, and which one is current."""

from agentguard.runs.state import RunState

__all__ = ["RunState"]
