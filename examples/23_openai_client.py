"""An OpenAI client under a budget: an answer, a stream, and the whole run again without the network.

Run it:  OPENAI_API_KEY=... python examples/23_openai_client.py     (pip install 'agentguard[openai]')
"""

from openai import OpenAI

from agentguard import Budget, Guard
from agentguard_openai import guard_client

client = guard_client(OpenAI(), max_output_tokens=300)


def agent() -> str:
    """Ask for a plan, then write by it, word by word."""
    plan = client.responses.create(model="gpt-5-mini", input="Plan a letter about tides in one line.")
    letter = client.chat.completions.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": plan.output_text}], stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in letter)


with Guard.in_memory() as guard:
    with guard.run("letter", budget=Budget(usd="0.10", calls={"kind:llm": 5})) as run:
        live = agent()
    print(f"{run.state}: {run.spent.steps} calls, {run.spent.tokens} tokens")
    assert 0 < run.spent.usd < run.remaining.usd
    for event in guard.history(run.id):
        if event.type == "step_completed":
            print(f"  {event.name}: {event.usage.output_tokens} tokens of output")
    with guard.replay(run.id):
        print("the same again from the log:", agent() == live)
client.close()
