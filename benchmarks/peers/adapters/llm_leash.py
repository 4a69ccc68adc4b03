"""llm-leash: a client that `Firewall(budget_usd=...).wrap` has wrapped; it knows costs by tokens alone."""

import asyncio
from contextlib import contextmanager
from types import SimpleNamespace

from llm_leash import Firewall, LeashKilled, SQLiteKillRegistry

REQUIRES = "llm-leash==2.30.0"
STOPS = (LeashKilled,)
_MODEL, _USD_PER_TOKEN = "claude-opus-4-7", 75e-6


@contextmanager
def session(limit, cost, **options):
    tokens = round(cost / _USD_PER_TOKEN)
    usage = SimpleNamespace(input_tokens=0, output_tokens=tokens)

    def create(*, model, max_tokens, messages, body):
        body()
        return SimpleNamespace(usage=usage, content=[], model=model, stop_reason="end_turn")

    client = SimpleNamespace(messages=SimpleNamespace(create=create))
    yield Firewall(budget_usd=limit, **options).wrap(client), tokens


def call(run, body):
    client, tokens = run
    asked = [{"role": "user", "content": "Go on."}]
    return client.messages.create(model=_MODEL, max_tokens=tokens, messages=asked, body=body)


def killable(place, name):
    return session(1e6, 0.0075, session_id=name, kill_registry=SQLiteKillRegistry(f"{place}/kills.db"))


def killer(place):
    registry = SQLiteKillRegistry(f"{place}/kills.db")
    return lambda name: asyncio.run(registry.kill(name, reason="stop"))
