"""Submits a run to a worker from inside a run, and prints the trace of that and the state of the submitted one."""

from traced_office import guard, letters, providers

with guard.run("order") as run:
    submitted = guard.submit(letters, {"count": 2})
state = submitted.wait(60)
print(guard.history(run.id)[0].trace_id, submitted.id, state)
guard.close()
providers.shutdown()
