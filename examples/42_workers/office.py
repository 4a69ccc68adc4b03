"""Three workers for two tenants on two hosts: one worker is killed, and one tenant.

    pip install 'agentguard[cli,postgres,workers]'
    python examples/42_workers/office.py postgresql://postgres@localhost/agentguard

The database may be empty; the login has to be allowed to make schemas and roles.  A "host" is here a state
directory of its own, with a page for kills and the relay that writes it.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
FAST = ("--heartbeat", "1", "--stalled-after", "4", "--concurrency", "2")


def start_worker(host: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "agentguard.cli", "worker", "--app", "agents:guard", *FAST, *options]
    with (host / "workers.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=HERE, env={**os.environ, "AGENTGUARD_HOME": str(host)}, stdout=log, stderr=log
        )


def main(url: str, folder: Path) -> None:
    os.environ |= {"AGENTGUARD_STORE": url, "OUTBOX": str(folder / "outbox.txt")}
    hosts = [folder / "host-a", folder / "host-b"]
    for host in hosts:
        host.mkdir()
    os.environ["AGENTGUARD_HOME"] = str(hosts[0])
    subprocess.run([sys.executable, "-m", "agentguard.cli", "migrate"], check=True, stdout=subprocess.DEVNULL)

    from agents import guard, letters  # noqa: PLC0415 - the guard takes its store from the environment

    small = [guard.submit(letters, {"tenant": "globex", "count": 12}, tenant="globex") for _ in range(2)]
    large = [guard.submit(letters, {"tenant": "acme", "count": 900}, tenant="acme") for _ in range(4)]
    print("submitted:", ", ".join(f"{queue.waiting} of {queue.queue}" for queue in guard.queue()))

    workers = [
        start_worker(hosts[0], "--queue", "globex"),
        start_worker(hosts[1], "--queue", "globex"),
        start_worker(hosts[1], "--queue", "acme"),
    ]
    try:
        while any(guard.summary(run.id).steps < 3 for run in small) or guard.summary(large[0].id).steps < 3:
            time.sleep(0.1)

        victim = next(worker for worker in workers if worker.pid == owner(guard, small[0]))
        victim.kill()
        print("killed -9: a worker of globex, in the middle of a run")
        guard.kill(tenant="acme", reason="acme has sent enough", actor="ann")
        print("killed: the tenant acme, on both hosts")

        for tenant, runs in (("globex", small), ("acme", large)):
            states = [str(run.wait(120)) for run in runs]
            print(f"{tenant}: {', '.join(f'{states.count(s)} {s}' for s in sorted(set(states)))}")
        show_outcome(guard, small, folder / "outbox.txt")
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        guard.close()


def owner(guard, run) -> int:
    return guard.components.store.row(run.id).owner.get("pid", 0)


def show_outcome(guard, runs, outbox: Path) -> None:
    claims = [sum(e.type == "run_recovered" for e in guard.history(run.id)) for run in runs]
    print("a run of globex was carried on by another worker:", max(claims) > 1)
    keys = {line.split()[0] for line in outbox.read_text().splitlines() if "globex" in line}
    print("letters of globex, by idempotency key:", len(keys))
    print("log:", "intact" if guard.verify() else "damaged")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="office-", ignore_cleanup_errors=True) as name:
        main(sys.argv[1], Path(name))
