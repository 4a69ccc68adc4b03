"""Every example in a docstring of agentguard runs, and every public name of it has a docstring."""

from __future__ import annotations

import contextvars
import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import agentguard

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> Iterator[str]:
    """The modules of the package, by name; those of an extra that is missing are left out."""
    for module in pkgutil.walk_packages(agentguard.__path__, "agentguard.", onerror=lambda name: None):
        if not module.name.endswith("__main__"):
            yield module.name


def load(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if "pip install 'agentguard[" in str(error):
            pytest.skip(str(error))
        raise


NAMES = sorted({"agentguard", *modules()})


@pytest.mark.parametrize("name", NAMES)
def test_docstring_examples(name, tmp_path, monkeypatch):
    module = load(name)
    tests = [test for test in doctest.DocTestFinder().find(module, name) if test.examples]
    if not tests:
        return
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    report: list[str] = []
    for test in tests:
        contextvars.copy_context().run(runner.run, test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_the_walk_finds_the_rooms():
    assert {"agentguard.budget.model", "agentguard.steps.flow", "agentguard.stores.sqlite"} <= set(NAMES)


@pytest.mark.parametrize("name", sorted(n for n in agentguard.__all__ if not n.endswith("Error")))
def test_public_names_show_an_example(name):
    """But for the errors, and what is only ever handed out."""
    handed_out = {"Event", "RunStopped", "RunSummary", "Scope", "Step", "VerifyReport", "current_step"}
    exported = getattr(agentguard, name)
    if name not in handed_out:
        assert ">>>" in exported.__doc__
