"""What integrations build on: steps from arguments apart, in a branch of their choice; streams as steps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from agentguard import Budget, BudgetExceededError, Guard, KillSwitchTriggeredError, RunState


def outcomes(guard: Guard, run_id: str) -> list[Any]:
    return [e for e in guard.history(run_id) if e.type in {"step_completed", "step_failed"}]


def test_arguments_apart_are_never_taken_for_options(guard: Guard) -> None:
    def tool(name: str, kind: str, *, key: str, branch: str) -> str:
        return f"{name} {kind} {key} {branch}"

    with guard.run("run") as run:
        result = run.apply("tool", tool, ("n",), {"kind": "k", "key": "y", "branch": "b"}, effect="read")

    assert result == "n k y b"
    assert guard.history(run.id)[2].data["effect"] == "read"


def test_attributes_of_a_call_are_in_the_log(guard: Guard) -> None:
    def tool() -> None: ...

    with pytest.raises(BudgetExceededError), guard.run("run", budget=Budget(steps=3)) as run:
        for number in range(2):
            run.apply("tool", tool, attributes={"call.id": f"c{number}", "sizes": [1, 2], "odd": object()})
        with run.step("block", attributes={"call.id": "c2"}):
            pass
        run.call("tool", tool, attributes={"call.id": "c3"})

    started = [e for e in guard.history(run.id) if e.type in {"step_started", "step_refused"}]
    assert [e.data["attributes"]["call.id"] for e in started] == ["c0", "c1", "c2", "c3"]
    assert [e.key for e in started] == ["main/tool#1", "main/tool#2", "main/block#1", "main/tool#3"]
    assert started[0].data["attributes"] == {"call.id": "c0", "sizes": [1, 2]}


def test_attributes_of_equal_calls_are_told_as_each_call_gave_them(guard: Guard) -> None:
    """What was told of the call before is told again only of texts: `1 == True`, and a list may change."""
    sizes = [1]
    given: list[dict[str, Any]] = [{"n": 1}, {"n": True}, {"n": 1.0}, {"n": "1"}, {"n": "1"}, {"n": sizes}]
    with guard.run("run") as run:
        for attributes in given:
            run.call("one", int, attributes=attributes)
        sizes.append(2)
        run.call("one", int, attributes={"n": sizes})
        run.call("one", int, attributes={"n": "password=hunter2"})
        run.call("one", int, attributes={"n": "password=hunter2"})

    told = [e.data["attributes"]["n"] for e in guard.history(run.id) if e.type == "step_started"]
    assert list(map(repr, told[:7])) == ["1", "True", "1.0", "'1'", "'1'", "[1]", "[1, 2]"]
    assert told[7] == told[8] != "password=hunter2"


def test_a_step_without_attributes_has_none_in_the_log(guard: Guard) -> None:
    with guard.run("run") as run:
        run.call("one", int, attributes={"call.id": "c0"})
        run.call("one", int)

    first, second = [e for e in guard.history(run.id) if e.type == "step_started"]
    assert first.data["attributes"] == {"call.id": "c0"}
    assert "attributes" not in (second.data or {})


def test_attributes_that_are_no_mapping_are_refused(guard: Guard) -> None:
    with guard.run("run") as run, pytest.raises(TypeError, match="one: attributes must be a mapping"):
        run.call("one", int, attributes=["call.id"])


def test_a_step_goes_into_the_branch_that_is_given(guard: Guard) -> None:
    with guard.run("run") as run:
        with run.branch("agent") as branch:
            pass
        run.apply("one", int, branch=branch)
        run.call("two", int, branch=branch.child("turn"))
        run.call("three", int, branch="a/b")

    assert [e.key for e in outcomes(guard, run.id)] == [
        "main/agent#1/one#1",
        "main/agent#1/turn#1/two#1",
        "main/a/b/three#1",
    ]


def test_a_branch_that_is_given_goes_before_the_task(guard: Guard) -> None:
    async def step() -> None: ...

    async def main() -> None:
        with run.branch("agent") as branch:
            pass
        await asyncio.create_task(asyncio.sleep(0))
        await asyncio.gather(*(run.apply("step", step, branch=branch) for _ in range(2)))

    with guard.run("run") as run:
        asyncio.run(main())

    assert sorted(e.key.rpartition("/")[2] for e in outcomes(guard, run.id)) == ["step#1", "step#2"]
    assert all("agent#1/step" in e.key for e in outcomes(guard, run.id))


@pytest.mark.parametrize(("resource", "limited"), [("usd", True), ("tokens", False), ("emails", True)])
def test_a_run_says_what_is_limited(guard: Guard, resource: str, limited: bool) -> None:
    with guard.run("run", budget=Budget(usd=1, emails=2)) as run:
        assert run.limits(resource) is limited


# --- generators ----------------------------------------------------------------------------------


class LastOnly:
    """Keeps the last item of a stream."""

    def encode(self, value: list[Any]) -> bytes:
        return json.dumps(value[-1:]).encode()

    def decode(self, data: bytes) -> list[Any]:
        return list(json.loads(data))


def test_a_generator_function_is_one_step(guard: Guard) -> None:
    def count() -> Iterator[int]:
        yield from (1, 2, 3)

    async def count_async() -> AsyncIterator[int]:
        for number in (1, 2, 3):
            yield number

    async def read() -> list[int]:
        return [number async for number in run.call("count_async", count_async)]

    with guard.run("run") as run:
        assert list(run.call("count", count)) == [1, 2, 3]
        assert asyncio.run(read()) == [1, 2, 3]

    assert [e.data["items"] for e in outcomes(guard, run.id)] == [3, 3]


def test_a_codec_sees_all_items_and_may_keep_fewer(guard: Guard) -> None:
    def count() -> Iterator[int]:
        yield from (1, 2, 3)

    with guard.run("run") as run:
        assert list(run.call("count", count, codec=LastOnly())) == [1, 2, 3]
    with guard.replay(run.id) as replayed:
        assert list(replayed.call("count", count, codec=LastOnly())) == [3]

    assert "unreplayable" not in outcomes(guard, run.id)[0].data


class Broken:
    """A codec that cannot."""

    def encode(self, value: Any) -> bytes:
        raise LookupError("no")

    def decode(self, data: bytes) -> Any:
        raise AssertionError


def test_a_codec_that_fails_costs_the_replay_and_nothing_else(guard: Guard) -> None:
    def count() -> Iterator[int]:
        yield 1

    with guard.run("run") as run:
        assert list(run.call("count", count, codec=Broken())) == [1]
        assert run.call("one", lambda: 1, codec=Broken()) == 1

    assert [e.type for e in outcomes(guard, run.id)] == ["step_completed"] * 2
    assert [e.data["unreplayable"] for e in outcomes(guard, run.id)] == ["its codec failed: LookupError"] * 2
    assert run.state is RunState.COMPLETED


def test_more_than_max_items_bytes_is_not_kept(guard: Guard) -> None:
    def count() -> Iterator[str]:
        yield "x" * 100

    with guard.run("run") as run:
        list(run.call("count", count, codec=LastOnly(), max_items_bytes=50))

    assert outcomes(guard, run.id)[0].data["unreplayable"] == "more than max_items_bytes=50"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_stop_at_an_item_closes_the_generator(guard: Guard, asynchronous: bool) -> None:
    closed: list[bool] = []

    def count() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def count_async() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def read_async() -> None:
        stream = run.call("count", count_async)
        await anext(stream)
        run.kill("enough")
        await anext(stream)

    def read() -> None:
        stream = run.call("count", count)
        next(stream)
        run.kill("enough")
        next(stream)

    with pytest.raises(KillSwitchTriggeredError), guard.run("run") as run:
        asyncio.run(read_async()) if asynchronous else read()

    assert closed == [True]
    assert run.summary().open_steps == ()


def test_a_generator_is_refused_at_its_first_item(guard: Guard) -> None:
    def count() -> Iterator[int]:
        yield 1

    def read() -> None:
        for _ in range(20):
            list(run.call("count", count))

    with pytest.raises(BudgetExceededError), guard.run("run", budget=Budget(calls={"count": 3})) as run:
        read()

    assert len(outcomes(guard, run.id)) == 3
