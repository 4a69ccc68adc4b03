"""What an import, a guard and a first step load: counted in modules, in fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agentguard import Guard

DEADLINE = 60

IMPORT = "from agentguard import Guard, guarded_step, Budget, Usage\n"
#: A function of each kind, guarded.
DECORATED = """
@guarded_step(usage=Usage(usd="0.01"), effect="read")
def plain(n): return n

@guarded_step
async def later(n): return n

@guarded_step
def items(n): yield n

@guarded_step
async def later_items(n): yield n
"""
#: A run with a step of each kind.
A_RUN = """
import asyncio

async def use_all(run):
    assert plain(1) == 1 and await later(2) == 2
    assert list(items(3)) == [3] and [n async for n in later_items(4)] == [4]
    assert run.call("add", sum, [1, 2]) == 3
    with run.step("block"):
        pass

def run_all(guard):
    with guard.run("all", budget=Budget(steps=6)) as run:
        asyncio.run(use_all(run))
    assert guard.summary(run.id).steps == 6 and guard.verify(run.id)
"""


def printed(program: str) -> str:
    """What a program prints in an interpreter of its own, which has loaded nothing that it does not name."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
        # A coverage run loads much by itself.
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("program", [IMPORT, IMPORT + DECORATED], ids=["import", "decorated"])
def test_import_loads_nothing_heavy(program: str) -> None:
    loaded = set(printed(program + "\nimport sys; print(*sys.modules)").split())
    assert "agentguard.guard" in loaded
    heavy = (
        *(
            "asyncio",
            "concurrent.futures",
            "ctypes",
            "hashlib",
            "socket",
            "sqlite3",
            "ssl",
            "subprocess",
        ),
        *("msgspec", "opentelemetry", "re2", "typing_extensions", "wrapt"),
        *("agentguard.engine", "agentguard.protocols", "agentguard.steps.flow", "agentguard.steps.redaction"),
    )
    assert not loaded.intersection(heavy)


def test_import_loads_few_modules_of_ours() -> None:
    ours = [
        name for name in printed(IMPORT + "import sys; print(*sys.modules)").split() if "agentguard" in name
    ]
    assert len(ours) <= 25, ours


def test_listing_runs_loads_what_it_shows(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/agentguard.db"
    with Guard.open(store, kill_switch="memory", telemetry=False) as guard, guard.run("listed"):
        pass
    listed, loaded = printed(
        f"""
        import sys
        from agentguard.cli import main
        assert main(["runs", "--columns", "name", "--home", {str(tmp_path)!r}, "--store", {store!r}]) == 0
        print(*sys.modules)
        """
    ).splitlines()[1:]
    assert listed.strip() == "listed"
    assert not {"typer", "pydantic", "asyncio", "ssl", "opentelemetry", "agentguard.engine"} & set(
        loaded.split()
    )


def test_steps_load_nothing() -> None:
    """A signal may arrive in any line of a step, an import inside one too: so there is none."""
    program = f"""
{IMPORT}{DECORATED}{A_RUN}
import sys
guard = Guard.in_memory(telemetry=False)
with guard.run("before"):
    before = set(sys.modules)
    with guard.run("inside") as run:
        asyncio.run(use_all(run))
new = [name for name in sys.modules if name.startswith("agentguard") and name not in before]
print(*(name for name in new if name != "agentguard._secrets.masking"))  # where there is something to mask
"""
    assert printed(program) == "\n"


def test_metadata_is_masked_where_it_may_hold_a_secret_alone() -> None:
    """What masks is slow: 0.3 s a MB."""
    program = """
import sys
from agentguard import Guard

with Guard.in_memory() as guard:
    for note in ("a word", "postgres://ann:hunter2@db/app"):
        with guard.run("r", metadata={"note": note}) as run:
            print("agentguard._secrets.masking" in sys.modules, guard.summary(run.id).metadata["note"])
"""
    assert printed(program) == "False a word\nTrue postgres://ann:**********@db/app\n"


def test_interrupted_load_can_be_repeated() -> None:
    """Ctrl-C at the import of each module in turn, while a guard is opened for the first time."""
    program = f"""
{IMPORT}{DECORATED}{A_RUN}
import sys

class Interrupting:
    def __init__(self): self.seen = []
    def find_spec(self, name, path=None, target=None):
        if name.startswith("agentguard.") and name not in self.seen:
            self.seen.append(name)
            raise KeyboardInterrupt
        return None

interrupting = Interrupting()
sys.meta_path.insert(0, interrupting)
interrupts = 0
while True:
    try:
        guard = Guard.in_memory()
        guard.components
        break
    except KeyboardInterrupt:
        interrupts += 1
sys.meta_path.remove(interrupting)
run_all(guard)
print(interrupts)
"""
    assert int(printed(program)) > 100


def test_threads_may_open_the_first_guards_at_once() -> None:
    program = f"""
{IMPORT}{DECORATED}{A_RUN}
import sys, threading
sys.setswitchinterval(1e-6)
threads, failed, start = [], [], threading.Barrier(8)

def agent(n):
    start.wait()
    try:
        if n % 4 == 1:
            from agentguard import Run
        if n % 4 == 2:
            from agentguard import VerifyReport
        if n % 4 == 3:
            guarded_step(redact=["ssn"])(lambda: None)
        with Guard.in_memory() as guard:
            run_all(guard)
    except BaseException as error:
        failed.append(error)

threads = [threading.Thread(target=agent, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed)
"""
    assert printed(program) == "[]\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_fork_waits_while_another_thread_loads() -> None:
    """Else the child would wait for ever for a module that no thread of its own loads."""
    program = f"""
{IMPORT}{DECORATED}{A_RUN}
import os, sys, threading
loading, forking = threading.Event(), threading.Event()

class Waiting:
    def find_spec(self, name, path=None, target=None):
        if name == "agentguard.engine":
            loading.set()
            forking.wait()
        return None

sys.meta_path.insert(0, Waiting())
os.register_at_fork(before=forking.set)  # the last one that is registered is called first
thread = threading.Thread(target=lambda: Guard.in_memory().close())
thread.start()
loading.wait()
child = os.fork()
if child == 0:
    with Guard.in_memory() as guard:
        run_all(guard)
    print("the child has run", flush=True)
    os._exit(0)
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    assert printed(program) == "the child has run\n"
