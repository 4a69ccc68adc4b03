"""`agentguard serve` in a process of its own, beside workers in theirs; and the commands for its tokens."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import wait_until

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("uvicorn")
pytest.importorskip("typer")

from agentguard import Guard
from agentguard.console.tokens import Tokens
from tests.consoles import Served, line, serving


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
    assert main(["token", "revoke", "ann", *home]) == 0
    assert main(["token", "revoke", "ann", *home]) == 1
    assert main(["token", "add", "bob", "--role", "king", *home]) == 2
    assert Tokens(tmp_path / "console-tokens.json").check(secret) is None
