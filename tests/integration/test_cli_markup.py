"""What strangers wrote is shown as they wrote it: rich's markup in it is no markup."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path

import pytest

pytest.importorskip("typer")

from agentguard import Budget, BudgetExceededError, Guard, KillSwitchTriggeredError, Usage
from agentguard.cli import main
from agentguard.killswitch.page import PageKillSwitch
from tests.terminal import on_a_terminal, without_styles

#: A style, a link, an end of nothing, an emoji: each alone makes rich fail, hide it, or draw something else.
MARKUP = "[red]x[/red] [link=https://evil.example]y[/link] [/] :boom: [@click=quit]z"


def name(number: int) -> str:
    return f"{number}{MARKUP}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ended, refused and killed runs with markup wherever a stranger can put it, and one that is live."""
    folder = tmp_path_factory.mktemp("markup")
    with (
        pytest.MonkeyPatch.context() as patch,
        Guard.open(
            f"sqlite:///{folder}/agentguard.db", kill_switch=PageKillSwitch(folder), telemetry=False
        ) as guard,
    ):
        patch.setenv("COLUMNS", "400")
        with guard.run(name(1), run_id="first", metadata={"who": MARKUP}, inputs=MARKUP) as run:
            run.call(name(2), lambda text: text, MARKUP, usage=Usage(usd="0.01"))
            with suppress(ValueError):
                run.call("fails", fail)
        with (
            suppress(BudgetExceededError),
            guard.run(name(1), run_id="second", budget=Budget(steps=1)) as run,
        ):
            run.call(name(2), lambda text: text, f"other {MARKUP}", usage=Usage(usd="0.02"))
            run.call(name(3), int)
        with suppress(KillSwitchTriggeredError), guard.run("third", run_id="third") as run:
            run.kill(MARKUP, actor=MARKUP)
        guard.set_tenant_budget(MARKUP, Budget(usd=5))
        elsewhere = copy_context()  # so that it is not the current run of the tests
        live = elsewhere.run(guard.start, name(1), run_id="live", tenant=MARKUP)
        elsewhere.run(live.call, name(2), int, usage=Usage(usd="0.01"))
        yield folder
        elsewhere.run(live.close)


def fail() -> None:
    raise ValueError(MARKUP)


SHOWS = {
    "runs": ["runs"],
    "top": ["top", "--once"],
    "show": ["show", "first", "--payloads"],
    "a refused step": ["show", "second"],
    "a kill": ["show", "third"],
    "control": ["show", "control"],
    "summary": ["summary", "first"],
    "tail": ["tail", "first"],
    "costs by name": ["costs", "--by", "name"],
    "costs by step": ["costs", "--by", "step"],
    "tenants": ["tenants"],
    "diff": ["diff", "first", "second"],
}


@pytest.mark.parametrize("command", SHOWS.values(), ids=SHOWS)
def test_markup_of_a_stranger_is_printed_as_it_is(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command, "--home", str(home)])
    said = capsys.readouterr()
    assert MARKUP in said.out
    assert "Traceback" not in said.err


@pytest.mark.parametrize("shown", ["runs", "top", "show", "a kill", "summary", "costs by step"])
def test_markup_of_a_stranger_is_no_style_on_a_terminal(shown: str, home: Path) -> None:
    command = SHOWS[shown]
    words = [sys.executable, "-m", "agentguard.cli", *command, "--home", str(home)]
    seen = on_a_terminal(words, os.environ, columns=400)
    assert "\x1b]8" not in seen, "a link"
    plain = re.sub(r"\s+", " ", without_styles(seen))
    assert "[red]x[/red] [link=https://evil.example]y[/link] [/] :boom:" in plain


@pytest.mark.parametrize(
    "command",
    [["kill", MARKUP, "--reason", "x"], ["show", MARKUP], ["pause", MARKUP], ["costs", "--by", MARKUP]],
)
def test_a_complaint_names_what_was_typed_as_it_was(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--home", str(home)]) not in (0, 1)
    said = capsys.readouterr()
    assert "[red]x[/red]" in re.sub(r"[\s│]+", " ", said.err)
