"""What `verify` does besides the chain: rows that change meanwhile, anchors, and a control log at fault."""

from __future__ import annotations

from agentguard import Guard, guarded_step
from agentguard.audit.verify import verify
from agentguard.events.model import Head
from agentguard.killswitch.memory import MemoryKillSwitch


@guarded_step
def echo(text: str) -> str:
    return text


def test_a_run_that_ends_between_listing_and_reading_is_no_fault(guard: Guard) -> None:
    """Row and events are read in one snapshot; what was listed before is only a name."""
    store = guard.components.store
    with guard.run("r") as run:
        listed = store.rows()
        echo("a")
    report = verify(store, listed, {run.id: run.summary().head})
    assert report
    assert (report.runs, report.events, report.anchored) == (1, 5, True)


def test_a_run_that_is_pruned_between_listing_and_reading_is_no_fault(guard: Guard) -> None:
    store = guard.components.store
    with guard.run("r"):
        echo("a")
    listed = store.rows()
    store.prune(2**62)
    report = verify(store, listed, {})
    assert (bool(report), report.runs, report.events) == (True, 0, 0)


def test_a_control_log_at_fault_is_reported_with_the_rest(guard: Guard) -> None:
    with guard.run("r"):
        echo("a")
    guard.kill(run="nobody", reason="one", actor="ann")
    guard.kill(run="nobody", reason="two", actor="ann")
    switch = guard.components.switch
    assert isinstance(switch, MemoryKillSwitch)
    first = switch._log[0]
    switch._log[0] = first._replace(body=first.body.replace(b'"one"', b'"two"'))
    report = guard.verify()
    assert [fault[:2] for fault in report.faults] == [("control", 1)]
    assert report.runs == 1
    assert guard.verify("control").faults == report.faults


def test_the_control_log_is_held_against_its_anchor(guard: Guard) -> None:
    guard.kill(run="nobody", reason="one", actor="ann")
    (event,) = guard.history("control")
    assert guard.verify("control", anchors={"control": (1, event.hash)}).anchored
    wrong = guard.verify(anchors={"control": Head(1, "0" * 64)})
    assert [fault[:2] for fault in wrong.faults] == [("control", 1)]
    assert not guard.verify("control").anchored
