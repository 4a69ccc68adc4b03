"""Types by name: how a log names one, and how it is found again."""

from __future__ import annotations

import sys
from pathlib import Path


def clean_text(text: str, limit: int = 2000) -> str:
    """Return text that can be encoded: lone surrogates escaped, at most `limit` characters."""
    if len(text) > limit:
        text = text[:limit] + f"… ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def type_name(cls: type) -> str:
    """Return `module.QualifiedName`, plain for builtins.  Never runs code of a metaclass."""
    module, name = (type.__getattribute__(cls, attribute) for attribute in ("__module__", "__qualname__"))
    return clean_text(str(name) if module == "builtins" else f"{module}.{name}")


def home_name(cls: type) -> str:
    """Return `type_name`, where a script's classes have the name that importing the script gives them.

    So that the arguments of a script's run are the same when a replay imports it.
    """
    name = type_name(cls)
    if not name.startswith("__main__."):
        return name
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:  # python -m package.module
        return clean_text(f"{spec.name.removesuffix('.__main__')}{name.removeprefix('__main__')}")
    return clean_text(f"{Path(file).stem}{name.removeprefix('__main__')}") if file else name


def find(name: str) -> object:
    """Return what `type_name` named, in a module that is imported already; None where there is none.

    Nothing is ever imported: a log must not decide what code runs.
    """
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:split]))
        if module is not None and (found := _inside(module, parts[split:])) is not None:
            return found
    return _inside(sys.modules["builtins"], parts)


def _inside(place: object, names: list[str]) -> object:
    for name in names:
        place = getattr(place, name, None)
    return place
