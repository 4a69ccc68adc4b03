"""The reference names everything that is public, and the pages point at what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import agentguard
from agentguard.steps.options import OPTION_NAMES

DOCS = Path(__file__).parents[2] / "docs"
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def reference() -> str:
    return (DOCS / "reference.md").read_text()


@pytest.mark.parametrize("name", agentguard.__all__)
def test_every_public_name_is_in_the_reference(name: str, reference: str) -> None:
    assert re.search(rf"`{name}\b", reference)


@pytest.mark.parametrize("name", sorted(OPTION_NAMES))
def test_every_option_of_a_step_is_in_the_reference(name: str, reference: str) -> None:
    assert f"| `{name}` |" in reference


def test_every_command_and_exit_code_is_in_the_reference(reference: str) -> None:
    pytest.importorskip("typer")
    from agentguard.cli import exit_codes
    from agentguard.cli.app import app, register

    register()

    names = [str(command.name or command.callback.__name__) for command in app.registered_commands]  # type: ignore[union-attr]
    assert "kill" in names
    assert "prune" in names
    assert [name for name in names if f"`agentguard {name}" not in reference] == []
    assert [code for code in exit_codes.MEANING if f"| {code} |" not in reference] == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" in target or target.startswith("../console/"):  # pictures, which the browser tests make
            continue
        path, _, anchor = target.partition("#")
        there = page if not path else page.parent / path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            slugs = [
                re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
            ]
            assert anchor in slugs, target


def test_the_page_on_integrations_of_ones_own_uses_public_names_alone() -> None:
    page = (DOCS / "integrations" / "write-your-own.md").read_text()
    modules = re.findall(r"^(?:from|import) (agentguard[\w.]*)", page, re.MULTILINE)
    assert "agentguard" in modules
    assert [
        m
        for m in modules
        if not re.fullmatch(r"agentguard(\.protocols|\.fragments|\.values|\.cost\.[a-z]+)?", m)
    ] == []
    names = re.findall(r"^from agentguard import (.+)$", page, re.MULTILINE)
    assert {name.strip() for line in names for name in line.split(",")} <= set(agentguard.__all__)
