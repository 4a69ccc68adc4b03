"""Each integration works with the oldest versions that its extra allows, and with the newest there are."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
#: The tests of each extra; the newest are asked of the package index, so that a release shows here first.
TESTS = {
    "langchain": "tests/integrations/langchain",
    "mcp": "tests/integrations/mcp",
    "openai-agents": "tests/integrations/openai_agents",
    "pydantic-ai": "tests/integrations/pydantic_ai",
}


def oldest(extra: str) -> list[str]:
    """The lower bounds of an extra, as pins."""
    return [requirement.replace(">=", "==") for requirement in EXTRAS[extra]]


def test_every_framework_extra_has_a_lower_bound() -> None:
    for extra in TESTS:
        assert all(">=" in requirement for requirement in EXTRAS[extra]), extra


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("extra", TESTS)
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_an_integration_passes_its_tests(extra: str, which: str, tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv makes the environments, and is not here")
    python = tmp_path / "venv" / "bin" / "python"
    versions = oldest(extra) if which == "oldest" else [r.split(">=")[0] for r in EXTRAS[extra]]
    # Group `tests` names packages of newer versions; pytest and what the suite imports are enough.
    wanted = [f"{ROOT}[{extra},testing,prices]", "pytest-timeout", "pytest-xdist", "trio", *versions]
    if extra == "langchain":
        wanted.append("langgraph-checkpoint-sqlite")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "venv"], check=True)
    resolution = ["--upgrade"] if which == "newest" else []
    subprocess.run([uv, "pip", "install", "-q", "--python", python, *resolution, *wanted], check=True)
    found = subprocess.run(
        [python, "-m", "pytest", "-q", "-x", "-W", "default", TESTS[extra]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
