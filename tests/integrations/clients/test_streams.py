"""A streamed answer goes on until it is read or closed: charged once, and the connection is given back."""

import asyncio
import gc
import threading
from decimal import Decimal

import pytest

from agentguard import Budget, Guard, KillSwitchTriggeredError
from tests.integrations.clients.conftest import ANSWER_USD, TEXT, Sdk, closing, outcomes
from tests.integrations.clients.server import Break, Pause, Providers, Reply, chat, message
from tests.kit import wait_until

RESERVED = Decimal("0.001")  # 100 tokens of the answer; the prompt comes on top


def paused(sdk: Sdk, after: int = 3) -> tuple[Reply, Pause]:
    """A stream that waits in its middle."""
    body = {"model": sdk.model, "stream": True, "stream_options": {"include_usage": True}}
    reply = (chat if sdk.is_openai else message)(body)
    pause = Pause()
    reply.events.insert(after, pause)
    return reply, pause


def test_a_stream_closed_early_is_charged_as_reserved_and_its_connection_closed(
    sdk: Sdk, guard: Guard
) -> None:
    client = sdk.client()
    reply, _ = paused(sdk)
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await sdk.create(client, stream=True)
            await sdk.next(stream)
            await sdk.close(stream)
            assert run.spent.usd > RESERVED
            assert (await asyncio.to_thread(sdk.server.gone.wait, 10)) is True
            assert await sdk.ask(client) == TEXT
        assert outcomes(guard, run) == ["step_started", "step_completed"] * 2
        assert RESERVED < run.spent.usd < 2 * RESERVED

    closing(program, client)


def test_leaving_the_streams_block_closes_it(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    reply, _ = paused(sdk)
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await sdk.create(client, stream=True)
            if sdk.asynchronous:
                async with stream:
                    await sdk.next(stream)
            else:
                with stream:
                    await sdk.next(stream)
            assert (await asyncio.to_thread(sdk.server.gone.wait, 10)) is True
        assert run.summary().usage.steps == 1

    closing(program, client)


def test_a_stream_whose_connection_breaks_failed_and_is_charged_as_reserved(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    reply, pause = paused(sdk)
    reply.events[reply.events.index(pause)] = Break()
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            with pytest.raises(Exception, match=r"(?i)connection|peer|incomplete"):
                async for _ in sdk.events(await sdk.create(client, stream=True)):
                    pass
        assert outcomes(guard, run) == ["step_started", "step_failed"]
        assert RESERVED < run.spent.usd < 2 * RESERVED

    closing(program, client)


def test_a_kill_in_the_middle_ends_the_stream_and_closes_the_connection(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    reply, pause = paused(sdk)
    sdk.server.next.append(reply)
    read: list[str] = []

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            with guard.run("ask", budget=Budget(usd=5)) as run:

                def kill() -> None:
                    pause.reached.wait(10)
                    guard.kill(run=run.id, reason="enough")
                    if not sdk.asynchronous:  # a blocking read ends with the next event
                        pause.go_on.set()

                killer = threading.Thread(target=kill)
                killer.start()
                stream = await sdk.create(client, stream=True)
                with pytest.raises(KillSwitchTriggeredError, match="enough"):
                    async for event in sdk.events(stream):
                        read.append(sdk.piece(event))
        killer.join()
        assert TEXT not in "".join(read)
        assert outcomes(guard, run) == ["step_started", "step_failed"]
        assert RESERVED < run.spent.usd < 2 * RESERVED
        if sdk.asynchronous:
            assert (await asyncio.to_thread(sdk.server.gone.wait, 10)) is True

    closing(program, client)


def test_a_stream_that_nobody_reads_is_charged_as_reserved(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    reply, _ = paused(sdk, after=0)
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await sdk.create(client, stream=True)
        assert outcomes(guard, run) == ["step_started", "step_failed"]
        assert RESERVED < run.spent.usd < 2 * RESERVED
        await sdk.close(stream)
        assert (await asyncio.to_thread(sdk.server.gone.wait, 10)) is True

    closing(program, client)


def test_a_stream_that_is_dropped_is_settled_and_its_connection_closed(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    reply, _ = paused(sdk)
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await sdk.create(client, stream=True)
            await sdk.next(stream)
            del stream
            gc.collect()
            await asyncio.sleep(0)
            assert (await asyncio.to_thread(sdk.server.gone.wait, 10)) is True
            await sdk.ask(client)
        assert outcomes(guard, run).count("step_started") == 2
        assert RESERVED < run.spent.usd < 2 * RESERVED

    closing(program, client)


def test_a_stream_may_be_read_in_another_task_or_thread(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def read(stream: object) -> str:
        return "".join([sdk.piece(event) async for event in sdk.events(stream)])

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await sdk.create(client, stream=True)
            if sdk.asynchronous:
                text = await asyncio.create_task(read(stream))
            else:
                text = await asyncio.to_thread(asyncio.run, read(stream))
            assert text == TEXT
        assert run.spent.usd == Decimal(ANSWER_USD)
        assert outcomes(guard, run) == ["step_started", "step_completed"]

    closing(program, client)


def test_a_cancelled_reader_closes_the_connection(provider: str, guard: Guard, server: Providers) -> None:
    sdk = Sdk(provider, asynchronous=True, server=server)
    client = sdk.client()
    reply, pause = paused(sdk)
    server.next.append(reply)

    async def read() -> None:
        async for _ in await sdk.create(client, stream=True):
            pass

    async def program() -> None:
        async with guard.run("ask", budget=Budget(usd=5)) as run:
            task = asyncio.create_task(read())
            await asyncio.to_thread(pause.reached.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await asyncio.to_thread(server.gone.wait, 10)) is True
        assert outcomes(guard, run) == ["step_started", "step_failed"]
        assert RESERVED < run.spent.usd < 2 * RESERVED

    closing(program, client)


def test_streams_of_several_tasks_are_charged_each(provider: str, guard: Guard, server: Providers) -> None:
    sdk = Sdk(provider, asynchronous=True, server=server)
    client = sdk.client()

    async def read() -> str:
        return "".join([sdk.piece(event) async for event in await sdk.create(client, stream=True)])

    async def program() -> None:
        async with guard.run("ask", budget=Budget(usd=5)) as run:
            assert await asyncio.gather(*(read() for _ in range(8))) == [TEXT] * 8
        assert run.spent.usd == 8 * Decimal(ANSWER_USD)

    closing(program, client)


def test_a_refused_stream_is_never_opened(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            with guard.run("ask") as run:
                run.kill("enough")
                with pytest.raises(KillSwitchTriggeredError):
                    await sdk.create(client, stream=True)

    closing(program, client)
    assert sdk.server.requests == []


def test_the_connection_is_used_again_after_a_stream(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)):
            for _ in range(3):
                async for _ in sdk.events(await sdk.create(client, stream=True)):
                    pass
                wait_until(sdk.server.finished.is_set)
                sdk.server.finished.clear()
        pool = client._client._transport._pool
        assert len(pool.connections) <= 3
        assert all(connection.is_idle() or connection.is_closed() for connection in pool.connections)

    closing(program, client)
