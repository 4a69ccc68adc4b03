"""No file imports itself by way of others, be it for types alone or inside a function.

Nor does a package wait for its own files while it is imported: who imports a file of it holds that file's
lock and waits for the package, so two threads that import both at once would wait for each other, which
Python ends with an error in one of them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import agentguard

ROOT = Path(agentguard.__file__).parent
INTEGRATIONS = ROOT.parent / "integrations"


def sources_in(*packages: Path) -> dict[str, str]:
    """Return the source of each module, by its full name."""
    return {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): (
            path.read_text()
        )
        for package in packages
        for path in package.rglob("*.py")
    }


def nodes_of(tree: ast.AST, *, at_import: bool) -> Iterator[ast.AST]:
    """Yield what stands in a source; with `at_import` only what may run while it is imported."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (at_import and (later or for_types)):
            todo.extend(ast.iter_child_nodes(node))


def imports_of(sources: dict[str, str], *, at_import: bool = False) -> dict[str, set[str]]:
    """Return which of the modules each one imports, wherever in its source or while it is imported."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        named: set[str] = set()
        for node in nodes_of(ast.parse(source), at_import=at_import):
            if isinstance(node, ast.Import):
                named.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= inside if inside <= sources.keys() else inside | {node.module}
        graph[module] = (named & sources.keys()) - {module}
    return graph


def waits_of(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return for which modules each one waits while it is imported: its packages, and what it imports."""
    graph = imports_of(sources, at_import=True)
    for module, waits in graph.items():
        for needed in {module, *waits}:
            parts = needed.split(".")
            waits |= {".".join(parts[:length]) for length in range(1, len(parts))} & sources.keys() - {module}
    return graph


def check(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of files, each imported by the next: {' -> '.join(error.args[1])}")


def test_no_file_of_the_package_imports_itself_by_way_of_others() -> None:
    sources = sources_in(ROOT)
    assert len(sources) > 300
    check(imports_of(sources))


def test_no_package_waits_for_its_own_files() -> None:
    graph = waits_of(sources_in(ROOT))
    # Only files of ours import these, and are begun when their package is there: no thread has them before it.
    for first in ("agentguard._exports", "agentguard._loading"):
        graph[first] -= {"agentguard"}
    check(graph)


def test_files_of_an_integration_are_imported_by_way_of_its_package() -> None:
    """Its package waits for them, so nobody else may have one of them before the package."""
    packages = [path for path in INTEGRATIONS.iterdir() if (path / "__init__.py").exists()]
    sources = sources_in(ROOT, *packages)
    assert len(packages) >= 10
    for module, imported in imports_of(sources).items():
        home = module.partition(".")[0]
        others = {name for name in imported if "." in name and name.startswith("agentguard_")}
        assert not {name for name in others if name.partition(".")[0] != home}, module


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
        check(imports_of(sources))
    check(imports_of(sources | {"p.c": "from elsewhere import Name"}))


@pytest.mark.parametrize(
    "front", ["from p.b import Name", "import p.b", "try:\n    from p import b\nfinally:\n    pass"]
)
def test_a_package_that_waits_for_its_own_files_is_found(front: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="p -> "):
        check(waits_of({"p": front, "p.b": ""}))
    with pytest.raises(pytest.fail.Exception, match="p -> "):
        check(waits_of({"p": "from q import Name", "q": "import p.c", "p.c": ""}))
    check(waits_of({"p": "def late():\n    from p import b", "p.b": "import p.c", "p.c": ""}))
