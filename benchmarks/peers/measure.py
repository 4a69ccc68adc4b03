"""What one package does: `python measure.py ADAPTER [case CASE]` in its own environment; says what it found.

Nothing is imported here, nor by the modules beside this one, but Python's own library.  An adapter is of one
of three kinds, by what it has:

`session(limit, cost)`                  a budget: `call(session, body)`, `acall(session, body)`
`drive(limit, body, calls, at_once)`    a framework's own agent under a limit on calls
`engine(folder, body)`                  an engine whose steps are on disk

Each names its package (`REQUIRES`), may name what ends its runs (`STOPS`), and may answer a question in words
(`SAYS`), where its package promises nothing that could be measured.
"""

import importlib.util
import sys
from importlib.metadata import version

import durable
import kills
import limits
import processes


def main(path, part="case", *given):
    adapter = loaded(path)
    if part == "case":
        processes.say(found(adapter, path, given))
    elif part == "crash":
        durable.crash(adapter, *given)
    else:
        kills.victim(adapter, part, *given)


def loaded(path):
    spec = importlib.util.spec_from_file_location("adapter", path)
    adapter = sys.modules["adapter"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    return adapter


def found(adapter, path, wanted):
    kind = durable if hasattr(adapter, "engine") else limits
    cases = kind.cases(adapter, path) | kills.cases(adapter, path)
    says = getattr(adapter, "SAYS", {})
    package = adapter.REQUIRES.partition("==")[0]
    answers = {
        name: says[name] if name in says else _tried(case)
        for name, case in cases.items()
        if name in (wanted or cases)
    }
    return {"version": version("agentguard" if package == "." else package), **answers}


def _tried(case):
    try:
        return case()
    except BaseException as error:  # noqa: BLE001 - what a package does with this is a finding
        return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
