"""Help for tests of guarded code, and of backends; nothing here is for production.

allow_outside   calls of guarded steps outside a run, for unit tests of decorated functions
FakeClock       a clock that moves only when told to
FakeIds         run ids that count
conformance     the contracts of the backends as suites
plugin          for pytest, which finds it by itself: the fixture `guarded_run` and the ini option
                `agentguard_outside`
"""

from typing import TYPE_CHECKING

from agentguard._exports import exported

if TYPE_CHECKING:
    from agentguard.testing.fakes import FakeClock, FakeIds
    from agentguard.testing.outside import allow_outside

__getattr__, __dir__ = exported(
    __name__,
    {
        "agentguard.testing.fakes": ("FakeClock", "FakeIds"),
        "agentguard.testing.outside": ("allow_outside",),
    },
)

__all__ = ["FakeClock", "FakeIds", "allow_outside"]
