"""A streamed answer goes on until it is read or closed: charged once, and the connection is given back."""

import asyncio
import gc
import threading
from decimal import Decimal

import pytest

from agentguard import Budget, Guard, KillSwitchTriggeredError
from tests.integrations.clients.conftest import ANSWER_USD, MESSAGES, TEXT, Sdk, closing, outcomes
from tests.integrations.clients.server import Break, Pause, Providers, Reply, chat, message, openai_usage
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
                    pause.reached.wait(60)
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


# --- servers that tell in every event what was used so far -----------------------------------------


def counting(sdk: Sdk, ends_with_usage: bool = True, **asked: object) -> Reply:
    """A stream whose events count what was used so far."""
    body = {"model": sdk.model, "stream": True, "stream_options": {"include_usage": ends_with_usage}, **asked}
    if sdk.is_openai:
        reply = chat(body)
        for n, event in enumerate(reply.events[:-2] if ends_with_usage else reply.events[:-1]):
            event["usage"] = openai_usage(completion=2 * n)
        return reply
    reply = message(body)
    so_far = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 2}}
    reply.events.insert(4, so_far)
    return reply


@pytest.mark.parametrize("broken", [False, True], ids=["closed", "broken"])
def test_what_was_used_so_far_is_not_what_a_stream_that_ends_early_is_charged(
    sdk: Sdk, guard: Guard, broken: bool
) -> None:
    client = sdk.client()
    reply = counting(sdk)
    reply.events.insert(5, Break() if broken else Pause())
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await sdk.create(client, stream=True)
            if broken:
                with pytest.raises(Exception, match=r"(?i)connection|peer|incomplete"):
                    async for _ in sdk.events(stream):
                        pass
            else:
                for _ in range(4):
                    await sdk.next(stream)
                await sdk.close(stream)
        assert RESERVED < run.spent.usd < 2 * RESERVED

    closing(program, client)


def test_a_count_above_the_reservation_is_charged_where_a_stream_ends_early(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    reply = counting(sdk)
    counted = reply.events[3] if sdk.is_openai else reply.events[4]
    counted["usage"] = openai_usage(completion=500) if sdk.is_openai else {"output_tokens": 500}
    reply.events.insert(5, Pause())
    sdk.server.next.append(reply)

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = await sdk.create(client, stream=True)
            for _ in range(4):
                await sdk.next(stream)
            await sdk.close(stream)
        assert run.spent.usd >= Decimal("0.00502")

    closing(program, client)


@pytest.mark.parametrize("ends_with_usage", [True, False], ids=["usage-alone", "usage-with-the-last-choice"])
@pytest.mark.parametrize("answers", [1, 2])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_stream_that_counts_all_along_is_charged_what_it_used_at_its_end(
    server: Providers, guard: Guard, asynchronous: bool, answers: int, ends_with_usage: bool
) -> None:
    sdk = Sdk("openai", asynchronous, server)
    client = sdk.client()
    server.next.append(counting(sdk, ends_with_usage))

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            async for _ in sdk.events(await sdk.create(client, stream=True, n=answers)):
                pass
        assert run.spent.usd == Decimal(ANSWER_USD)

    closing(program, client)


def test_the_end_of_the_first_of_two_answers_is_not_the_end(server: Providers, guard: Guard) -> None:
    sdk = Sdk("openai", False, server)
    client = sdk.client()
    reply = counting(sdk, ends_with_usage=False)
    reply.events.insert(-1, Pause())
    for_two, for_one = reply, counting(sdk, ends_with_usage=False)
    for_one.events.insert(-1, Pause())
    server.next += [for_two, for_one]

    def spent(answers: int) -> Decimal:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            stream = client.chat.completions.create(
                model=sdk.model, messages=MESSAGES, max_tokens=100, stream=True, n=answers
            )
            assert next(chunk for chunk in stream if chunk.choices[0].finish_reason)
            stream.close()
        return run.spent.usd

    assert spent(2) > 2 * RESERVED
    assert spent(1) == Decimal(ANSWER_USD)
    client.close()
