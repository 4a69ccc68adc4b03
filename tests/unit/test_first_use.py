"""What several threads, or a thread and a fork, use first at once: each in a process of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agentguard
from agentguard import Budget, Guard
from agentguard.events.codec import Stored
from agentguard.killswitch.memory import MemoryKillSwitch
from agentguard.steps.in_flight import InFlight

THREADS = """
import sys, threading
from agentguard import Budget, Guard, guarded_step

sys.setswitchinterval(1e-6)
wrong = []

def at_once(act, number=8):
    start = threading.Barrier(number)

    def first():
        start.wait()
        try:
            act()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=first) for _ in range(number)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def printed(program: str) -> str:
    """What a program prints in an interpreter of its own, which ends well and says nothing else."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# --- threads ---------------------------------------------------------------------------------------------


def test_threads_that_open_the_first_runs_of_a_guard_take_part_once() -> None:
    """One heartbeat and one participant of the kill switch, which end with the guard."""
    program = f"""{THREADS}
def named(name): return [thread for thread in threading.enumerate() if thread.name == name]

for _ in range(10):
    with Guard.in_memory(telemetry=False) as guard:
        opened = threading.Barrier(9)

        def run():
            with guard.run("r"):
                opened.wait()
                opened.wait()

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads: thread.start()
        opened.wait()
        beating, joined = named("agentguard-heartbeat"), len(guard.components.switch._joined)
        opened.wait()
        for thread in threads: thread.join()
    if (len(beating), joined) != (1, 1): wrong.append((len(beating), joined))
    for thread in beating: thread.join(30)
    wrong += named("agentguard-heartbeat")
print(wrong)
"""
    assert printed(program) == "[]\n"


def test_threads_open_a_guards_components_once() -> None:
    """The one that came second closed the kill switch that the program had brought."""
    program = f"""{THREADS}
from agentguard.killswitch.memory import MemoryKillSwitch

for _ in range(20):
    guard = Guard.open("memory://", kill_switch=MemoryKillSwitch(), telemetry=False)

    def run():
        with guard.run("r") as run:
            run.call("step", int)
        guard.verify(run.id)

    at_once(run)
    if len(guard.runs()) != 8: wrong.append(len(guard.runs()))
print(wrong[:3])
"""
    assert printed(program) == "[]\n"


def test_a_budget_of_a_tenant_that_is_learnt_is_not_put_back() -> None:
    """By a thread that is behind, and puts the budgets of before in force once more."""
    reading, learnt = threading.Event(), threading.Event()
    behind = threading.Thread(target=lambda: components.refresh())
    seen: list[int | None] = []

    class Read(MemoryKillSwitch):
        """Whose reader in the thread `behind` is overtaken, where that can be."""

        def read(self, after: int = 0) -> Iterator[Stored]:
            for stored in super().read(after):
                if threading.current_thread() is behind:
                    reading.set()
                    learnt.wait(0.5)
                yield stored
                if learnt.is_set():
                    seen.append(components.tenants.budgets("acme")[None].steps)

    with Guard.in_memory(kill_switch=Read(), telemetry=False) as guard:
        for steps in (50, 5):
            guard.set_tenant_budget("acme", Budget(steps=steps))
        components = guard.components
        components._learned = 0
        behind.start()
        assert reading.wait(30)
        components.refresh()
        learnt.set()
        behind.join()
        assert components.tenants.budgets("acme")[None].steps == 5
    assert set(seen) <= {5}


def test_an_object_has_one_number_in_all_threads() -> None:
    """By it, calls with an object that says nothing of itself are the same calls, or others."""
    program = f"""{THREADS}
from agentguard._values.fingerprint import _token

class Handle: pass

for _ in range(300):
    handle, numbers = Handle(), set()
    at_once(lambda: numbers.add(_token(handle)), 4)
    if len(numbers) > 1: wrong.append(numbers)
print(wrong[:1])
"""
    assert printed(program) == "[]\n"


def test_a_run_is_counted_off_where_it_was_counted_in() -> None:
    """An SDK is there from the middle of its first line on, since another thread has set it up."""
    program = f"""{THREADS}
import logging
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from agentguard.telemetry.spans import Telemetry

reader = InMemoryMetricReader()

class SetsUp(SpanProcessor):
    def on_start(self, span, parent_context=None):
        if done: return
        done.append(span)
        metrics.set_meter_provider(MeterProvider([reader]))
        at_once(run, 1)
        raise RuntimeError("which is no matter of the run's")

done, tracers = [], TracerProvider()
tracers.add_span_processor(SetsUp())
with Guard.in_memory(telemetry=Telemetry(tracers)) as guard:
    def run():
        with guard.run("r"): pass

    logging.disable()
    run()
data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
print(wrong, [point.value for metric in data if metric.name == "agentguard.runs.active" for point in metric.data.data_points])
"""
    assert printed(program) == "[] [0]\n"


def test_a_fork_counts_every_run_while_other_threads_open_some() -> None:
    """Else two children would have the same name, and their steps the same keys."""
    program = f"""{THREADS}
from agentguard.steps import forked

class Run:
    forks = 0

over, run = threading.Event(), Run()
forked.watch(run)

def opens():
    while not over.is_set():
        runs = [Run() for _ in range(5)]
        for each in runs: forked.watch(each)

def forks():
    try:
        for _ in range(3000): forked._before()
    finally:
        over.set()

actors = iter([opens, opens, forks])
at_once(lambda: next(actors)(), 3)
print(wrong, run.forks)
"""
    assert printed(program) == "[] 3000\n"


def test_a_run_that_ends_leaves_its_loops_while_other_threads_meet_some() -> None:
    class Loop:
        pass

    in_flight: Any = InFlight("run")
    loops = [Loop() for _ in range(6)]
    in_flight.loops[loops[0]] = in_flight.loops[loops[1]] = "factory"
    left = []
    for factory in in_flight.factories():
        left.append(factory)
        in_flight.loops[loops[len(left) + 1]] = "another"
    assert left == ["factory", "factory"]


# --- a thread and a fork ---------------------------------------------------------------------------------

#: What a thread uses first while another one forks, and the module whose load it is in.
FIRST_USES = {
    "a name of the package": ("agentguard.audit.verify", "agentguard.VerifyReport"),
    "a rule of redaction": ("agentguard.steps.redaction", "guarded_step(redact=['ssn'])(print)"),
    "a guard": ("agentguard.engine", "Guard.in_memory()"),
    "a store": ("agentguard.stores.memory", "Guard.in_memory().components"),
    "a file": (
        "agentguard.stores.sqlite",
        "Guard.open('sqlite:///{tmp_path}/agentguard.db', kill_switch='memory').start('r').close()",
    ),
    "telemetry": ("agentguard.telemetry.spans", "Guard.in_memory().components"),
    "masks": (
        "agentguard._secrets.masking",
        "Guard.in_memory(telemetry=False).start('r', metadata={'db': 'postgres://ann:hunter2@db/app'}).close()",
    ),
    "a result that goes on": (
        "agentguard.steps.proxies",
        "Guard.in_memory(telemetry=False).start('r').call('read', Goes)",
    ),
    "prices": ("genai_prices", "GenaiPrices().installed"),
    "what an answer used": (
        "agentguard.cost.presets",
        "Usage.from_provider({'model': 'gpt-5', 'usage': {'prompt_tokens': 9, 'completion_tokens': 4}}, 'openai')",
    ),
}

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


@forks
@pytest.mark.parametrize(("module", "use"), FIRST_USES.values(), ids=FIRST_USES)
def test_a_fork_waits_while_another_thread_loads(module: str, use: str, tmp_path: Path) -> None:
    """Else the child waits for ever for a module that no thread of its own loads."""
    program = f"""
import concurrent.futures.thread  # whose own hook complains where it is registered while a fork waits
import os, signal, sys, threading
import agentguard
from agentguard import Budget, Guard, Usage, guarded_step
from agentguard.cost.genai import GenaiPrices

class Goes:
    def __iter__(self): return self
    def __next__(self): raise StopIteration
    def close(self): pass

def use():
    {use.replace("{tmp_path}", str(tmp_path))}

loading, forking = threading.Event(), threading.Event()

class Waiting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            loading.set()
            forking.wait()
        return None

sys.meta_path.insert(0, Waiting())
os.register_at_fork(before=forking.set)  # the last one that is registered is called first
thread = threading.Thread(target=use)
thread.start()
assert loading.wait(30)
child = os.fork()
if child == 0:
    signal.alarm(20)
    use()
    print("used", flush=True)
    os._exit(0)
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    assert printed(program) == "used\n"


def test_what_calls_load_they_load_where_forks_wait(tmp_path: Path) -> None:
    """What they call loads more at its first call, as readers of packages' files and of prices do."""
    program = f"""
import asyncio, concurrent.futures, os, sys
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from agentguard import Budget, Guard, KillSwitchTriggeredError, guarded_step
from agentguard._loading import LOADING
from agentguard.budget.model_usage import ModelUsage
from agentguard.cost.genai import GenaiPrices, provider_named
from agentguard.telemetry.spans import Telemetry

os.environ["AGENTGUARD_HOME"] = {str(tmp_path)!r}
loaded = []

class Watching:
    def find_spec(self, name, path=None, target=None):
        if not LOADING._is_owned(): loaded.append(name)
        return None

class Goes:
    def __iter__(self): return self
    def __next__(self): raise StopIteration
    def close(self): pass

@guarded_step(redact=["ssn"])
def step(text): return {{"token": text}}

async def wait(run):
    await run.call("wait", asyncio.sleep, 0)
    await asyncio.to_thread(int)

asyncio.run(asyncio.sleep(0))
telemetry = Telemetry(TracerProvider(), MeterProvider())
sys.modules.pop("concurrent.futures.thread", None)  # of the SDK
vars(concurrent.futures).pop("ThreadPoolExecutor", None)
sys.meta_path.insert(0, Watching())
with Guard.open(telemetry=telemetry) as guard:
    with guard.run("r", metadata={{"db": "postgres://ann:hunter2@db/app"}}, budget=Budget(steps=9)) as run:
        step("x" * 500)
        list(run.call("goes", Goes))
        asyncio.run(wait(run))
    guard.verify(run.id)
    guard.export(run.id, {str(tmp_path / "run.jsonl")!r})
    try:
        with guard.run("killed") as run:
            guard.kill(run=run.id, reason="enough")
    except KillSwitchTriggeredError:
        pass
    with Guard.open("file://" + {str(tmp_path / "run.jsonl")!r}) as copy:
        copy.runs()
provider_named("openai")
used = ModelUsage(counts={{"input_tokens": 9, "output_tokens": 9}})
assert GenaiPrices().price("gpt-4o", used, provider="openai")
print(loaded)
"""
    assert printed(program) == "[]\n"


@forks
def test_a_child_opens_a_file_that_another_thread_was_opening(tmp_path: Path) -> None:
    program = f"""
import os, signal, threading
from agentguard import Guard
from agentguard.stores import _registry

guard = Guard.open("sqlite:///{tmp_path}/agentguard.db", kill_switch="memory", telemetry=False)
store = guard.components.store
opening, forked, share = threading.Event(), threading.Event(), _registry.share

def held_up(path):
    opening.set()
    forked.wait()
    return share(path)

_registry.share = held_up
thread = threading.Thread(target=store.lock_for, args=["run"])
thread.start()
assert opening.wait(30)
child = os.fork()
forked.set()
if child == 0:
    signal.alarm(20)
    with guard.run("r"):
        pass
    print(len(guard.runs()), flush=True)
    os._exit(0)
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    assert printed(program) == "1\n"


# --- the rules -------------------------------------------------------------------------------------------

PACKAGE = Path(agentguard.__file__).parent
#: Whose process has one thread while it loads; or what a user's module is loaded by, which may wait for threads.
NO_THREADS_YET = ("cli/", "console/", "demo/", "testing/", "workers/")
NOT_LATER = {
    "program.py": "import_module(name)",
    "decorators.py": "import_module(module)",
    "_secrets/search.py": "import_module('re2')",
}


def test_what_is_loaded_later_is_loaded_where_forks_wait() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        if name.startswith(NO_THREADS_YET) or name == "_loading.py":
            continue
        for call in _loads_in_functions(ast.parse(path.read_text())):
            if name not in NOT_LATER or NOT_LATER[name] not in ast.unparse(call):
                found.append(f"{name}:{call.lineno}: {ast.unparse(call)}")
    assert not found


def test_no_module_needs_the_lock_of_what_is_loaded_later_while_it_is_imported() -> None:
    """It waits for a thread that has it, and that may wait for the module: for ever."""
    program = """
import importlib, pkgutil, sys
import agentguard
from agentguard import _loading

class Recording:
    def __init__(self, lock): self.lock = lock

    def __enter__(self):
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == "<module>" and frame.f_globals["__name__"].startswith("agentguard."):
                taken.append(frame.f_globals["__name__"])
            frame = frame.f_back
        return self.lock.__enter__()

    def __exit__(self, *exc): return self.lock.__exit__(*exc)

taken, imported = [], 0
_loading.LOADING = Recording(_loading.LOADING)
for module in pkgutil.walk_packages(agentguard.__path__, "agentguard."):
    if module.name.endswith("__main__"): continue
    try:
        importlib.import_module(module.name)
        imported += 1
    except ImportError:  # of an extra
        pass
print(taken, imported > 300)
"""
    assert printed(program) == "[] True\n"


def _loads_in_functions(
    node: ast.AST, *, inside: bool = False
) -> Iterator[ast.Import | ast.ImportFrom | ast.Call]:
    """Yield what a function imports, but for what it does under `LOADING`."""
    if inside and isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    if inside and isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        yield node
    if isinstance(node, ast.With) and any(ast.unparse(item.context_expr) == "LOADING" for item in node.items):
        return
    inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _loads_in_functions(child, inside=inside)
