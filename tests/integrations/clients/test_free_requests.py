"""Requests that cost nothing are no steps, and yet on record; forms with files are told apart."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

import agentguard_openai
from agentguard import Budget, Guard, ReplayDivergenceError, RunStopped
from tests.integrations.clients.conftest import MESSAGES, Sdk, closing
from tests.integrations.clients.server import Providers, Reply, error

FILE = {"id": "file-1", "object": "file", "filename": "a.txt", "purpose": "batch", "type": "file"}


async def free_answers(sdk: Sdk, client: Any) -> list[Any]:
    """A file uploaded from bytes and from an open file, tokens or models counted, a file deleted."""
    files = client.files if sdk.is_openai else client.beta.files
    upload: Callable[..., Any] = files.create if sdk.is_openai else files.upload
    purpose = {"purpose": "batch"} if sdk.is_openai else {}
    calls: list[Callable[[], Any]] = [
        lambda: upload(file=("a.txt", b"abc"), **purpose),
        lambda: upload(file=io.BytesIO(b"\xff\xfe"), **purpose),
        lambda: (
            client.moderations.create(input="text")
            if sdk.is_openai
            else client.messages.count_tokens(model=sdk.model, messages=MESSAGES)
        ),
    ]
    return [await call() if sdk.asynchronous else call() for call in calls]


def test_what_costs_nothing_comes_back_in_a_replay_without_the_network(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()
    sdk.server.next += [Reply(FILE), error(500, "try again"), Reply(FILE)]

    async def program() -> None:
        with guard.run("files", budget=Budget(steps=0)) as run:
            live = await free_answers(sdk, client)
        asked = len(sdk.server.requests)
        with guard.replay(run.id):
            assert await free_answers(sdk, client) == live
        assert len(sdk.server.requests) == asked

    closing(program, client)


def test_a_refused_free_request_comes_back_as_the_sdks_own_error(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client(max_retries=0)
    sdk.server.next.append(error(429, "slow down"))

    async def agent() -> None:
        with pytest.raises(sdk.error.RateLimitError, match="slow down"):
            await free_answers(sdk, client)

    async def program() -> None:
        with guard.run("files") as run:
            await agent()
        with guard.replay(run.id):
            await agent()

    closing(program, client)


def test_a_stopped_run_makes_no_free_request(sdk: Sdk, guard: Guard) -> None:
    client = sdk.client()

    async def program() -> None:
        with pytest.raises(RunStopped):
            with guard.run("files") as run:
                run.kill("enough")
                await free_answers(sdk, client)

    closing(program, client)
    assert sdk.server.requests == []


@pytest.mark.parametrize("capture", ["digest", "none"])
def test_a_guard_that_keeps_no_results_keeps_no_free_answers(
    server: Providers, tmp_path: Path, capture: Any
) -> None:
    with Guard.in_memory(capture=capture) as guard:
        client = agentguard_openai.guard_client(openai.OpenAI(api_key="k", base_url=server.url + "/v1"))
        told = {"id": "modr-1", "model": "of-a-customer", "results": []}
        server.next.append(Reply(told))
        with guard.run("files") as run:
            assert client.moderations.create(input="text").model == "of-a-customer"
        guard.export(run.id, tmp_path / "run.jsonl")
        assert "of-a-customer" not in (tmp_path / "run.jsonl").read_text()
        with pytest.raises(ReplayDivergenceError), guard.replay(run.id):
            client.moderations.create(input="text")
        assert len(server.paths) == 1
        client.close()


def test_an_answer_that_is_read_bit_by_bit_is_refused_in_a_replay(server: Providers, guard: Guard) -> None:
    client = agentguard_openai.guard_client(openai.OpenAI(api_key="k", base_url=server.url + "/v1"))

    def agent() -> bytes:
        with client.models.with_streaming_response.list() as answer:
            return answer.read()

    with guard.run("models") as run:
        assert b"gpt-4o-mini" in agent()
    with pytest.raises(ReplayDivergenceError, match="guarded_step"), guard.replay(run.id):
        agent()
    client.close()


def test_forms_with_files_are_steps_and_told_apart(sdk: Sdk, guard: Guard) -> None:
    if not sdk.is_openai:
        pytest.skip("files in forms that cost something are OpenAI's alone")
    client = sdk.client({"unpriced": "allow"})
    sdk.server.next += [Reply({"text": f"answer {n}"}) for n in range(4)]
    sounds = [("a.wav", b"one"), ("a.wav", b"two"), io.BytesIO(b"three"), io.BytesIO(b"four")]

    async def agent() -> list[str]:
        texts = []
        for sound in sounds:
            made = client.audio.transcriptions.create(model="whisper-1", file=sound)
            texts.append((await made if sdk.asynchronous else made).text)
        return texts

    async def program() -> None:
        with guard.run("hear", budget=Budget(usd=1, steps=4, repeats=2)) as run:
            live = await agent()
        assert live == [f"answer {n}" for n in range(4)]
        assert b"three" in sdk.server.raw[2]
        with guard.replay(run.id):
            assert await agent() == live
        sounds[0] = ("a.wav", b"another")
        with pytest.raises(ReplayDivergenceError, match="arguments"), guard.replay(run.id):
            await agent()

    closing(program, client)
