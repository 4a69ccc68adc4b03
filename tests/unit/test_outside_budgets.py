"""Budgets that are set outside the code: which applies to a run, where it is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentguard import Budget, Guard, config
from agentguard.budget.rules import budget_rules, parse_budget

TABLE = """
"*" = { usd = "5.00", steps = 500 }
"triage" = { usd = 0.50, calls = { web_fetch = 3 } }
"nightly-*" = { usd = 20, seconds = 3600 }
"nightly-report*" = { usd = 30 }
"tenant:trial-*" = { usd = "0.10" }
"tenant:acme/nightly-*" = { usd = 99 }
"""


@pytest.fixture
def folder(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, under one that has no settings."""
    here = tmp_path / "project" / "src"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.delenv("AGENTGUARD_BUDGET", raising=False)
    return here


def budget_of(name: str, tenant: str = "default", **options: Any) -> Budget:
    with Guard.in_memory(telemetry=False, **options) as guard, guard.run(name, tenant=tenant) as run:
        pass
    return run.summary().budget


@pytest.mark.parametrize(
    ("name", "tenant", "usd"),
    [
        ("ask", "default", "5"),
        ("triage", "default", "0.5"),
        ("triage", "trial-7", "0.5"),
        ("ask", "trial-7", "0.1"),
        ("nightly-1", "default", "20"),
        ("nightly-report-1", "default", "30"),
        ("nightly-1", "acme", "99"),
        ("Triage", "default", "5"),
    ],
)
def test_the_most_special_key_applies(folder: Path, name: str, tenant: str, usd: str) -> None:
    (folder / "agentguard.toml").write_text(f"[budgets]\n{TABLE}")

    assert str(budget_of(name, tenant).usd) == usd


@pytest.mark.parametrize("place", ["agentguard.toml", "pyproject.toml", "../pyproject.toml", "home"])
def test_the_table_is_read_where_it_may_be(folder: Path, home: Path, place: str) -> None:
    path = home / "agentguard.toml" if place == "home" else folder / place
    path.parent.mkdir(exist_ok=True)
    header = "[tool.agentguard.budgets]" if "pyproject" in place else "[budgets]"
    path.write_text(f"{header}\n{TABLE}")

    assert budget_of("triage") == Budget(usd="0.50", calls={"web_fetch": 3})


def test_the_state_directory_goes_before_the_current_one_and_the_nearest_before_the_others(
    folder: Path, home: Path
) -> None:
    (folder / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    (folder.parent / "pyproject.toml").write_text('[tool.agentguard.budgets]\n"*" = { usd = 3 }\n')
    assert str(budget_of("ask").usd) == "3"
    (folder / "agentguard.toml").write_text('[budgets]\n"*" = { usd = 2 }\n')
    assert str(budget_of("ask").usd) == "2"
    home.mkdir(exist_ok=True)
    (home / "agentguard.toml").write_text('[budgets]\n"*" = { usd = 1 }\n')
    assert str(budget_of("ask").usd) == "1"


def test_the_code_goes_before_the_environment_and_that_before_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "agentguard.toml").write_text(f"[budgets]\n{TABLE}")
    monkeypatch.setenv("AGENTGUARD_BUDGET", "usd=7, steps=9")

    assert budget_of("triage") == Budget(usd=7, steps=9)
    assert budget_of("triage", default_budget=Budget(usd=8)) == Budget(usd=8)
    with Guard.in_memory(telemetry=False) as guard, guard.run("triage", budget=Budget(usd=6)) as run:
        with guard.run("triage") as inner:
            pass
    assert run.summary().budget == Budget(usd=6)
    assert inner.summary().budget == Budget()  # it is charged to the run around it


def test_without_any_a_run_has_no_limits(folder: Path) -> None:
    assert budget_of("ask").unlimited


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("usd=5", Budget(usd=5)),
        (" usd = 5.00 , tokens=50000,seconds=1.5", Budget(usd=5, tokens=50_000, seconds=1.5)),
        ("calls.web_fetch=3,calls.kind:llm=20", Budget(calls={"web_fetch": 3, "kind:llm": 20})),
        ("usd=1,enforce=false,warn_at=0.5", Budget(usd=1, enforce=False, warn_at=0.5)),
        (json.dumps({"usd": "0.1", "emails": 2}), Budget(usd="0.1", emails=2)),
    ],
)
def test_a_budget_as_text(text: str, budget: Budget) -> None:
    assert parse_budget(text, "AGENTGUARD_BUDGET") == budget


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_usd=5", "did you mean 'usd'"),
        ("token=5", "did you mean 'tokens'"),
        ("uds=5", "did you mean 'usd'"),
        ("usdd=5", "did you mean 'usd'"),
        ("stpes=5", "did you mean 'steps'"),
        ("tokesn=5", "did you mean 'tokens'"),
        ("usd=1,clals.search=5", "'clals.search'"),
        ("usd=lots", "usd is not a number"),
        ("usd=-1", "must not be negative"),
        ("steps=many", "steps must be an int"),
        ("5", "'5' is no limit; write name=value"),
        ("usd=5,,", "'' is no limit"),
        ("{", "Expecting property name"),
        ("[1]", "is no limit"),
        ("warn_at=0.5", "limits nothing"),
        ("usd=1, steps=2, usd=3", "usd is given twice"),
        ("calls.a=1,calls.a=2", "a is given twice"),
        ('{"usd": 1, "calls": {"a": 1, "a": 2}}', "a is given twice"),
    ],
)
def test_a_budget_that_cannot_be_right_is_refused_and_the_variable_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("AGENTGUARD_BUDGET", text)

    with pytest.raises(ValueError, match="AGENTGUARD_BUDGET: ") as refused:
        budget_of("ask")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[budgetz]\n", "there is no setting 'budgetz'; did you mean 'budgets'?"),
        ("[colours]\n", "there is no setting 'colours'; known is budgets"),
        (
            '[budgets]\n"*" = { max_usd = 5 }\n',
            "'*': Budget() got an unexpected field 'max_usd'; did you mean 'usd'?",
        ),
        ('[budgets]\n"*" = 5\n', "'*' must be a table of limits"),
        ('[budgets]\n"tenants:acme" = { usd = 5 }\n', "no key 'tenants:acme'; did you mean 'tenant:acme'?"),
        ('[budgets]\n"team:acme" = { usd = 5 }\n', "no key 'team:acme'; did you mean 'tenant:acme'?"),
        ('[budgets]\n"tenant/acme" = { usd = 5 }\n', "runs of that name are 'tenant[/]acme'"),
        ('[budgets]\n"thread:7" = { usd = 5 }\n', "runs of that name are 'thread[:]7'"),
        (
            '[budgets]\n"*" = { uds = 5 }\n',
            "'*': Budget() got an unexpected field 'uds'; did you mean 'usd'?",
        ),
        ('[budgets]\n"tenant:" = { usd = 5 }\n', "'tenant:' names no run and no tenant"),
        ('[budgets]\n"*" = { usd = -5 }\n', "'*': usd must not be negative"),
        ("budgets = 3\n", "budgets must be a table of budgets"),
        ("[budgets\n", ""),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_and_named(folder: Path, settings: str, said: str) -> None:
    path = folder / "agentguard.toml"
    path.write_text(settings)

    with pytest.raises(ValueError, match="agentguard.toml") as refused:
        budget_of("ask")
    assert said in str(refused.value)


def test_a_runs_name_may_hold_the_signs_of_tenants(folder: Path) -> None:
    (folder / "agentguard.toml").write_text(
        '[budgets]\n"team[:]acme" = { usd = 5 }\n"web/search" = { usd = 3 }\n'
    )

    assert [str(budget_of(name).usd) for name in ("team:acme", "web/search")] == ["5", "3"]


def test_other_peoples_projects_are_left_alone(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[project\nno TOML at all")

    assert budget_of("ask").unlimited


def test_rules_name_their_source_and_doctor_shows_what_applies(folder: Path, home: Path) -> None:
    doctor = pytest.importorskip("agentguard.cli.commands.doctor")
    assert "none is set" in doctor._budgets().detail
    (folder / "agentguard.toml").write_text(f"[budgets]\n{TABLE}")

    found = config.outside_budgets()
    assert found.source == str(folder / "agentguard.toml")
    assert [rule.key for rule in found.rules][0] == "tenant:acme/nightly-*"
    shown = doctor._budgets()
    assert (shown.status, found.source in shown.detail) == ("ok", True)
    assert "triage: $0.50, 3 calls of web_fetch" in shown.detail

    (folder / "agentguard.toml").write_text("[budgetz]\n")
    assert doctor._budgets().status == "FAULT"


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="here: budgets must be a table"):
        budget_rules([1], "here")
