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
ADAPTERS = {path.stem: path for path in sorted((HERE / "adapters").glob("*.py"))}
#: What `measure.py` puts before what it found.
MARK = "found: "
#: The answers of `limits.py` and `kills.py`, and those of `durable.py` and `kills.py`.
KILLS = ("kill to check", "kill to body")
LIMITS = (
    "one after another",
    "64 threads",
    "64 tasks",
    "bad limits taken",
    "bad costs taken",
    "calls that raise",
    "stop swallowed",
    *KILLS,
    "µs a call",
)
DURABLE = (
    "after each step",
    "µs a step",
    "µs a bare commit with fsync",
    "bytes a step",
    "replay of 5 steps: bodies run",
    "kill -9 in step 3 of 5: bodies run",
    *KILLS,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", action="append", metavar="NAME", default=[])
    parser.add_argument("--json", type=Path, metavar="PATH")
    options = parser.parse_args()
    if strange := set(options.only) - set(ADAPTERS):
        parser.error(f"no adapter {', '.join(sorted(strange))}; there are {', '.join(ADAPTERS)}")
    found = {}
    for name in options.only or ADAPTERS:
        print(f"measuring {name}", file=sys.stderr)
        found[name] = measured(ADAPTERS[name])
    for rows in (LIMITS, DURABLE):
        print(f"{table(found, rows)}\n")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def measured(adapter: Path, *, case: str | None = None) -> dict[str, Any]:
    """Return what one package does, in all cases or in one, or why it could not be measured."""
    try:
        python = environment(adapter)
        command = [str(python), str(HERE / "measure.py"), str(adapter), *(["case", case] if case else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=1800, check=True)  # noqa: S603
    except subprocess.SubprocessError as error:
        return {"error": f"could not be had or measured: {error}"}
    marked = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    found: dict[str, Any] = json.loads(marked[-1].removeprefix(MARK))
    return found


def environment(adapter: Path) -> Path:
    """Return the Python of an adapter's environment, made if it is not there."""
    requires = next(
        line.split('"')[1] for line in adapter.read_text().splitlines() if line.startswith("REQUIRES")
    )
    if requires == ".":
        return Path(sys.executable)
    folder = ENVIRONMENTS / requires.replace(" ", "+")
    python = folder / "bin" / "python"
    if not (folder / ".made").exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requires.split()], check=True)  # noqa: S603
        (folder / ".made").touch()
    return python


def table(found: dict[str, dict[str, Any]], rows: tuple[str, ...]) -> str:
    """Return what was found as a Markdown table, a row a package."""
    lines = ["| package | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for name, facts in found.items():
        if "error" in facts:
            lines.append(f"| {name} | {facts['error']} |")
        elif set(rows) <= facts.keys():
            cells = [f"{name} {facts['version']}", *(_cell(facts[row]) for row in rows)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(fact: Any) -> str:
    return (", ".join(fact) or "none") if isinstance(fact, list) else str(fact)


if __name__ == "__main__":
    main()
