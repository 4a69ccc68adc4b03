"""What the workers of the benchmark carry out."""

import time

from agentguard import Guard, guarded_step

guard = Guard.open(telemetry=False)


@guarded_step(effect="read")
def wait(seconds: float) -> None:
    time.sleep(seconds)


def busy(inputs: float) -> None:
    """Until the worker is killed, or the time is over."""
    until = time.monotonic() + inputs
    while time.monotonic() < until:
        wait(0.05)


def nothing() -> None:
    """Be done."""
