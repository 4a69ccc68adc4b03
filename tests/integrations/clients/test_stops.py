"""Errors, retries and kills: every attempt is a step, and a stop is never taken for a broken connection."""

import asyncio
import threading
from decimal import Decimal

import pytest

from agentguard import Budget, BudgetExceededError, Guard, KillSwitchTriggeredError
from tests.integrations.clients.conftest import TEXT, Sdk, closing, outcomes
from tests.integrations.clients.server import Break, Pause, error
from tests.kit import wait_until


def test_each_retry_of_the_sdk_is_a_step_and_a_refused_attempt_is_free(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    sdk.server.next += [error(429, "slow down"), error(500, "oops")]

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            assert await sdk.ask(client) == TEXT
        assert outcomes(guard, run) == ["step_started", "step_failed"] * 2 + [
            "step_started",
            "step_completed",
        ]
        assert run.spent.usd == Decimal("0.00012")
        assert run.spent.steps == 3
        failed = next(event for event in guard.history(run.id) if event.type == "step_failed")
        assert "429" in failed.data["error"]["message"]

    closing(program, client)


def test_the_sdk_raises_its_own_error_and_the_step_failed(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client(max_retries=0)
    sdk.server.next += [error(400, "max_tokens is wrong", {"request-id": "req_7", "x-request-id": "req_7"})]

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            with pytest.raises(sdk.error.BadRequestError, match="max_tokens is wrong") as caught:
                await sdk.ask(client)
            assert caught.value.request_id == "req_7"
        assert outcomes(guard, run) == ["step_started", "step_failed"]
        assert run.spent.usd == 0

    closing(program, client)


def test_an_attempt_whose_connection_breaks_is_charged_as_reserved(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client(max_retries=0)
    sdk.server.next += [Break()]

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            with pytest.raises(sdk.error.APIConnectionError):
                await sdk.ask(client)
        assert run.spent.usd > Decimal("0.001")  # 100 tokens of the answer, and the prompt

    closing(program, client)


def test_a_request_that_reached_nobody_is_free(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client(max_retries=0, base_url="http://127.0.0.1:9/v1")

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            with pytest.raises(sdk.error.APIConnectionError):
                await sdk.ask(client)
        assert (run.spent.usd, run.spent.steps) == (0, 1)

    closing(program, client)


def test_a_timeout_is_the_sdks_own_and_charged_as_reserved(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client(max_retries=0, timeout=0.2)
    pause = Pause()
    sdk.server.next += [pause]

    async def program() -> None:
        with guard.run("ask", budget=Budget(usd=5)) as run:
            with pytest.raises(sdk.error.APITimeoutError):
                await sdk.ask(client)
        assert run.spent.usd > Decimal("0.001")

    closing(program, client)
    wait_until(sdk.server.gone.is_set)


def test_retries_end_at_the_limit(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client(max_retries=50)
    sdk.server.next += [error(500, "oops") for _ in range(50)]

    async def program() -> None:
        with pytest.raises(BudgetExceededError):
            with guard.run("ask", budget=Budget(steps=3)):
                with pytest.raises(BudgetExceededError):
                    await sdk.ask(client)

    closing(program, client)
    assert len(sdk.server.requests) == 3


def test_a_killed_run_sends_nothing_more_and_says_so_at_once(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            with guard.run("ask") as run:
                await sdk.ask(client)
                run.kill("enough")
                with pytest.raises(KillSwitchTriggeredError, match="enough"):
                    await sdk.ask(client)
                with pytest.raises(KillSwitchTriggeredError):
                    made = client.models.list()
                    _ = await made if sdk.asynchronous else made

    closing(program, client)
    assert len(sdk.server.requests) == 1


def test_a_kill_cancels_the_request_in_flight(provider: str, guard: Guard, server) -> None:
    sdk = Sdk(provider, asynchronous=True, server=server)
    client = sdk.client()
    pause = Pause()
    server.next += [pause]

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            async with guard.run("ask") as run:
                task = asyncio.create_task(sdk.ask(client))
                await asyncio.to_thread(pause.reached.wait, 10)
                guard.kill(run=run.id, reason="enough")
                with pytest.raises(KillSwitchTriggeredError):
                    await task
        wait_until(server.gone.is_set)
        failed = next(event for event in guard.history(run.id) if event.type == "step_failed")
        assert failed.data["error"]["type"] == "KillSwitchTriggeredError"

    closing(program, client)


def test_a_kill_between_attempts_ends_the_retries(provider: str, guard: Guard, server) -> None:
    sdk = Sdk(provider, asynchronous=False, server=server)
    client = sdk.client(max_retries=20)
    pause = Pause()
    server.next += [pause, *[error(500, "oops")] * 20]

    async def program() -> None:
        with pytest.raises(KillSwitchTriggeredError):
            with guard.run("ask") as run:

                def kill() -> None:
                    pause.reached.wait(60)
                    server.next.insert(0, error(500, "oops"))
                    guard.kill(run=run.id, reason="enough")
                    pause.go_on.set()

                killer = threading.Thread(target=kill)
                killer.start()
                with pytest.raises(KillSwitchTriggeredError):
                    await sdk.ask(client)
                    await sdk.ask(client)
        killer.join()

    closing(program, client)
    assert len(server.requests) == 1
