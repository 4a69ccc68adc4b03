"""Only type-checked, by mypy and pyright, never run: guarded SDK clients have the types of the clients."""

from __future__ import annotations

from typing import assert_type

from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from openai.types.chat import ChatCompletion

import agentguard_anthropic
import agentguard_openai
from agentguard import Budget, Guard

assert_type(agentguard_openai.guard_client(OpenAI()), OpenAI)
assert_type(agentguard_openai.guard_client(AsyncOpenAI()), AsyncOpenAI)
assert_type(agentguard_openai.guard_client(AzureOpenAI()), AzureOpenAI)
assert_type(agentguard_openai.guard_client(AsyncAzureOpenAI()), AsyncAzureOpenAI)
assert_type(agentguard_anthropic.guard_client(Anthropic()), Anthropic)
assert_type(agentguard_anthropic.guard_client(AsyncAnthropic(), max_output_tokens=9), AsyncAnthropic)

agentguard_openai.guard_client(OpenAI(), max_tokens=9)  # type: ignore[call-arg]
agentguard_openai.guard_client("OpenAI")  # type: ignore[type-var]

client = agentguard_openai.guard_client(OpenAI())
answer = client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Why?"}])
assert_type(answer, ChatCompletion)
assert_type(client.with_options(timeout=3), OpenAI)

guard = Guard.in_memory()
with guard.run("turn", account="thread:42", account_budget=Budget(usd=1)) as run:
    with run.account("thread:42", Budget(usd="0.5")):
        pass
account = guard.account("thread:42")
if account is not None:
    assert_type(account.name, str)
