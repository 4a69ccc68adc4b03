"""Web sockets of a guarded OpenAI client go past its HTTP client: refused where that could cost unseen money."""

from typing import Any

import openai
import pytest

import agentguard_openai
from agentguard import Budget, Guard, NoActiveRunError, ReplayDivergenceError, UnknownCostError
from tests.integrations.clients.conftest import PRICES

CLIENTS = {"sync": openai.OpenAI, "async": openai.AsyncOpenAI}
SOCKETS = {
    "realtime": lambda client: client.realtime.connect(model="gpt-realtime"),
    "responses": lambda client: client.responses.connect(),
    "a copy": lambda client: client.with_options(timeout=3).realtime.connect(model="gpt-realtime"),
}


@pytest.fixture(params=CLIENTS)
def bare(request: pytest.FixtureRequest) -> Any:
    return CLIENTS[request.param](api_key="k", base_url="http://127.0.0.1:9/v1")


def guarded(bare: Any, **options: Any) -> Any:
    return agentguard_openai.guard_client(bare, prices=PRICES, **options)


@pytest.mark.parametrize("socket", SOCKETS)
@pytest.mark.parametrize("budget", [Budget(usd=5), Budget(tokens=500)], ids=["usd", "tokens"])
def test_a_socket_is_refused_where_money_or_tokens_are_limited(
    bare: Any, guard: Guard, socket: str, budget: Budget
) -> None:
    with pytest.raises(UnknownCostError), guard.run("ask", budget=budget) as run:
        with pytest.raises(UnknownCostError, match="bare client inside a guarded_step.*unpriced='allow'"):
            SOCKETS[socket](guarded(bare))
    assert run.summary().state != "COMPLETED"


@pytest.mark.parametrize("socket", SOCKETS)
def test_a_socket_may_be_opened_where_that_is_allowed_or_nothing_is_limited(
    bare: Any, guard: Guard, socket: str
) -> None:
    with guard.run("ask", budget=Budget(usd=5)):
        assert hasattr(SOCKETS[socket](guarded(bare, unpriced="allow")), "enter")
    with guard.run("ask", budget=Budget(steps=5)):
        assert hasattr(SOCKETS[socket](guarded(bare)), "enter")


def test_a_bare_client_is_left_alone(bare: Any, guard: Guard) -> None:
    guarded(bare)
    with guard.run("ask", budget=Budget(usd=5)):
        assert hasattr(SOCKETS["realtime"](bare), "enter")


def test_a_socket_outside_a_run_and_in_a_replay_is_refused(bare: Any, guard: Guard) -> None:
    client = guarded(bare)
    with pytest.raises(NoActiveRunError, match=r"no run is active here \(realtime.connect\)"):
        SOCKETS["realtime"](client)
    assert hasattr(SOCKETS["realtime"](guarded(bare, outside="allow")), "enter")
    with guard.run("ask") as run:
        pass
    with pytest.raises(ReplayDivergenceError), guard.replay(run.id):
        SOCKETS["realtime"](client)
