"""The SQL of the backends: named queries and numbered migrations, each in a .sql file."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

#: Found while this loads: the first call of `files` loads more, for which no fork would wait later.
_FILES: Final = files("agentguard.stores")


@cache
def queries(backend: str) -> dict[str, str]:
    """The statements in `sql/<backend>.sql` by name."""
    text = _FILES.joinpath("sql", f"{backend}.sql").read_text("utf-8")
    found = {}
    for block in text.split("-- name: ")[1:]:
        name, _, rest = block.partition("\n")
        found[name.strip()] = rest.partition("\n")[2].strip()
    return found


@cache
def migrations(backend: str) -> list[tuple[int, str]]:
    """The scripts in `migrations/<backend>` with their numbers, in order."""
    folder = _FILES.joinpath("migrations", backend)
    scripts = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    return [(int(file.name.partition("_")[0]), file.read_text("utf-8")) for file in scripts]
