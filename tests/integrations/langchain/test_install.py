"""The hook of the whole process.  It cannot be undone, so each test has a process of its own."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("langchain")

PROLOGUE = """
import logging, threading
from concurrent.futures import ThreadPoolExecutor
from agentguard import Budget, BudgetExceededError, Guard, NoActiveRunError
from agentguard_langchain import GuardCallbackHandler, install
from langchain_core.language_models import FakeListChatModel
from langchain_core.tools import tool
logging.disable(logging.WARNING)

class Model(FakeListChatModel):
    def _call(self, *args, **kwargs):
        made.append(1)
        return super()._call(*args, **kwargs)

made = []
model = Model(responses=["fine"])
guard = Guard.in_memory(telemetry=False)

def fails(call, error):
    try:
        call()
    except error as found:
        return str(found)
    raise AssertionError("it did not fail")

def in_a_thread(call):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
"""


def run(program: str) -> None:
    code = PROLOGUE + textwrap.dedent(program)
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_every_call_is_seen_whatever_its_callbacks() -> None:
    run(
        """
        install()
        def calls():
            for _ in range(20):
                try:
                    model.invoke("hi")
                    model.invoke("hi", {"callbacks": []})
                    model.invoke("hi", {"callbacks": [GuardCallbackHandler()]})
                except BudgetExceededError:
                    pass
        def go():
            with guard.run("r", budget=Budget(steps=3)):
                calls()
        fails(go, BudgetExceededError)
        assert len(made) == 3, made
        """
    )


def test_bare_threads_belong_to_the_only_run_alive() -> None:
    run(
        """
        install()
        @tool
        def ask(question: str) -> str:
            "Ask in threads of its own."
            with ThreadPoolExecutor(2) as pool:
                return " ".join(pool.map(lambda n: model.invoke(f"{question} {n}", {"callbacks": []}).content, range(2)))
        with guard.run("r") as run:
            assert ask.invoke({"question": "how"}) == "fine fine"
        assert run.spent.steps == 3, run.spent
        assert len({e.key for e in guard.history(run.id) if e.type == "step_started"}) == 3
        """
    )


def test_with_several_runs_alive_a_bare_thread_is_refused() -> None:
    run(
        """
        install(outside="allow")
        model.invoke("hi")
        with guard.run("one"):
            model.invoke("hi")
            with guard.run("two", detached=True):
                model.invoke("hi")
                text = in_a_thread(lambda: fails(lambda: model.invoke("hi"), NoActiveRunError))
                assert "several are alive" in text and "run.bind" in text, text
        assert len(made) == 3
        """
    )


def test_outside_a_run_calls_are_refused_unless_allowed() -> None:
    run(
        """
        handler = install()
        assert "no run is active" in fails(lambda: model.invoke("hi"), NoActiveRunError)
        assert install(outside="allow") is handler
        assert model.invoke("hi").content == "fine"
        fails(lambda: install(run=1), TypeError)
        """
    )


def test_the_integration_loads_alone_and_warns_of_nothing() -> None:
    subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", "import agentguard_langchain"], check=True, timeout=120
    )
