"""The contracts of `agentguard.protocols` as suites that any backend can run; they need pytest.

Derive a class named `Test...` from a suite in a test file of yours, and override its fixture: `store` for
`EventStoreContract`, `switch` for `KillSwitchContract`.
"""

from typing import TYPE_CHECKING

from agentguard._exports import exported

if TYPE_CHECKING:
    from agentguard.testing.conformance.event_store import EventStoreContract
    from agentguard.testing.conformance.kill_switch import KillSwitchContract

__getattr__, __dir__ = exported(
    __name__,
    {
        "agentguard.testing.conformance.event_store": ("EventStoreContract",),
        "agentguard.testing.conformance.kill_switch": ("KillSwitchContract",),
    },
)

__all__ = ["EventStoreContract", "KillSwitchContract"]
