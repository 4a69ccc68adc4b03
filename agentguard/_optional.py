"""What to say when an optional package is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from agentguard.errors import AgentGuardError


class MissingExtraError(AgentGuardError, ImportError):
    """A feature needs a package that is not installed."""


def require(module: str, *, extra: str, feature: str) -> ModuleType:
    """Import `module`, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{feature} needs the package {module!r}: pip install 'agentguard[{extra}]'"
        ) from error
