"""What an operator orders of a run is in its log, and in the control log, with actor and reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agentguard import (
    ApprovalDeniedError,
    Budget,
    Event,
    Guard,
    KillSwitchUnavailableError,
    Run,
    RunState,
    RunStopped,
)
from agentguard.cli import main
from tests.kit import wait_until

NAMES = ("pause", "resume", "set_budget", "approve", "deny")
ORDERS = ("run_paused", "run_resumed", "run_budget_set", "approval_granted", "approval_denied")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line sets in this process is taken back."""
    monkeypatch.setenv("AGENTGUARD_STORE", "to be restored")
    monkeypatch.delenv("AGENTGUARD_STORE")


@pytest.fixture
def guard() -> Iterator[Guard]:
    with Guard.open(telemetry=False) as guard:
        yield guard


def orders(guard: Guard, log: str) -> list[Event]:
    return [event for event in guard.history(log) if event.type in (*ORDERS, "operator_action")]


@contextmanager
def paying(guard: Guard, run: Run) -> Iterator[Future[int]]:
    """Two payments after each other, in a thread, which wait for an approval each."""

    def pay() -> int:
        paid = run.call("pay", int, "7", approval=True)
        with pytest.raises(ApprovalDeniedError):
            run.call("pay", int, "9", approval=True)
        return paid

    with ThreadPoolExecutor(1) as pool:
        paid = pool.submit(run.bind(pay))
        try:
            yield paid
        except BaseException:
            run.kill("the test has failed")
            raise


def give_all_orders(guard: Guard, order: Callable[..., None]) -> Run:
    """Give one order of each kind, by ann and for a reason."""
    with guard.run("billing", budget=Budget(usd=1), tenant="acme") as run:
        order("pause", run.id)
        order("resume", run.id)
        order("set_budget", run.id)
        with paying(guard, run) as paid:
            for number, decision in enumerate(("approve", "deny"), 1):
                wait_until(
                    lambda n=number: [True for asked in guard.approvals() if asked.key.endswith(f"#{n}")]
                )
                order(decision, run.id)
        assert paid.result() == 7
    return run


def by_api(guard: Guard, reason: str | None = None) -> Callable[..., None]:
    def order(name: str, run_id: str) -> None:
        given: tuple[object, ...] = ()
        if name == "set_budget":
            given = (Budget(usd=2),)
        elif name in ("approve", "deny"):
            given = (guard.approvals()[0].key,)
        getattr(guard, name)(run_id, *given, actor="ann", reason=reason or f"why {name}")

    return order


def by_command(_: Guard) -> Callable[..., None]:
    def order(name: str, run_id: str) -> None:
        limit = ["--usd", "2"] if name == "set_budget" else []
        said = ["--actor", "ann", "--reason", f"why {name}"]
        assert main([name.replace("_", "-"), run_id, *limit, *said]) == 0

    return order


@pytest.mark.parametrize("way", [by_api, by_command])
def test_every_order_is_in_both_logs_with_its_actor_and_reason(
    guard: Guard, way: Callable[[Guard], Callable[..., None]]
) -> None:
    run = give_all_orders(guard, way(guard))
    own, control = orders(guard, run.id), orders(guard, "control")
    assert tuple(event.type for event in own) == ORDERS
    assert tuple(event.data["action"] for event in control) == NAMES
    for name, event, ordered in zip(NAMES, own, control, strict=True):
        assert (event.data["actor"], event.data["reason"]) == ("ann", f"why {name}")
        assert (ordered.data["actor"], ordered.data["reason"]) == ("ann", f"why {name}")
        # The control log is an anchor of the run's log.
        assert (ordered.data["run"], ordered.data["tenant"]) == (run.id, "acme")
        assert (ordered.data["seq"], ordered.data["hash"]) == (event.seq, event.hash)
    assert guard.verify()
    assert guard.verify("control")


def test_the_control_log_says_in_words_who_did_what_and_why(
    guard: Guard, capsys: pytest.CaptureFixture[str]
) -> None:
    run = give_all_orders(guard, by_api(guard))
    capsys.readouterr()
    assert main(["show", "control"]) == 0
    said = capsys.readouterr().out
    assert f"run {run.id} paused by ann: why pause" in said
    assert f"run {run.id} resumed by ann: why resume" in said
    assert f"run {run.id} has the limits: $2.00 by ann: why set_budget" in said
    assert f"main/pay#1/pay#1 of run {run.id} approved by ann: why approve" in said
    assert f"main/pay#1/pay#2 of run {run.id} denied by ann: why deny" in said


def test_a_secret_in_a_reason_is_in_no_log(guard: Guard, tmp_path: Path) -> None:
    secret = "see postgres://ann:hunter2@db/app"
    run = give_all_orders(guard, by_api(guard, reason=secret))
    with guard.run("b") as other:
        other.pause(secret)
        other.resume()
        other.set_budget({"usd": 3}, reason=secret)
    with suppress(RunStopped), guard.run("c") as killed:
        killed.kill(secret)
    guard.revive(run=killed.id, reason=secret)
    for run_id in (run.id, other.id, killed.id, "control"):
        told = repr([event.data for event in guard.history(run_id)])
        assert "hunter2" not in told
        assert "postgres://ann:****" in told


def test_an_order_without_an_actor_is_by_the_user_of_the_process(guard: Guard) -> None:
    with guard.run("a") as run:
        guard.pause(run.id)
        guard.resume(run.id)
    assert all("@" in event.data["actor"] for event in orders(guard, "control"))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"actor": ""}, "actor must not be empty"),
        ({"actor": 5}, "actor must be a str"),
        ({"reason": 5}, "reason"),
    ],
)
def test_an_order_by_nobody_is_refused_before_anything_is_on_record(
    guard: Guard, given: dict[str, object], problem: str
) -> None:
    with guard.run("a") as run:
        with pytest.raises((TypeError, ValueError), match=problem):
            guard.pause(run.id, **given)  # type: ignore[arg-type]
        assert guard.summary(run.id).state is RunState.RUNNING
    assert orders(guard, run.id) == []


def test_where_the_control_log_cannot_be_used_nothing_is_ordered(guard: Guard, home: Path) -> None:
    with guard.run("a", budget=Budget(usd=1)) as run:
        guard.pause(run.id)
        log = home / "control.log"
        written = log.read_bytes()
        log.write_bytes(b"x" + written[1:])
        with Guard.open(telemetry=False) as other, pytest.raises(KillSwitchUnavailableError):
            other.resume(run.id)
        log.write_bytes(written)
        assert guard.summary(run.id).state is RunState.PAUSED
        guard.resume(run.id)


def test_an_order_that_is_not_legal_is_in_neither_log(guard: Guard) -> None:
    with guard.run("a") as run:
        for act in (lambda: guard.resume(run.id), lambda: guard.approve(run.id, "main/x#1")):
            with pytest.raises(Exception, match="RUNNING|waits"):
                act()
    assert orders(guard, run.id) == orders(guard, "control") == []
