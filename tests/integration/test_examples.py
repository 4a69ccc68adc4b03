"""Every example runs as it stands, prints what it promises, and leaves the user's own state alone."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

EXAMPLES_FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(EXAMPLES_FOLDER.glob("*.py"))

#: What comes with other packages of the environment, or leaves files beside the tests.
PYTEST = ("-s", "-p", "no:langsmith_plugin", "-p", "no:xdist", "-p", "no:cacheprovider")

#: Lines, or beginnings of lines, that an example prints, in this order.
PRINTED = {
    "01_first_guard.py": [
        "  sent to ann-3@example.org",
        "  the agent swallows: emails limit of the run: 3 allowed, 3 spent",
        "stopped: emails, 3 of 3 used",
        "FAILED: 3 emails, 0.03 USD",
        "log: intact: 13 events",
        "  12 step_refused   main/send_email#4",
        "  13 run_failed",
    ],
    "02_budgets.py": [
        "  warning: 0.018 of 0.02 usd (research)",
        "scope 'research' is stopped: usd, 0.012 of 0.02 used",
        "  the scope spent 0.012 USD; the run still has 0.088 USD",
        "pages fetched: 3",
        "an answer after that: 'about one more'",
        "  refunded A-2",
        "run is stopped: refunds, 2 of 2 used",
        "FAILED: 0.016 USD, 2 refunds",
    ],
    "03_kill_from_another_terminal.py": [
        "the body was cancelled",
        "the agent swallows: KillSwitchTriggeredError",
        "stopped: 'enough'",
        "the other process: killed run ",
        "on record: KILLED",
        "the next run: COMPLETED",
    ],
    "04_opentelemetry.py": [
        "  about order A-1: shipped",
        "  no order A-2",
        "stopped: usd limit of the run: 0.05 allowed, 0.04 spent",
        "FAILED; the run's span has agentguard.log.head = 13:",
        "spans and metrics went to the console",
    ],
    "05_five_dollars.py": [
        "0.20 USD spent",
        "4.80 USD spent",
        "stopped: usd limit of the run: 5 allowed, 4.99",
    ],
    "20_pydantic_ai.py": [
        "stopped: usd, 0.00585 of 0.006 spent",
        "FAILED: 0.00585 USD, 3 pages",
        "COMPLETED: 0.00485 USD",
    ],
    "21_openai_agents.py": ["stopped: calls:refund, 3 of 3", "COMPLETED: 0.0014 USD"],
    "22_mcp_server.py": [
        "  the client is told: -32080 BudgetExceededError",
        "FAILED: 5 calls, 2 mails",
    ],
    "23_openai_client.py": [
        "COMPLETED: 2 calls, 350 tokens",
        "  responses: 10 tokens of output",
        "  chat.completions: 300 tokens of output",
        "the same again from the log: True",
    ],
    "24_anthropic_client.py": [
        "3 answers; COMPLETED: 3 steps",
        "stopped after 5 letters: that will do",
        "on record: KILLED",
    ],
    "25_litellm.py": [
        "openai/gpt-5-mini answered with 200 tokens",
        "anthropic/claude-haiku-4-5 answered with 10 tokens",
        "stopped: calls:kind:llm, 3 of 3",
    ],
    "10_langchain_agent.py": [
        "stopped: usd, 0.01628 of 0.02 used",
        "FAILED: 0.01628 USD, 40 EUR refunded",
        "the agent: Done after 4 customers.",
        "COMPLETED: 0.02252 USD, 2 mails",
        "the same again, without model and tools: Done after 4 customers.",
    ],
    "11_langchain_kill_stream.py": [
        "the agent talks",
        "in the middle of a sentence: 'that will do'",
        "the other process: killed run ",
        "on record: KILLED",
    ],
    "12_langgraph_branches.py": [
        "tides: 2 pages",
        "winds: 3 pages",
        "everything: given up, calls:kind:llm",
        "COMPLETED: 1020 tokens in 32 steps",
        "  main/research@1.0/model@1/chat scripted#1",
    ],
    "13_thread_budget.py": [
        "turn 3 of ann: answered",
        "turn 4 of ann: account:thread:ann has spent 0.009 of 0.01 USD",
        "turn 1 of bob: answered",
        "  thread:ann: 0.009 USD in 3 calls",
    ],
    "14_langgraph_approval.py": [
        "  ann is asked: refund {'eur': 300}?",
        "  ann is asked: refund asks for a higher limit of refunded_eur: 200 allowed, 20 spent",
        "paid: [20, 300]",
        "  run_budget_set by ann: a good customer",
        "  approval_granted by ann: checked",
        "replayed: Both are paid. paid: []",
    ],
    "30_replay_failed_run.py": [
        "in production: RateError: no rate for XXX",
        "  really done: asked the model, fetched EUR, fetched USD, fetched XXX",
        "the log: intact: 12 events",
        "  the same error, as its own type: no rate for XXX",
        "  really done: nothing",
        "  goes as recorded until it does something new: missing at main/tell_operator#1",
        "  really done: nothing",
    ],
    "31_crash_and_recover.py": [
        "life 1: killed by SIGKILL",
        "  charged bob 300 under qtfldbx2",
        "life 2: killed by SIGKILL",
        "  charged bob 300 under qtfldbx2",
        "  posted a letter to cid",
        "  cannot go on: main/send_letter#3 may have happened",
        "life 3: ended with 3",
        "  done: 4 customers",
        "life 4: ended with 0",
        "COMPLETED, 0.05 USD; the log is intact",
        "  13 step_resolved  main/charge#2 retry",
        "  25 step_resolved  main/send_letter#3 completed",
        "4 letters for 4 customers, posted twice: 0",
    ],
    "32_what_if.py": [
        "stopped: 0.05 of 0.05 usd spent",
        "  Budget(usd='0.03'): stops at event 13 (main/summarize#3): usd limit 0.03",
        "  Budget(tokens=2500): stops at event 13",
        "  Budget(calls={'fetch': 3}): stops at event 15",
        "  Budget(steps=100): does not stop; unknown beyond seq 22",
        "a fork after event 21",
        "  really summarized PAGE-5",
        "  8 pages, the first four from the log",
        "COMPLETED: 0.096 USD",
        "  they differ: outcome at main/summarize#5",
    ],
    "33_langgraph_replay.py": [
        "in production: stopped, 120 of 200 refunded_eur",
        "  physical calls: 8",
        "replayed: stopped as recorded, 120 of 200 refunded_eur",
        "  physical calls: 0; steps from the log: 8",
        "  the first difference: arguments at main/model@1/",
        "  physical calls: 0",
    ],
}


def environment_of(home: Path) -> dict[str, str]:
    """The environment of a user who has set nothing up."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTGUARD_", "OTEL_"))}
    return environment | {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "PYTHONWARNINGS": "error"}


def run_example(path: Path, home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run an example as it stands."""
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        env=environment_of(home) | settings,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_what_it_promises(path: Path, tmp_path: Path, providers: dict[str, str]) -> None:
    ran = run_example(path, tmp_path, **providers)

    assert ran.returncode == 0, ran.stderr
    lines = iter(ran.stdout.splitlines())
    for expected in PRINTED[path.name]:
        assert any(line.startswith(expected) for line in lines), f"{expected!r} not in\n{ran.stdout}"
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_leaves_the_users_state_alone(path: Path, tmp_path: Path, providers: dict[str, str]) -> None:
    run_example(path, tmp_path, **providers)

    assert list(tmp_path.iterdir()) == []


def test_example_writes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ | {"AGENTGUARD_HOME": str(tmp_path / "mine")}
    subprocess.run([sys.executable, str(EXAMPLES[0])], env=environment, check=True, capture_output=True)

    assert (tmp_path / "mine" / "agentguard.db").exists()


@pytest.fixture
def collector() -> Iterator[tuple[str, set[str]]]:
    """An address that takes OTLP over HTTP, and the paths that were posted to."""
    paths: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            paths.add(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()
        thread.join()


def test_opentelemetry_example_sends_to_a_collector(collector: tuple[str, set[str]], tmp_path: Path) -> None:
    endpoint, paths = collector

    ran = run_example(EXAMPLES[3], tmp_path, "--endpoint", endpoint)

    assert ran.returncode == 0, ran.stderr
    assert f"spans and metrics went to {endpoint}" in ran.stdout
    assert paths == {"/v1/traces", "/v1/metrics"}


def test_the_cassette_example_replays_what_is_in_version_control(tmp_path: Path) -> None:
    """A suite of a user's own, whose cassettes lie beside it; no body runs."""
    folder = EXAMPLES_FOLDER / "34_pytest_cassette"
    committed = cassettes_of(folder)

    ran = run_suite(folder, tmp_path, "--agentguard-record=none")

    assert ran.returncode == 0, ran.stdout
    assert "3 passed" in ran.stdout
    assert "called the" not in ran.stderr
    assert cassettes_of(folder) == committed
    assert len(committed) == 3


def test_the_cassette_example_recorded_again_gives_the_same_files(tmp_path: Path) -> None:
    """So that a recording shows in a diff only what the agent does otherwise."""
    original = EXAMPLES_FOLDER / "34_pytest_cassette"
    folder = Path(shutil.copytree(original, tmp_path / "suite", ignore=shutil.ignore_patterns("__pycache__")))

    ran = run_suite(folder, tmp_path, "--agentguard-record=all")

    assert ran.returncode == 0, ran.stdout
    assert "called the model" in ran.stderr
    assert cassettes_of(folder) == cassettes_of(original)


def cassettes_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("cassettes/**/*.jsonl")}


def run_suite(folder: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a folder of tests as its own project, with what they print."""
    return subprocess.run(
        [sys.executable, "-B", "-m", "pytest", *PYTEST, str(folder), *arguments],
        env=environment_of(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
