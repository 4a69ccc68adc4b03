"""Limits and usage: the values, and the accounts that hold them."""

from agentguard.budget.model import Budget, Remaining, Usage

__all__ = ["Budget", "Remaining", "Usage"]
