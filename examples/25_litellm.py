"""LiteLLM under a budget: two providers, one limit.

Run it:  OPENAI_API_KEY=... ANTHROPIC_API_KEY=... python examples/25_litellm.py
It needs:  pip install 'agentguard[litellm]'
"""

import warnings

warnings.simplefilter("ignore")  # LiteLLM's own, at import and at each call

import litellm as bare  # noqa: E402

from agentguard import Budget, BudgetExceededError, Guard  # noqa: E402
from agentguard_litellm import guard_client  # noqa: E402

bare.suppress_debug_info = True
litellm = guard_client(bare, max_output_tokens=200)
MODELS = ("openai/gpt-5-mini", "anthropic/claude-haiku-4-5")

try:
    with Guard.in_memory() as guard, guard.run("two", budget=Budget(calls={"kind:llm": 3})) as run:
        while True:  # an agent that never stops
            for model in MODELS:
                answer = litellm.completion(model=model, messages=[{"role": "user", "content": "Go on."}])
                print(f"{model} answered with {answer.usage.completion_tokens} tokens")
except BudgetExceededError as stop:
    print(f"stopped: {stop.resource}, {stop.spent} of {stop.limit}")
assert run.spent.usd > 0
