"""`agentguard serve` in a process of its own, beside workers in theirs; and the commands for its tokens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kit import wait_until

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("uvicorn")
pytest.importorskip("typer")

from agentguard import Guard
from agentguard.console.tokens import Tokens
from tests.consoles import Served, line, serving
from tests.servers import free_port

if TYPE_CHECKING:
    import httpx


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


def test_a_kill_from_the_console_stops_the_runs_of_other_processes_and_says_so(served: Served) -> None:
    workers = [
        served.agent("spend", "wild", "acme"),
        served.agent("spend", "wild", "acme"),
        served.agent("spend", "tame", "other"),
    ]
    wild = {line(process) for process in workers[:2]}
    tame = line(workers[2])
    with served.client() as client:
        question = client.get("/kill?scope=tenant&target=acme").text
        assert "stops <b>2</b> live runs" in question
        order = {"scope": "tenant", "target": "acme", "reason": "burns money", "confirm": "kill acme"}
        answer = client.post("/api/kill", json=order).json()
        assert set(answer["runs"]) == wild
        generation = answer["generation"]
        wait_until(lambda: client.get(f"/api/kills/{generation}").json()["complete"], 60)
        hit = client.get(f"/api/kills/{generation}").json()
        assert set(hit["runs"].values()) == {"KILLED"}
        assert (hit["live"], hit["late_pids"]) == (hit["acknowledged"], [])
        assert hit["actor"] == "console:on-call"
        assert client.get(f"/api/runs/{tame}").json()["state"] == "RUNNING"
    assert [line(process) for process in workers[:2]] == ["stopped: burns money"] * 2


def test_a_step_of_another_process_runs_once_it_was_approved_and_only_one_answer_counts(
    served: Served,
) -> None:
    worker = served.agent("ask", "pays", "acme", "500")
    run_id = line(worker)
    with served.client() as client:
        wait_until(lambda: client.get("/api/now").json()["approvals"], 60)
        [asked] = client.get("/api/now").json()["approvals"]
        assert asked["arguments"] == [["500"], {}]
        path, key = f"/api/runs/{run_id}/decide", asked["key"]
        answers = [
            client.post(path, json={"key": key, "decision": decision}).status_code
            for decision in ("approve", "deny")
        ]
        assert answers == [200, 409]
    assert line(worker) == "paid 500"


def test_an_open_page_is_told_what_a_run_spends_until_its_token_is_revoked(
    served: Served, tmp_path: Path
) -> None:
    line(served.agent("spend", "spends", "acme"))
    seen: set[str] = set()
    tokens = Tokens(tmp_path / "console-tokens.json")
    with served.client() as client, client.stream("GET", "/live") as stream:
        for text in stream.iter_lines():  # it ends, or the test does not
            seen |= set(re.findall(r"\$\d+\.\d+", text))
            if len(seen) > 5 and tokens.working():
                tokens.revoke("on-call")
    with served.client() as client:
        assert client.get("/live").status_code == 401


class Stream:
    """An open page: it reads what it is told, breaks off, and comes back as a browser does."""

    def __init__(self, client: httpx.Client, path: str) -> None:
        self._client = client
        self._path = path
        self._last = ""
        self.ids: list[int] = []

    def messages(self) -> Iterator[dict[str, str]]:
        """Yield messages of one connection."""
        headers = {"last-event-id": self._last} if self._last else {}
        message: dict[str, str] = {}
        with self._client.stream("GET", self._path, headers=headers) as answer:
            for text in answer.iter_lines():
                name, _, value = text.partition(": ")
                if text and name:
                    message[name] = value
                elif "data" in message:
                    if "id" in message:
                        self._last = message["id"]
                        self.ids.append(int(self._last))
                    yield message
                    message = {}


def test_no_event_of_a_run_is_missed_or_told_twice_by_a_page_whose_connection_breaks(served: Served) -> None:
    agent = served.agent("spend", "spends", "acme", "0.001")
    run_id = line(agent)
    with served.client() as client:
        page = Stream(client, f"/live/{run_id}")
        for connection in range(5):
            wanted = len(page.ids) + 7 * connection + 1
            for _ in page.messages():
                if len(page.ids) >= wanted:
                    break  # in the middle of what it is told
        order = {"scope": "run", "target": run_id, "reason": "enough", "confirm": f"kill {run_id[-6:]}"}
        assert client.post("/api/kill", json=order).status_code == 200
        assert line(agent) == "stopped: enough"
        last = client.get(f"/api/runs/{run_id}").json()["head"]["seq"]
        for wanted in (last - 1, last):
            for _ in page.messages():
                if page.ids[-1] >= wanted:
                    break
    assert page.ids == list(range(1, last + 1))


def test_an_overview_that_was_away_is_told_the_whole_present_when_it_comes_back(served: Served) -> None:
    line(served.agent("spend", "spends", "acme"))
    with served.client() as client:
        page = Stream(client, "/live")
        before = json.loads(next(page.messages())["data"])
        assert "pays" not in before["live"]
        line(served.agent("ask", "pays", "acme", "500"))
        client.post(
            "/api/kill", json={"scope": "tenant", "target": "x", "reason": "away", "confirm": "kill x"}
        )
        wait_until(lambda: client.get("/api/now").json()["approvals"], 60)
        after = json.loads(next(page.messages())["data"])
    assert "pays" in after["live"]
    assert "away" in after["live"]
    assert "500" in after["waiting"]
    steps = [
        re.findall(r'>spends</a>.*?"Steps" class="number">(\d+)', text["live"], re.DOTALL)
        for text in (before, after)
    ]
    assert int(steps[0][0]) <= int(steps[1][0])


def test_it_listens_to_no_other_host_without_a_token(tmp_path: Path) -> None:
    with Guard.open(f"sqlite:///{tmp_path / 'agentguard.db'}", telemetry=False) as guard, guard.run("a"):
        pass
    command = [sys.executable, "-m", "agentguard.cli", "serve", "--home", str(tmp_path), "--port", "0"]
    for host in ("0.0.0.0", "::", "example.org"):
        done = subprocess.run(
            [*command, "--host", host], check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert "make a token first" in " ".join(done.stderr.split())


def test_as_json_it_tells_its_token_and_logs_an_object_a_line(tmp_path: Path) -> None:
    with Guard.open(f"sqlite:///{tmp_path / 'agentguard.db'}", telemetry=False) as guard, guard.run("a"):
        pass
    command = [sys.executable, "-m", "agentguard.cli", "serve", "--json", "--home", str(tmp_path), "--port"]
    port = free_port()
    with subprocess.Popen(
        [*command, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        token = json.loads(line(process))["token"]
        assert process.stderr is not None
        logged = map(json.loads, process.stderr)
        assert any(f"running on http://127.0.0.1:{port} " in each["message"] for each in logged)
        with Served(f"http://127.0.0.1:{port}", token, subprocess.Popen).client() as client:
            assert client.get("/api/now").status_code == 200
        process.terminate()
        assert {each["level"] for each in logged} == {"INFO"}
        assert process.communicate()[0] == ""
    assert process.returncode == 0


def test_tokens_are_made_listed_and_revoked_by_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from agentguard.cli import main

    home = ["--home", str(tmp_path)]
    assert main(["token", "add", "ann", "--role", "operator", "--tenant", "acme", *home]) == 0
    secret = capsys.readouterr().out.strip()
    token = Tokens(tmp_path / "console-tokens.json").check(secret)
    assert token is not None
    assert (token.name, token.role, token.tenant) == ("ann", "operator", "acme")
    assert main(["token", "list", "--json", *home]) == 0
    assert secret not in capsys.readouterr().out
    assert main(["token", "add", "cid", "--json", *home]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["name"], Tokens(tmp_path / "console-tokens.json").check(made["token"]).name) == (
        "cid",
        "cid",
    )
    assert main(["token", "revoke", "cid", "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "cid", "works": False}
    assert main(["token", "revoke", "ann", *home]) == 0
    assert main(["token", "revoke", "ann", *home]) == 1
    assert main(["token", "add", "bob", "--role", "king", *home]) == 2
    assert Tokens(tmp_path / "console-tokens.json").check(secret) is None
