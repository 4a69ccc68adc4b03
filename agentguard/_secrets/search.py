"""Finding out fast that a payload has no secret in it: most have none, and cost no more than this.

A search says "maybe" wherever one of the traces of a shape stands, or the end of a secret name before a
colon or an equals sign.  It never says no where `mask_text` would take something out.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from agentguard._secrets.names import Names
from agentguard._secrets.shapes import SHAPES

#: Returns something true where a payload may hold a secret.
Search = Callable[[bytes], object]

#: Below this, Python's own expressions are faster than the call of another engine.
_SHORT: Final = 200

#: The traces of `SHAPES` that end in a rare character, by what is before it.
_PREFIXES: Final = {
    "_": (
        *("ghp", "gho", "ghu", "ghs", "ghr", "github_pat", "hf", "api_org", "npm", "gsk", "r8", "tgp_v1"),
        *("sk_live", "sk_test", "rk_live", "rk_test", "pk_live", "pk_test", "whsec", "lsv2", "rubygems"),
        *("dckr_pat", "dop_v1", "doo_v1", "dor_v1", "shpat", "shpss", "shpca", "shppa", "lin_api", "figd"),
        *("glsa", "sntrys", "sntryu", "sbp", "pscale"),
    ),
    "-": (
        *("sk", "xai", "pplx", "nvapi", "tvly", "GOCSPX", "xapp", "pypi", "key", "sq0atp", "sq0csp", "PMAK"),
        *(f"gl{kind}" for kind in ("pat", "dt", "rt", "ptt", "soat", "ft", "imt", "cbt", "agent", "oas")),
        *(f"xox{kind}" for kind in "abdeoprs"),
        *("NRAK", "AGE-SECRET-KEY"),
    ),
}
#: The others, each by the rarest of its characters.
_TRACES: Final = {
    "I": (r"(?<=AI)za", r"(?<=A[KSB]I)A"),
    "C": (r"(?<=AC)CA",),
    "J": (r"(?<=eyJ)",),
    "~": (r"(?<=Q~)",),
    "K": (r"(?<=SK)[0-9a-f]{8}",),
    "3": (r"(?<=ATATT3)",),
    "B": (r"(?=earer )", r"(?=EARER )", r"(?:asic|ASIC) [A-Za-z0-9+/]{8}"),
    "b": (r"(?=earer )", r"asic [A-Za-z0-9+/]{8}"),
    "-": (r"----BEGIN ", r"(?<=X-Amz-)S", r"(?<=X-Goog-)S"),
    ".": (r"(?<=[Gsb9p]\.)(?:(?<=SG\.)|(?<=hv[sb]\.)|(?<=ya29\.)|(?<=dp\.)[ps]t\.)",),
    "/": (r"(?<=slack\.com/)", r"(?<=/api/webhooks/)", r"(?<=1/)/0"),
    ":": (r"AA", r"//[^\s/:@\"'<>]*:[^\s/\"'<>]+@"),
    "=": (r"(?<=sig=)",),
}


def search_for(names: Names, *, rule: bool = False) -> Search:
    """Return the fastest search there is here; with a `rule`, which sees everything, one that finds all.

    google-re2 is used where it is installed (the extra `re2`): on long payloads it is several times faster.
    """
    if rule:
        return _everything
    pure, fast = Pure(names), re2_search(names)
    if fast is None:
        return pure
    return lambda payload: (pure if len(payload) < _SHORT else fast)(payload)


def _everything(_: bytes) -> object:
    return True


class Pure:
    """Expressions of Python's, compiled when the first payload is searched: that takes milliseconds."""

    __slots__ = ("_at_colons", "_elsewhere", "_names", "_search")

    def __init__(self, names: Names) -> None:
        self._names = names
        self._search: Search | None = None
        self._at_colons: Search | None = None
        self._elsewhere: Search = _everything

    def __call__(self, payload: bytes) -> object:
        if b"\\" in payload:
            # JSON in JSON has them before its quotes, more at each level; no trace has any.
            payload = payload.translate(None, b"\\")
        if len(payload) < _SHORT:
            if self._search is None:
                self._search = _compiled(traces(self._names).values())
            return self._search(payload)
        if self._at_colons is None:
            found = traces(self._names)
            self._at_colons, self._elsewhere = _compiled([found.pop(":")]), _compiled(found.values())
        # JSON is full of colons: with the others in one expression they take longer.
        return self._at_colons(payload) or self._elsewhere(payload)


def _compiled(found: Iterable[str]) -> Search:
    return re.compile("|".join(found).encode()).search


def traces(names: Names) -> dict[str, str]:
    """Return what stands where a secret may be, as expressions by the one character that each begins with."""
    tails = {pivot: list(found) for pivot, found in _TRACES.items()}
    for pivot, texts in _PREFIXES.items():
        tails.setdefault(pivot, []).append(_behind(texts, pivot, cases=False))
    spelt = _spelt(names)
    if spelt is None:  # names that are not ASCII: any may be one
        tails |= {":": ["(?<=[\"']:)", "(?= )", *tails[":"]], "=": [""], ">": [""]}
        tails["-"].append("-")
    else:
        # What begins with a character comes first: it is passed over at once.
        tails[":"] += [f" {_behind(spelt, ': ')}", _behind(spelt, "[\"']:")]
        tails["="] += [_behind(spelt, "="), _behind(spelt, " =")]
        tails[">"] = [_behind(spelt, ">")]
        tails["-"].append(f"-(?i:[a-z0-9-]*?(?:{_union(spelt)}))[ =]")
    return {pivot: f"{re.escape(pivot)}(?:{'|'.join(found)})" for pivot, found in tails.items()}


def _spelt(names: Names) -> list[str] | None:
    spelt = sorted({text for words in names.words for text in ("".join(words), ".".join(words))})
    return spelt if all(text.isascii() for text in spelt) else None


def _behind(texts: Iterable[str], end: str, *, cases: bool = True) -> str:
    """Return what looks back from `end`: at three characters first, which rules out most texts at once."""
    texts = list(texts)
    depth = min(3, *map(len, texts))
    one = _both if cases else re.escape
    classes = "".join(f"[{''.join(sorted({one(text[at]) for text in texts}))}]" for at in range(-depth, 0))
    by_last: dict[str, list[str]] = {}
    for text in texts:
        by_last.setdefault(text[-1], []).append(text)
    tails = "|".join(
        f"(?<=[{one(last)}]{end})(?:"
        + "|".join(f"(?<={_any_case(text) if cases else re.escape(text)}{end})" for text in found)
        + ")"
        for last, found in by_last.items()
    )
    return f"(?<={classes}{end})(?:{tails})"


def _both(character: str) -> str:
    if character == ".":
        return "_. -"
    return character.lower() + character.upper() if character.isalpha() else re.escape(character)


def _any_case(text: str) -> str:
    return "".join("." if c == "." else f"[{_both(c)}]" if c.isalpha() else re.escape(c) for c in text)


def _union(spelt: Iterable[str]) -> str:
    return "|".join(text.replace(".", "[_. -]") for text in spelt)


# --- google-re2 ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _engine() -> Any:
    try:
        return importlib.import_module("re2")  # not later: rules are made while the module of theirs loads
    except ImportError:
        return None


def re2_search(names: Names) -> Search | None:
    """Return the same search by google-re2, in one pass; None where it is not installed."""
    engine, spelt = _engine(), _spelt(names)
    return None if engine is None or spelt is None else _Re2(engine, spelt)


class _Re2:
    """An expression of google-re2, compiled at its first use."""

    __slots__ = ("_engine", "_search", "_spelt")

    def __init__(self, engine: Any, spelt: list[str]) -> None:
        self._engine, self._spelt = engine, spelt
        self._search: Search | None = None

    def __call__(self, payload: bytes) -> object:
        if self._search is None:
            self._search = self._compiled()
        return self._search(payload)

    def _compiled(self) -> Search:
        options = self._engine.Options()
        options.never_capture = True
        options.encoding = self._engine.Options.Encoding.LATIN1
        union = _union(self._spelt)
        traces = "|".join(trace for shape in SHAPES.values() for trace in shape.traces)
        pattern = rf"""(?i:{union})(?:\\*["']?:| ?[=>])|--(?i:[a-z0-9-]*(?:{union}))[ =]|{traces}"""
        search: Search = self._engine.compile(pattern.encode("latin-1"), options).search
        return search
