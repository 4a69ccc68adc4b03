"""Run the frameworks' own suites with the guard's hooks installed, and compare what fails with and without.

    python tests/outside/suites.py openai-agents mcp langchain langgraph-prebuilt pydantic-ai

Each source distribution of the installed version comes from PyPI.  Its tests run twice in the environment of this
interpreter: bare, and with `tests/outside/hooks.py` loaded as a pytest plugin.  The exit code is 1 where more fails
with the guard than without.  It needs what the suites need besides; see README.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Suite(NamedTuple):
    """Where a distribution keeps its tests, and what is left out because it needs a network or a key."""

    package: str
    tests: str
    options: tuple[str, ...] = ()


SUITES = {
    "langchain": Suite("langchain", "tests/unit_tests/agents"),
    "langgraph-prebuilt": Suite("langgraph-prebuilt", "tests"),
    "mcp": Suite("mcp", "tests", ("-p", "no:asyncio")),  # its async tests are anyio's
    # A test of its sandbox replaces `os.stat` in a way that ends pytest itself.
    "openai-agents": Suite("openai-agents", "tests", ("--ignore", "tests/sandbox")),
    "pydantic-ai": Suite("pydantic-ai-slim", "tests"),
}


def fetch(package: str, to: Path) -> Path:
    """Return the folder of a package's source distribution, of the version that is installed."""
    version = importlib.metadata.version(package)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        + ["--no-build-isolation", "--dest", str(to), f"{package}=={version}"],
        check=True,
    )
    [archive] = to.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(to, filter="data")
    [folder] = [path for path in to.iterdir() if path.is_dir()]
    return folder


def failures(suite: Suite, folder: Path, *, guarded: bool) -> set[str]:
    """Return the tests of a suite that do not pass."""
    report = folder / f"report-{guarded}.json"
    env = {**os.environ, "PYTHONPATH": str(HERE), "AGENTGUARD_OUTSIDE_REPORT": str(report)}
    env["AGENTGUARD_OUTSIDE_GUARDED"] = str(int(guarded))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "hooks", "-p", "no:agentguard"]
    command += ["--continue-on-collection-errors", "--timeout", "120", suite.tests]
    subprocess.run([*command, *suite.options], cwd=folder, env=env, check=False)
    return set(json.loads(report.read_text()))


def compare(name: str) -> bool:
    """Run one suite both ways and print the difference; False where the guard makes more fail."""
    suite = SUITES[name]
    with tempfile.TemporaryDirectory() as place:
        folder = fetch(suite.package, Path(place))
        if not (folder / suite.tests).exists():
            print(f"{name}: its source distribution has no {suite.tests}")
            return True
        bare = failures(suite, folder, guarded=False)
        guarded = failures(suite, folder, guarded=True)
    print(f"{name}: {len(bare)} fail without the guard, {len(guarded)} with it")
    for test in sorted(guarded - bare):
        print(f"  only with the guard: {test}")
    for test in sorted(bare - guarded):
        print(f"  only without the guard: {test}")
    return guarded <= bare


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=sorted(SUITES))
    found = [compare(name) for name in parser.parse_args().names]
    sys.exit(not all(found))
