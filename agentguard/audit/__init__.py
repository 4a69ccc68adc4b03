"""Reading a log back: whether it is intact, and what it says."""

from agentguard.audit.verify import Fault, VerifyReport

__all__ = ["Fault", "VerifyReport"]
