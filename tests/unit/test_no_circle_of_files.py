"""No file imports itself by way of others, be it for types alone or inside a function."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import agentguard

ROOT = Path(agentguard.__file__).parent


def imports_of(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return which of the modules each one imports, wherever in its source."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                named.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= inside if inside <= sources.keys() else inside | {node.module}
        graph[module] = (named & sources.keys()) - {module}
    return graph


def check(sources: dict[str, str]) -> None:
    try:
        TopologicalSorter(imports_of(sources)).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of files, each imported by the next: {' -> '.join(error.args[1])}")


def test_no_file_of_the_package_imports_itself_by_way_of_others() -> None:
    files = {path.relative_to(ROOT.parent).with_suffix(""): path for path in ROOT.rglob("*.py")}
    sources = {
        ".".join(file.parts).removesuffix(".__init__"): path.read_text() for file, path in files.items()
    }
    assert len(sources) > 300
    check(sources)


@pytest.mark.parametrize(
    "back",
    [
        "from a import Name",
        "import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import Name",
        "def late():\n    from a import name",
    ],
)
def test_a_circle_is_found_wherever_its_import_stands(back: str) -> None:
    sources = {"a": "from p import b", "p": "", "p.b": "import p.c", "p.c": back}
    with pytest.raises(pytest.fail.Exception, match="a -> "):
        check(sources)
    check(sources | {"p.c": "from elsewhere import Name"})
