"""What to say when an optional package is missing."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from agentguard._loading import LOADING, load
from agentguard.errors import AgentGuardError


class MissingExtraError(AgentGuardError, ImportError):
    """A feature needs a package that is not installed."""


def require(module: str, *, extra: str, feature: str) -> ModuleType:
    """Import `module`, or say which extra brings it."""
    try:
        return load(module)
    except ImportError as error:
        raise _missing(module, extra, feature) from error


def check(module: str, *, extra: str, feature: str) -> None:
    """Say which extra brings `module`, where it is missing, without importing it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with LOADING:  # what it is part of is imported
            found = importlib.util.find_spec(module) is not None
    except ValueError:  # forbidden, as tests do
        found = False
    if not found:
        raise _missing(module, extra, feature)


def _missing(module: str, extra: str, feature: str) -> MissingExtraError:
    return MissingExtraError(f"{feature} needs the package {module!r}: pip install 'agentguard[{extra}]'")
