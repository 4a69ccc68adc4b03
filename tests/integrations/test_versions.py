"""Each framework's extra says which versions it needs."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
FRAMEWORKS = ("langchain", "mcp", "openai-agents", "pydantic-ai")


def test_every_framework_extra_has_a_lower_bound() -> None:
    for extra in FRAMEWORKS:
        assert all(">=" in requirement for requirement in EXTRAS[extra]), extra
