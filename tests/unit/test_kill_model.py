"""What a kill is, what an order must say, and what the page's hints prove.  No files, no threads."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentguard import _home
from agentguard._home import default_home
from agentguard.events.model import KILL_CLEARED, KILL_SET, TENANT_BUDGET_SET, Record
from agentguard.killswitch import kill_requests
from agentguard.killswitch.control import LogState
from agentguard.killswitch.index import KillIndex
from agentguard.killswitch.kill_requests import check_request, in_force, kill_data, revive_data
from agentguard.killswitch.layout import HINT_COUNT, PAGE_BYTES, Page, target_of
from agentguard.killswitch.model import Kill, covering, fold


def log(*orders: tuple[str, str, str]) -> list[Record]:
    """Records of (type, scope, target), with the reason telling which it is."""
    return [
        Record(
            seq=seq,
            type=event_type,
            at_ns=seq,
            data={"scope": scope, "target": target, "reason": f"#{seq}", "actor": "ann"},
        )
        for seq, (event_type, scope, target) in enumerate(orders, 1)
    ]


def find(records: list[Record], tenant: str, run_id: str, since: int) -> int | None:
    """The generation of the kill that stops a run, by the fold and by the index alike."""
    index = KillIndex()
    for record in records:
        index.add(record)
    by_fold = covering(fold(records), tenant, run_id, since)
    assert index.kills() == fold(records)
    assert index.find(tenant, run_id, since) == by_fold
    return None if by_fold is None else by_fold.generation


GLOBAL_KILL = (KILL_SET, "global", "")
GLOBAL_REVIVE = (KILL_CLEARED, "global", "")


@pytest.mark.parametrize(
    ("order", "stopped"),
    [
        (GLOBAL_KILL, {("acme", "r1"), ("acme", "r2"), ("other", "r3")}),
        ((KILL_SET, "tenant", "acme"), {("acme", "r1"), ("acme", "r2")}),
        ((KILL_SET, "run", "r1"), {("acme", "r1")}),
        ((KILL_SET, "run", "acme"), set()),
        ((KILL_SET, "tenant", "r1"), set()),
    ],
    ids=["global", "tenant", "run", "run named like a tenant", "tenant named like a run"],
)
def test_a_kill_covers_its_target_and_nothing_else(
    order: tuple[str, str, str], stopped: set[tuple[str, str]]
) -> None:
    runs = {("acme", "r1"), ("acme", "r2"), ("other", "r3")}
    assert {run for run in runs if find(log(order), *run, since=1)} == stopped


def test_an_active_kill_stops_a_run_created_after_it() -> None:
    assert find(log(GLOBAL_KILL), "acme", "r1", since=1) == 1


def test_a_revive_lets_later_runs_start() -> None:
    assert find(log(GLOBAL_KILL, GLOBAL_REVIVE), "acme", "r1", since=2) is None


def test_a_kill_stops_a_run_created_before_it_revived_since_or_not() -> None:
    assert find(log(GLOBAL_KILL, GLOBAL_REVIVE), "acme", "r1", since=0) == 1


def test_a_revive_clears_exactly_its_own_target() -> None:
    records = log(GLOBAL_KILL, (KILL_SET, "tenant", "acme"), (KILL_SET, "run", "r1"), GLOBAL_REVIVE)
    assert [kill.cleared for kill in fold(records)] == [True, False, False]
    assert find(records, "acme", "r1", since=4) == 2
    assert find(records, "other", "r1", since=4) == 3


def test_a_kill_after_a_revive_is_active() -> None:
    records = log(GLOBAL_KILL, GLOBAL_REVIVE, GLOBAL_KILL)
    assert [kill.cleared for kill in fold(records)] == [True, False]
    assert find(records, "acme", "r1", since=3) == 3


def test_the_oldest_kill_that_covers_a_run_is_given() -> None:
    records = log((KILL_SET, "run", "r1"), (KILL_SET, "tenant", "acme"), GLOBAL_KILL)
    assert find(records, "acme", "r1", since=3) == 1


def test_other_records_are_passed_over() -> None:
    budget = Record(seq=1, type=TENANT_BUDGET_SET, at_ns=1, data={"tenant": "acme"})
    assert find([budget], "acme", "r1", since=0) is None


def test_everything_is_stopped_while_a_global_kill_is_active() -> None:
    index = KillIndex()
    seen = []
    for record in log((KILL_SET, "tenant", "acme"), GLOBAL_KILL, GLOBAL_REVIVE):
        index.add(record)
        seen.append(index.everything_stopped)
    assert seen == [False, True, False]


def test_a_kill_gives_the_error_with_its_facts() -> None:
    error = Kill("tenant", "acme", "bad prompt", "ann", 1_000_000_000, 3).error("r1")
    assert error.facts() == {
        "scope": "tenant",
        "reason": "bad prompt",
        "actor": "ann",
        "at": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        "run_id": "r1",
    }


# --- orders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "scope", "target"),
    [({}, "global", ""), ({"tenant": "acme"}, "tenant", "acme"), ({"run": "r1"}, "run", "r1")],
    ids=["global", "tenant", "run"],
)
def test_an_order_says_whom_it_is_meant_for(given: dict[str, str], scope: str, target: str) -> None:
    data = {"scope": scope, "target": target, "reason": "why", "actor": "ann"}
    assert kill_data("why", **given, actor="ann") == (KILL_SET, data)
    assert revive_data("why", **given, actor="ann") == (KILL_CLEARED, data)


@pytest.mark.parametrize("make", [kill_data, revive_data])
@pytest.mark.parametrize("field", ["tenant", "run"])
@pytest.mark.parametrize("value", [None, "", "a\nb", "x" * 201], ids=["None", "", "line", "long"])
def test_a_tenant_or_run_that_is_no_id_never_becomes_a_global_order(
    make: object, field: str, value: str | None
) -> None:
    with pytest.raises(ValueError, match=field):
        make("why", **{field: value})


def test_an_order_is_for_a_tenant_or_a_run_not_both() -> None:
    with pytest.raises(ValueError, match="not both"):
        kill_data("why", tenant="acme", run="r1")


@pytest.mark.parametrize("field", ["reason", "actor"])
def test_reason_and_actor_must_say_something(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        kill_data(**{"reason": "why", field: " \n"})
    with pytest.raises(TypeError, match=field):
        kill_data(**{"reason": "why", field: 3})


def test_control_characters_of_a_reason_are_escaped() -> None:
    _, data = kill_data("a\nb\x1b[2J\u202ec \udcff é", actor="ann\r")
    assert data["reason"] == "a\\nb\\x1b[2J\\u202ec \\udcff é"
    assert data["actor"] == "ann\\r"


def test_the_actor_is_user_and_host_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_requests.getpass, "getuser", lambda: "ann")
    monkeypatch.setattr(kill_requests.platform, "node", lambda: "box")
    assert kill_data("why")[1]["actor"] == "ann@box"


def test_a_user_without_a_name_is_an_actor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def getuser() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(kill_requests.getpass, "getuser", getuser)
    assert kill_data("why")[1]["actor"].startswith(f"uid{os.getuid()}@")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"scope": "all", "reason": "why"},
        {"scope": "global", "target": "acme", "reason": "why"},
        {"scope": "tenant", "target": "", "reason": "why"},
        {"scope": "run", "target": 3, "reason": "why"},
        {"scope": "run", "target": "r1"},
        {"scope": "run", "target": "r1", "reason": "why", "actor": None},
    ],
)
def test_a_kill_that_could_not_be_read_back_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"scope|target|reason"):
        check_request(KILL_SET, data)


def test_in_force_are_the_active_kills_of_the_same_target() -> None:
    kills = fold(log(GLOBAL_KILL, GLOBAL_REVIVE, GLOBAL_KILL, (KILL_SET, "run", "r1")))
    assert [kill.generation for kill in in_force(kills, revive_data("why")[1])] == [3]


# --- hints ---------------------------------------------------------------------------------------


def page() -> Page:
    return Page(bytearray(PAGE_BYTES), Path.cwd().stat())


def test_hints_exclude_kills_of_others_and_no_other() -> None:
    shown = page()
    shown.announce(LogState(1, 100, stopped=False), target_of("tenant", "acme"))
    assert shown.excludes("other", "r1", after=0, size=100)
    assert not shown.excludes("acme", "r1", after=0, size=100)
    assert shown.excludes("acme", "r1", after=1, size=100)
    shown.announce(LogState(2, 200, stopped=False), target_of("run", "r1"))
    assert not shown.excludes("other", "r1", after=1, size=200)
    assert shown.excludes("other", "r2", after=0, size=200)
    shown.announce(LogState(3, 300, stopped=True), target_of("global", ""))
    assert not shown.excludes("other", "r2", after=2, size=300)


def test_a_missing_hint_sends_everyone_to_the_log() -> None:
    shown = page()
    shown.announce(LogState(1, 100, stopped=False), target_of("run", "r1"))
    shown.announce(LogState(2, 200, stopped=False))
    shown.announce(LogState(3, 300, stopped=False), target_of("run", "r1"))
    assert not shown.excludes("acme", "r2", after=1, size=300)
    assert shown.excludes("acme", "r2", after=2, size=300)


def test_an_overfull_page_sends_everyone_to_the_log() -> None:
    shown = page()
    for generation in range(1, HINT_COUNT + 2):
        state = LogState(generation, generation, stopped=False)
        shown.announce(state, target_of("run", "r1"))
    newest = HINT_COUNT + 1
    assert not shown.excludes("acme", "r2", after=0, size=newest)
    assert not shown.excludes("acme", "r2", after=1, size=newest)
    assert shown.excludes("acme", "r2", after=2, size=newest)


def test_a_log_of_another_size_sends_everyone_to_the_log() -> None:
    shown = page()
    shown.announce(LogState(1, 100, stopped=False), target_of("run", "r1"))
    assert not shown.excludes("acme", "r2", after=0, size=101)


# --- home ----------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("AGENTGUARD_HOME", "XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    return monkeypatch


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "/home/ann/.local/state/agentguard"),
        ("linux", {"XDG_STATE_HOME": "/state"}, "/state/agentguard"),
        ("linux", {"XDG_STATE_HOME": "state"}, "/home/ann/.local/state/agentguard"),
        ("darwin", {}, "/home/ann/Library/Application Support/agentguard"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/agentguard"),
        ("linux", {"AGENTGUARD_HOME": "/mine", "XDG_STATE_HOME": "/state"}, "/mine"),
        ("linux", {"AGENTGUARD_HOME": "~/mine"}, "/home/ann/mine"),
        ("linux", {"AGENTGUARD_HOME": ""}, "/home/ann/.local/state/agentguard"),
    ],
)
def test_the_default_home_is_the_platforms_state_directory(
    bare: pytest.MonkeyPatch, platform: str, environment: dict[str, str], expected: str
) -> None:
    bare.setattr(_home.sys, "platform", platform)
    for name, value in environment.items():
        bare.setenv(name, value)
    assert default_home() == Path(expected)
