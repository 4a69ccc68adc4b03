"""`make compare`: measure each package in an environment of its own, and print the table.

--only NAME    one adapter; may be given again
--json PATH    where the findings go as JSON
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".peers"
ROWS = (
    "one after another",
    "64 threads",
    "64 tasks",
    "bad limits taken",
    "bad costs taken",
    "calls that raise",
    "stop swallowed",
    "µs a call",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", action="append", metavar="NAME", default=[])
    parser.add_argument("--json", type=Path, metavar="PATH")
    options = parser.parse_args()
    adapters = {path.stem: path for path in sorted((HERE / "adapters").glob("*.py"))}
    if strange := set(options.only) - set(adapters):
        parser.error(f"no adapter {', '.join(sorted(strange))}; there are {', '.join(adapters)}")
    found = {name: measured(adapters[name]) for name in options.only or adapters}
    print(table(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def measured(adapter: Path) -> dict[str, Any]:
    """Return what one package does."""
    python = environment(adapter)
    command = [str(python), str(HERE / "measure.py"), str(adapter)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{adapter.stem} could not be measured:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment(adapter: Path) -> Path:
    """Return the Python of an adapter's environment, made if it is not there."""
    requires = next(
        line.split('"')[1] for line in adapter.read_text().splitlines() if line.startswith("REQUIRES")
    )
    if requires == ".":
        return Path(sys.executable)
    folder = ENVIRONMENTS / requires
    python = folder / "bin" / "python"
    if not (folder / ".made").exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requires]
        subprocess.run(pip, check=True)  # noqa: S603
        (folder / ".made").touch()
    return python


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the findings as a Markdown table, a row a package."""
    lines = ["| package | " + " | ".join(ROWS) + " |", "|---" * (len(ROWS) + 1) + "|"]
    for name, facts in found.items():
        cells = [f"{name} {facts['version']}", *(_cell(facts[row]) for row in ROWS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(fact: Any) -> str:
    if isinstance(fact, dict):
        return f"{fact['calls']}; {fact['what says so']}"
    if isinstance(fact, list):
        return ", ".join(fact) or "none"
    return str(fact)


if __name__ == "__main__":
    main()
