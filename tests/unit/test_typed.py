"""Values read as values of a type, by threads that use the type first."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import agentguard

KINDS = {
    "struct": 'msgspec.defstruct("T", list(fields.items()))',
    "dataclass": 'dataclasses.make_dataclass("T", list(fields.items()))',
    "typed dict": 'typing.TypedDict("T", fields)',
    "named tuple": 'typing.NamedTuple("T", list(fields.items()))',
    "dataclass in a list": 'list[dataclasses.make_dataclass("T", list(fields.items()))]',
}
WAYS = {
    "convert": "_typed.convert(plain, T)",
    "decode": "_typed.decode(text, T)",
    "a result handed out again": "values.restore(text, T)",
    "inputs of a run": "program._rebuilt(plain, T)",
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_threads_may_use_a_type_first_at_once(kind: str, way: str) -> None:
    """Alone, msgspec ends the process with a segmentation fault within some rounds."""
    program = f"""
import dataclasses, msgspec, sys, threading, typing
from agentguard import _typed, program
from agentguard.steps import values

fields = {{f"f{{n}}": typing.Optional[typing.Union[int, str]] for n in range(12)}}
sys.setswitchinterval(1e-6)
wrong = []

def use(start):
    start.wait()
    try:
        {way}
    except BaseException as error:
        wrong.append(error)

for _ in range(40):
    T = {kind}
    plain = [1] * 12 if "NamedTuple" in {kind!r} else dict.fromkeys(fields, 1)
    plain = [plain] if {kind!r}.startswith("list") else plain
    text, start = msgspec.json.encode(plain), threading.Barrier(6)
    threads = [threading.Thread(target=use, args=[start]) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(wrong)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_type_is_read_in_one_place() -> None:
    """Elsewhere a decoder with a type is made while its module loads: nobody else has the type yet."""
    found = []
    package = Path(agentguard.__file__).parent
    for path in [*package.rglob("*.py"), *(package.parent / "integrations").rglob("*.py")]:
        if path.name == "_typed.py":
            continue
        functions = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        ]
        found += [
            f"{path.name}:{node.lineno}"
            for function in functions
            for node in ast.walk(function)
            if isinstance(node, ast.Call) and _reads_a_type(node)
        ]
    assert not found


def _reads_a_type(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name.endswith(("msgspec.convert", "json.Decoder", "msgpack.Decoder")):
        return True
    return name.endswith((".decode", ".convert")) and any(word.arg == "type" for word in call.keywords)
