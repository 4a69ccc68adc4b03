"""Keys: keys and branches follow the program, never the order in which things arrive."""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from agentguard import (
    Guard,
    NoActiveRunError,
    ReplayDivergenceError,
    current_run,
    current_step,
    guarded_step,
)
from agentguard.errors import DuplicateKeyError
from agentguard.steps.tasks import LoopBranches


@guarded_step
def tool(name: object = None) -> object:
    return name


@guarded_step
async def atool(name: object = None, delay: int = 0) -> object:
    for _ in range(delay):
        await asyncio.sleep(0)
    return name


def keys(guard: Guard, run) -> list[str]:
    """The keys in the order of the log."""
    return [e.key for e in guard.history(run.id) if e.type in ("step_started", "scope_opened", "value")]


def key_of_name(guard: Guard, run) -> dict[str, list[str]]:
    """The keys of each name, sorted, whatever the order of arrival was."""
    found: dict[str, list[str]] = {}
    for event in guard.history(run.id):
        if event.type in ("step_started", "scope_opened", "value"):
            found.setdefault(event.name, []).append(event.key)
    return {name: sorted(keys) for name, keys in found.items()}


# --- without `key=` --------------------------------------------------------------------------------


def test_the_nth_call_of_a_name_in_its_branch(guard):
    other = guarded_step(name="other")(lambda: None)
    with guard.run("r") as run:
        tool()
        other()
        tool()
        tool()
    assert keys(guard, run) == ["main/tool#1", "main/other#1", "main/tool#2", "main/tool#3"]


def test_a_users_retry_is_a_new_step(guard):
    broken = guarded_step(name="broken")(lambda: 1 / 0)
    with guard.run("r") as run:
        for _ in range(3):
            with suppress(ZeroDivisionError):
                broken()
    assert keys(guard, run) == [f"main/broken#{n}" for n in (1, 2, 3)]
    assert {e.attempt for e in guard.history(run.id) if e.type == "step_started"} == {1}


def test_the_key_is_fixed_at_the_call_and_not_at_the_await(guard):
    async def main():
        first, second = atool("first"), atool("second")
        assert await second == "second"
        assert await first == "first"

    with guard.run("r") as run:
        asyncio.run(main())
    assert keys(guard, run) == ["main/atool#2", "main/atool#1"]


@pytest.mark.parametrize("name", ["a/b", "a#1", "a%2Fb", "ä ö", "x" * 200])
def test_a_name_cannot_pass_for_something_else(guard, name):
    with guard.run("r") as run:
        run.call(name, int)
        with run.scope(name), run.branch(name):
            run.call(name, int)
    found = keys(guard, run)
    assert len(set(found)) == 3
    assert all(len(re.findall("/", key)) <= 2 for key in found)
    assert {e.name for e in guard.history(run.id) if e.type == "step_started"} == {name}


def test_steps_inside_a_step_are_numbered_within_it(guard):
    """So the bodies of two steps that run at once cannot take each other's numbers."""

    @guarded_step
    async def outer(delay):
        for _ in range(delay):
            await asyncio.sleep(0)
        return await atool(delay)

    async def main(delays):
        return await asyncio.gather(*(outer(delay) for delay in delays))

    inner = []
    for delays in ((5, 0), (0, 5)):
        with guard.run("r") as run:
            asyncio.run(main(delays))
        inner.append(key_of_name(guard, run)["atool"])
    assert inner[0] == inner[1]
    assert len(set(inner[0])) == 2


# --- with `key=` -----------------------------------------------------------------------------------


def test_a_key_is_unique_in_its_run(guard):
    step = guarded_step(key="the one")(lambda: "done")
    with guard.run("r") as run:
        assert step() == "done"
        with pytest.raises(DuplicateKeyError) as raised:
            step()
        assert (raised.value.key, raised.value.run_id) == ("the one", run.id)
        with run.branch("elsewhere"), pytest.raises(DuplicateKeyError):
            run.call("another", int, key="the one")
    with guard.run("again"):
        assert step() == "done"


def test_a_key_may_follow_from_the_arguments(guard):
    step = guarded_step(key=lambda order: f"order-{order}")(lambda order: order)
    with guard.run("r") as run:
        step(1)
        step(2)
        with pytest.raises(DuplicateKeyError):
            step(1)
    assert keys(guard, run) == ["key:order-1", "key:order-2"]


def test_after_a_failure_it_is_a_further_attempt_with_the_same_idempotency_key(guard):
    seen = []

    @guarded_step(key="pay")
    def pay():
        seen.append((current_step().attempt, current_step().idempotency_key))
        if len(seen) < 3:
            raise OSError

    with guard.run("r"):
        for _ in range(3):
            with suppress(OSError):
                pay()
    assert [attempt for attempt, _ in seen] == [1, 2, 3]
    assert len({key for _, key in seen}) == 1


def test_a_key_in_flight_is_not_run_twice(guard):
    entered, go_on = threading.Event(), threading.Event()

    @guarded_step(key="slow")
    def slow():
        entered.set()
        assert go_on.wait(60)

    with guard.run("r") as run:
        thread = threading.Thread(target=run.bind(slow))
        thread.start()
        assert entered.wait(60)
        with pytest.raises(DuplicateKeyError):
            slow()
        go_on.set()
        thread.join(60)
    assert run.spent.steps == 1


@pytest.mark.parametrize("bad", ["", "new\nline", "\x00", 5, None, "\ud800"])
def test_a_key_that_is_none(guard, bad):
    step = guarded_step(key=lambda: bad)(lambda: pytest.fail("ran"))
    with guard.run("r") as run, pytest.raises((ValueError, TypeError), match="key"):
        step()
    assert run.spent.steps == 0


def test_idempotency_keys_differ_between_steps_runs_and_tenants(guard):
    note = guarded_step(lambda: current_step().idempotency_key)
    found = []
    for tenant, run_id in (("a", "r1"), ("a", "r2"), ("b", "r3")):
        with guard.run("r", tenant=tenant, run_id=run_id):
            found += [note(), note()]
    assert len(set(found)) == 6
    assert all(re.fullmatch(r"[a-z2-7]{52}", key) for key in found)
    with Guard.in_memory(telemetry=False) as other, other.run("r", tenant="a", run_id="r1"):
        assert note() == found[0]


# --- tasks -----------------------------------------------------------------------------------------


def test_a_task_begins_a_branch_at_its_creation(guard):
    async def work(name, delay):
        await atool(name, delay)
        await atool(name)

    async def main():
        await atool("first")
        tasks = [asyncio.create_task(work(n, delay)) for n, delay in enumerate((3, 0))]
        await asyncio.gather(*tasks)
        await atool("last")

    with guard.run("r") as run:
        asyncio.run(main())
    assert sorted(keys(guard, run)) == [
        "main/atool#1",
        "main/atool#2",
        "main/task#1/atool#1",
        "main/task#1/atool#2",
        "main/task#2/atool#1",
        "main/task#2/atool#2",
    ]


def everything(run, name, delay):
    """One line of control that uses all that takes keys, after a while."""

    async def work():
        for _ in range(delay):
            await asyncio.sleep(0)
        await atool(name)
        tool(name)
        run.call(f"call {name}", tool, name)
        run.record(f"value {name}", lambda: 1)
        with run.scope(f"scope {name}"):
            await atool(name)
        with run.branch("b"):
            tool(name)
        run.bind(tool)(name)
        with run.step(f"block {name}"):
            tool(name)
        await asyncio.create_task(plain(f"sub {name}"))
        await asyncio.wait_for(plain(f"waited {name}"), 60)
        async with asyncio.TaskGroup() as group:
            group.create_task(plain(f"grouped {name}"))
            group.create_task(atool(name))
        await run.gather(plain(f"gathered {name}"), atool(name))

    async def plain(sub):
        await asyncio.sleep(0)
        await run.call(sub, atool, sub)

    return work()


@pytest.mark.parametrize("early", [False, True], ids=["loop known", "loop not yet known"])
def test_keys_do_not_depend_on_arrival(guard, early):
    """The same program with other delays, opened outside its event loop, gets the same keys."""

    async def main(run, delays):
        if not early:
            await atool("first")
        await asyncio.gather(*(everything(run, n, delay) for n, delay in enumerate(delays)))

    found = []
    for delays in ((9, 4, 0), (0, 4, 9), (4, 0, 2)):
        with guard.run("r") as run:
            asyncio.run(main(run, delays))
            asyncio.run(main(run, delays))
        found.append(key_of_name(guard, run))
        assert len(set(keys(guard, run))) == len(keys(guard, run))
    assert found[0] == found[1] == found[2]


def test_uuid_and_random_follow_the_branch(guard):
    """Drawn in tasks, they are the task's own whoever comes first."""

    async def draw(run, delay):
        for _ in range(delay):
            await asyncio.sleep(0)
        return run.uuid(), run.random()

    async def main(run, delays):
        return await asyncio.gather(*(draw(run, delay) for delay in delays))

    from agentguard.steps import recorded

    drawn = []
    for delays in ((5, 0), (0, 5)):
        with guard.run("r") as run:
            run.live_run.fold.seed = "fixed"
            drawn.append(asyncio.run(main(run, delays)))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]
    assert recorded.seeded(run.live_run, "x") != recorded.seeded(run.live_run, "y")


def test_gather_in_the_order_given(guard):
    async def main(run):
        results = await run.gather(*(atool(n, 3 - n) for n in range(3)))
        assert results == [0, 1, 2]
        failed = await run.gather(atool(1), no_one(), return_exceptions=True)
        assert failed[0] == 1
        assert isinstance(failed[1], LookupError)

    async def no_one():
        raise LookupError

    with guard.run("r") as run:
        asyncio.run(main(run))
    assert sorted(keys(guard, run))[:3] == ["main/atool#1", "main/atool#2", "main/atool#3"]


def test_wait_for_begins_no_branch(guard):
    """It makes a task in Python 3.11 and none from 3.12 on; keys are the same in all."""

    async def nested():
        await atool("nested")

    async def main():
        await atool("before")
        await asyncio.wait_for(atool("waited for"), 60)
        await asyncio.wait_for(nested(), 60)
        await atool("after")

    with guard.run("r") as run:
        asyncio.run(main())
    assert keys(guard, run) == [f"main/atool#{n}" for n in (1, 2, 3, 4)]


class Client:
    """It closes itself when it is collected, as HTTP clients of SDKs do."""

    def __del__(self):
        self.closing = asyncio.get_running_loop().create_task(self.aclose())

    async def aclose(self):
        await asyncio.sleep(0)


@pytest.mark.parametrize("when", ["before the first step", "later"])
def test_an_object_that_is_collected_begins_no_branch(guard, when):
    async def in_a_task():
        await atool("in a task")

    async def main(dropped):
        if when == "later":
            await atool("first")
        for _ in range(dropped):
            Client()
        await asyncio.create_task(in_a_task())

    with guard.run("r") as run:
        asyncio.run(main(0))
    with guard.run("r") as other:
        asyncio.run(main(7))
    assert keys(guard, other) == keys(guard, run)
    with guard.replay(run.id):
        asyncio.run(main(7))


def test_task_groups(guard):
    async def work():
        await atool()

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            group.create_task(work())

    async def in_run():
        async with guard.run("r") as run:
            await main()
        return run

    run = asyncio.run(in_run())
    assert sorted(keys(guard, run)) == ["main/task#1/atool#1", "main/task#2/atool#1"]


def test_to_thread_runs_in_the_branch_of_its_task(guard):
    async def main():
        await asyncio.gather(*(asyncio.to_thread(tool, n) for n in range(3)))

    with guard.run("r") as run:
        tool()
        asyncio.run(main())
    assert len(set(keys(guard, run))) == 4


def test_the_task_factory_wraps_another_and_goes_with_the_last_run(guard):
    made = []

    def factory(loop, coro, **options):
        made.append(coro)
        return asyncio.Task(coro, loop=loop, **options)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        async with guard.run("outer", detached=True):
            assert isinstance(loop.get_task_factory(), LoopBranches)
            async with guard.run("inner"):
                await asyncio.create_task(atool())
            assert isinstance(loop.get_task_factory(), LoopBranches)
        assert loop.get_task_factory() is factory
        await asyncio.create_task(asyncio.sleep(0))

    asyncio.run(main())
    assert len(made) >= 2


def test_the_task_factory_acts_only_where_there_is_a_run(guard):
    async def outside():
        assert current_run() is None

    async def main():
        run = guard.start("r")
        task = asyncio.create_task(atool())
        await task
        run.close()
        async with guard.run("other"):
            import contextvars

            await asyncio.create_task(outside(), context=contextvars.Context())

    asyncio.run(main())


def test_a_task_with_a_context_of_its_own(guard):
    import contextvars

    async def main():
        context = contextvars.copy_context()
        await asyncio.create_task(plain(), context=context)

    async def plain():
        await atool()

    with guard.run("r") as run:
        tool()
        asyncio.run(main())
    assert keys(guard, run)[-1] == "main/task#1/atool#1"


# --- threads ---------------------------------------------------------------------------------------


def test_bind_begins_a_branch_on_the_creating_side(guard):
    with guard.run("r") as run:
        first, second = run.bind(tool), run.bind(tool)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(second, "b").result(60) == "b"
            assert pool.submit(first, "a").result(60) == "a"
    assert keys(guard, run) == ["main/tool#2/tool#1", "main/tool#1/tool#1"]


def test_a_bound_function_called_again(guard):
    with guard.run("r") as run:
        bound = run.bind(tool)
        bound()
        bound()
        bound()
    assert keys(guard, run) == [
        "main/tool#1/tool#1",
        "main/tool#1/call#1/tool#1",
        "main/tool#1/call#2/tool#1",
    ]


def test_bind_keeps_the_scope_and_the_run(guard):
    from agentguard import Budget

    with guard.run("r") as run, run.scope("s", Budget(steps=9)) as scope:
        bound = run.bind(tool)
        thread = threading.Thread(target=bound)
        thread.start()
        thread.join(60)
    assert scope.spent.steps == 1


class AsyncCallable:
    async def __call__(self, value):
        return await atool(value)


@pytest.mark.parametrize(
    "fn",
    [atool, AsyncCallable(), lambda value: atool(value)],
    ids=["coroutine function", "callable object", "function that gives a coroutine"],
)
def test_bind_what_is_awaited_in_another_loop(guard, fn):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def elsewhere(bound):
        return await bound("value")

    with guard.run("r") as run:
        future = asyncio.run_coroutine_threadsafe(elsewhere(run.bind(fn)), loop)
        assert future.result(60) == "value"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)
    loop.close()
    assert len(keys(guard, run)) == 1


def test_bind_in_a_loop_that_is_busy_with_other_things(guard):
    """What else runs in that loop has no part in the keys."""
    found = []
    for others in (0, 5):
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        waiting = [asyncio.run_coroutine_threadsafe(asyncio.sleep(60), loop) for _ in range(others)]

        async def work():
            await atool()
            await asyncio.create_task(atool())

        with guard.run("r") as run:
            asyncio.run_coroutine_threadsafe(run.bind(work)(), loop).result(60)
        for future in waiting:
            future.cancel()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.run_until_complete(loop.shutdown_asyncgens())
        for task in asyncio.all_tasks(loop):
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()
        found.append(keys(guard, run))
    assert found[0] == found[1]


def test_bare_threads_are_refused(guard):
    raised = []

    def work():
        try:
            tool()
        except NoActiveRunError as error:
            raised.append(str(error))

    with guard.run("r"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result(60)
    assert len(raised) == 2
    assert all("run.bind(fn)" in message for message in raised)


def test_branch_names_a_line_of_control(guard):
    with guard.run("r") as run:
        with run.branch("left"):
            tool()
            with run.branch("deep"):
                tool()
        with run.branch("left"):
            tool()
        tool()
    assert keys(guard, run) == [
        "main/left#1/tool#1",
        "main/left#1/deep#1/tool#1",
        "main/left#2/tool#1",
        "main/tool#1",
    ]


def test_attach_with_a_branch_name(guard):
    with guard.run("r") as run:
        for name in ("left", "right"):

            def work(name=name):
                with guard.attach(run.id, branch=name):
                    tool()
                    tool()

            thread = threading.Thread(target=work)
            thread.start()
            thread.join(60)
    assert keys(guard, run) == [
        "main/left/tool#1",
        "main/left/tool#2",
        "main/right/tool#1",
        "main/right/tool#2",
    ]


def test_attaching_again_goes_on_with_the_numbers(guard):
    with guard.run("r") as run:
        for _ in range(3):
            with guard.attach(run.id, branch="w"):
                tool()
    assert keys(guard, run) == ["main/w/tool#1", "main/w/tool#2", "main/w/tool#3"]


def test_attach_without_a_name_gets_a_branch_of_its_own(guard):
    with guard.run("r") as run:
        for _ in range(3):
            with guard.attach(run.id):
                tool()
        tool()
    assert keys(guard, run) == ["attach#1/tool#1", "attach#2/tool#1", "attach#3/tool#1", "main/tool#1"]


def test_an_attachment_without_a_name_marks_the_run(guard):
    def agent(run_id):
        with guard.attach(run_id):
            tool()

    with guard.run("r") as run:
        agent(run.id)
        assert run.summary().needs_branch_names
    assert guard.summary(run.id) == guard.reconstruct(run.id)
    assert "replay needs branch names" in str(guard.summary(run.id))
    with pytest.raises(ReplayDivergenceError, match="branch=") as raised, guard.replay(run.id):
        pass
    assert (raised.value.kind, raised.value.key) == ("not_replayable", "attach#1/tool#1")


def test_attachments_of_many_threads_are_numbered_apart(guard):
    with guard.run("r") as run:

        def work():
            with guard.attach(run.id):
                tool()

        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(keys(guard, run)) == sorted(f"attach#{n}/tool#1" for n in range(1, 17))


def test_run_created_says_how_keys_are_made(guard):
    import platform

    with guard.run("r") as run:
        pass
    created = guard.history(run.id)[0].data
    assert created["keys"] == 1
    assert created["python"] == platform.python_version()


def test_asyncio_run_inside_a_sync_block(guard):
    async def main(name):
        return await atool(name)

    with guard.run("r") as run:
        assert asyncio.run(main("a")) == "a"
        tool()
        assert asyncio.run(main("b")) == "b"
        assert current_run() is run
    assert keys(guard, run) == ["main/atool#1", "main/tool#1", "main/atool#2"]


def test_the_task_factory_goes_with_the_last_attachment(sqlite_guard):
    async def main():
        loop = asyncio.get_running_loop()
        with Guard.open(telemetry=False) as other:
            for _ in range(2):
                with other.attach(run.id, branch="w"):
                    await atool("a")
                    assert isinstance(loop.get_task_factory(), LoopBranches)
                assert loop.get_task_factory() is None
            assert run.id not in other.runtime.live

    with sqlite_guard.run("r") as run:
        asyncio.run(main())


def test_tasks_that_share_a_name_have_the_same_keys_in_every_run(guard):
    async def work(name):
        await asyncio.sleep(0)
        await asyncio.gather(atool(name), atool(name))

    async def main():
        made = [asyncio.create_task(work(n), name="worker") for n in range(8)]
        await asyncio.gather(*made)

    with guard.run("agent") as run:  # outside the loop, which is met at the first step
        asyncio.run(main())

    assert len({key.split("/")[1] for key in keys(guard, run)}) == 8
    with guard.replay(run.id):
        asyncio.run(main())
