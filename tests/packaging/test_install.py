"""Who installs agentguard with an extra into a new environment gets what the README shows."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tests.scale import SCALE

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PINS = ROOT / "tests" / "constraints.txt"
#: The README's program for a package, and what it prints.
SNIPPET = r"<!-- needs {} -->\n```python\n(.*?)```\n\n```text\n(.*?)```"
RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def run(*command: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command far from the checkout, and without what could make it find it."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("AGENTGUARD_", "PYTHON"))}
    environment["AGENTGUARD_HOME"] = str(folder / "home")
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    built = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, folder=folder
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment, which has an index to install from."""
    venv.create(tmp_path / "new", with_pip=True)
    found = tmp_path / "new" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (found, "-m", "pip", "--retries", "0", "--timeout", "15")
    reached = run(*pip, "download", "--no-deps", "--constraint", PINS, "msgspec", folder=tmp_path)
    if reached.returncode != 0:
        pytest.skip(f"no package index can be reached: {reached.stderr.strip().splitlines()[-1]}")
    return found


def test_the_langchain_program_of_the_readme_runs_as_pasted(
    wheel: Path, python: Path, tmp_path: Path
) -> None:
    found = re.search(SNIPPET.format("langchain"), (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    program, shown = found.groups()
    assert "pip install 'agentguard[langchain]'" in (ROOT / "README.md").read_text()

    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    installed = run(*pip, "--constraint", PINS, f"{wheel}[langchain]", folder=tmp_path)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    (tmp_path / "pasted.py").write_text(program)
    done = run(python, "pasted.py", folder=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert RUN_ID.sub("ID", done.stdout) == RUN_ID.sub("ID", shown)
    where = run(python, "-c", "import agentguard_langchain as a; print(a.__file__)", folder=tmp_path)
    assert str(tmp_path / "new") in where.stdout


#: Tests of the checkout itself: its documents, examples and packaging.
OF_THE_CHECKOUT = (
    "packaging",
    "docs",
    "typing",
    "integration/test_docs.py",
    "integration/test_examples.py",
)


@pytest.mark.timeout(3600)
def test_the_wheel_alone_passes_the_suite(wheel: Path, python: Path, tmp_path: Path) -> None:
    """Its tests, copied out of the checkout, against what is installed: nothing was left out of the wheel.

    On less than the whole scale, those of its tests that take a minute.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", PINS)
    tools = project["dependency-groups"]["tests"]
    installed = run(*pip, f"{wheel}[{found[1]}]", *tools, folder=tmp_path)
    assert installed.returncode == 0, installed.stdout + installed.stderr

    alone = tmp_path / "alone"
    shutil.copytree(ROOT / "tests", alone / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", alone / "docs")  # whose verifier is held against exports
    shutil.copy(ROOT / "pyproject.toml", alone)  # for the options of pytest
    for name in OF_THE_CHECKOUT:
        path = alone / "tests" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    part = () if SCALE == 1 else ("tests/unit", "tests/contract")
    options = ("-q", "-n", "2", "--tb=short", "-p", "no:cacheprovider")
    done = run(python, "-m", "pytest", *options, *part, folder=alone)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    where = run(python, "-c", "import agentguard; print(agentguard.__file__)", folder=alone)
    assert str(tmp_path / "new") in where.stdout
