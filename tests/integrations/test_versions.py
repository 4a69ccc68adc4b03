"""Each framework's extra says which versions it needs, and holds for the oldest of them and for the newest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
#: The tests of each framework that need nothing but its extra.
SMOKE = {
    "langchain": ("langchain/test_agents.py", "langchain/test_usage.py"),
    "mcp": ("mcp/test_middleware.py",),
    "openai-agents": ("openai_agents/test_stops.py", "openai_agents/test_usage.py"),
    "pydantic-ai": ("pydantic_ai/test_stops.py", "pydantic_ai/test_usage.py"),
}
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "trio")


def oldest(extra: str) -> list[str]:
    """The requirements of an extra, each at its lower bound."""
    return [re.sub(r">=.*", "", each) + f"=={each.split('>=')[1]}" for each in EXTRAS[extra]]


@pytest.mark.parametrize("extra", SMOKE)
def test_every_framework_extra_has_a_lower_bound(extra: str) -> None:
    assert all(">=" in requirement for requirement in EXTRAS[extra])


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["oldest", "newest"])
@pytest.mark.parametrize("extra", SMOKE)
def test_a_framework_works_at_the_ends_of_what_its_extra_allows(
    tmp_path: Path, extra: str, version: str
) -> None:
    """In an environment of its own, without the pins of this project."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    wanted = oldest(extra) if version == "oldest" else EXTRAS[extra]
    run(str(python), "-m", "pip", "install", "--quiet", f"{ROOT}[{extra},otel]", *TOOLS, *wanted)
    suites = [str(ROOT / "tests" / "integrations" / suite) for suite in SMOKE[extra]]
    run(str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *suites)


def run(*command: str) -> None:
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
    done = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
