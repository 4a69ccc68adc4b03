"""The shortest program: an agent that never stops, a real SDK client, and five dollars.

Run it:  OPENAI_API_KEY=... python examples/05_five_dollars.py     (pip install 'agentguard[openai]')
"""

from openai import OpenAI

from agentguard import Budget, BudgetExceededError, Guard
from agentguard_openai import guard_client

client = guard_client(OpenAI(), max_output_tokens=20_000)
try:
    with Guard.in_memory() as guard, guard.run("agent", budget=Budget(usd=5)) as run:
        while client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Go on."}]):
            print(f"{run.spent.usd:.2f} USD spent")
except BudgetExceededError as stop:
    print(f"stopped: {stop}")
