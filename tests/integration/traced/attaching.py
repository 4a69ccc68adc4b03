"""A run whose steps are also done by a thread and by another process, each of which attaches to it.

`python attaching.py ENDPOINT` prints the run's trace; with an id of a run behind, it is the other process.
"""

import os
import subprocess
import sys
import threading

from opentelemetry import trace

import agentguard.telemetry
from agentguard import Guard, Usage, guarded_step


@guarded_step
def by_owner() -> None: ...


@guarded_step
def by_thread() -> None: ...


@guarded_step
def in_a_request() -> None: ...


@guarded_step(usage=Usage(usd="0.02"))
def by_process() -> None: ...


def main(endpoint: str) -> None:
    with agentguard.telemetry.setup(endpoint=endpoint, service_name="owner"), Guard.open() as guard:

        def attach() -> None:
            with guard.attach(run.id, branch="thread"):
                by_thread()
            with trace.get_tracer("web").start_as_current_span("GET /"), guard.attach(run.id, branch="web"):
                in_a_request()

        with guard.run("shared") as run:
            by_owner()
            thread = threading.Thread(target=attach)
            thread.start()
            thread.join()
            subprocess.run([sys.executable, *sys.orig_argv[1:], run.id], env=os.environ, check=True)
        print(guard.history(run.id)[0].trace_id)


def other_process(endpoint: str, run_id: str) -> None:
    with agentguard.telemetry.setup(endpoint=endpoint, service_name="helper"), Guard.open() as guard:
        with guard.attach(run_id, branch="helper"):
            by_process()


if len(sys.argv) > 2:
    other_process(*sys.argv[1:])
else:
    main(sys.argv[1])
