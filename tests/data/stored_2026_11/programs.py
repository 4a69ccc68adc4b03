"""The agents whose databases, control log, export, cassette and exit codes lie beside this file.

Run as a program, it writes those files again, with the agentguard that is installed.  They were written by the
commit that ends the first month of agentguard, and stay as they are: what it stored must work for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from agentguard import Budget, Guard, RunStopped, Usage, current_run, guarded_step
from agentguard.audit.checkpoint import new_key

FOLDER = Path(__file__).parent
NAME = "stored_2026_11_programs"
RAN: list[str] = []
#: How a program of `PROGRAMS` dies, or is left; a test leaves them None.
DIE: Callable[[], None] | None = None


def _die() -> None:
    if DIE is not None:
        DIE()


@guarded_step(usage=Usage(usd="0.10", mails=1))
def mail(to: str) -> str:
    RAN.append("mail")
    return f"sent to {to}"


@guarded_step(kind="llm", reserve=Usage(usd="0.05", tokens=100), usage=lambda n: Usage(usd="0.01", tokens=n))
def ask(tokens: int) -> int:
    RAN.append("ask")
    return tokens


@guarded_step(effect="idempotent")
def charge(n: int) -> Decimal:
    RAN.append("charge")
    if n < 0:
        _die()
    return Decimal(n) / 10


@guarded_step(effect="once")
def refund(n: int) -> str:
    RAN.append("refund")
    _die()
    return f"refunded {n}"


@guarded_step(approval=True)
def delete(path: str) -> str:
    RAN.append("delete")
    return f"deleted {path}"


@guarded_step(effect="read")
def lines(count: int) -> Iterator[dict[str, int]]:
    RAN.append("lines")
    yield from ({"line": n} for n in range(count))


def shop(guard: Guard) -> list[Any]:
    """Scopes, a refusal in one of them, a nested run, a generator, values, an approval and a pause."""
    run = current_run()
    seen: list[Any] = [mail("ann"), ask(40), list(lines(3))]
    with contextlib.suppress(RunStopped), run.scope("letters", Budget(mails=1)):
        seen.append(mail("bob"))
        seen.append(mail("cid"))
    with run.scope("outer"), run.scope("inner"), guard.run("nested", budget=Budget(usd="1")) as nested:
        seen += [nested.id, charge(7), str(nested.uuid())]
    seen += [run.now(), run.record("weather", lambda: {"rain": True}), delete("/tmp/x")]
    seen.append(str(run.spent.usd))
    return seen


def crashed(guard: Guard) -> list[Any]:
    """A process that dies inside a step of a nested run."""
    run = current_run()
    seen: list[Any] = [ask(10)]
    with run.scope("part", Budget(usd="2")), guard.run("inside") as nested:
        seen += [nested.id, charge(1), charge(-1)]
    seen.append(str(run.spent.usd))
    return seen


def doubtful(_: Guard) -> list[Any]:
    """A process that dies inside a step that must not be repeated."""
    return [charge(2), refund(5), charge(3)]


def left(_: Guard) -> list[Any]:
    """A run that its process gave back, or that was paused and then lost its process."""
    seen: list[Any] = [charge(4)]
    _die()
    return [*seen, charge(5)]


PROGRAMS = {
    "shop": shop,
    "crashed": crashed,
    "doubtful": doubtful,
    "drained": left,
    "paused": left,
    "killed": left,
}

#: Commands in the order in which they are given to one home, the later ones on what the earlier ones did.
COMMANDS: list[list[str]] = [
    ["runs"],
    ["runs", "--state", "RUNNING", "--json"],
    ["show", "shop-0000001", "--payloads"],
    ["show", "control"],
    ["show", "nobody"],
    ["summary", "killed-0000001", "--json"],
    ["tail", "-n", "5"],
    ["top", "--once"],
    ["verify"],
    ["verify", "shop-0000001", "--anchor", "shop-0000001=3:" + "0" * 64],
    ["verify", "shop-0000001", "--anchor", "nonsense"],
    ["diff", "drained-0000001", "paused-0000001"],
    ["diff", "shop-0000001", "shop-0000001"],
    ["what-if", "shop-0000001", "--usd", "0.15"],
    ["what-if", "shop-0000001", "--usd", "100"],
    ["replay", "shop-0000001"],
    ["export", "shop-0000001"],
    ["export", "nobody"],
    ["approvals"],
    ["approve", "shop-0000001"],
    ["tenants", "--json"],
    ["pause", "drained-0000001"],
    ["resume", "drained-0000001"],
    ["resume", "shop-0000001"],
    ["resolve", "doubtful-0000001", "main/refund#1", "completed", "--result", '"by hand"'],
    ["resolve", "doubtful-0000001", "main/refund#1", "completed", "--result", '"again"'],
    ["fork", "shop-0000001", "--at", "5"],
    ["fork", "shop-0000001", "--at", "5000"],
    ["kill", "--run", "drained-0000001", "--reason", "no"],
    ["kill", "--run", "nobody-0000001", "--reason", "no"],
    ["kill", "--tenant", "acme", "--reason", "no"],
    ["revive", "--tenant", "acme"],
    ["revive", "--tenant", "acme"],
    ["erase", "shop-0000001", "--yes"],
    ["erase", "paused-0000001", "--yes"],
    ["prune", "--older-than", "3650d", "--yes"],
    ["frobnicate"],
    ["verify"],
]


def dump(database: Path) -> str:
    """A database as SQL."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        pragmas = [
            f"PRAGMA {name} = {connection.execute(f'PRAGMA {name}').fetchone()[0]};"
            for name in ("user_version", "application_id")
        ]
        return "\n".join([*connection.iterdump(), *pragmas, ""])


def restore(home: Path) -> None:
    """Put the database and the control log into a home."""
    with contextlib.closing(sqlite3.connect(home / "agentguard.db")) as connection:
        connection.executescript((FOLDER / "log.sql").read_text())
    shutil.copy(FOLDER / "control.log", home)


def exit_codes(home: Path) -> list[int]:
    """What the commands end with."""
    environment = {**os.environ, "AGENTGUARD_HOME": str(home)}
    return [
        subprocess.run(
            [sys.executable, "-m", "agentguard.cli", *argv],
            env=environment,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        ).returncode
        for argv in COMMANDS
    ]


def _in_a_child(name: str, die: Callable[[Guard, Any], None] | None) -> None:
    global DIE  # noqa: PLW0603
    if os.fork():
        os.wait()
        return
    guard = Guard.open(telemetry=False)
    with guard.run(
        name, run_id=f"{name}-0000001", tenant="acme", budget=Budget(usd="5"), inputs={"name": name}
    ) as run:
        DIE = None if die is None else lambda: die(guard, run)
        PROGRAMS[name](guard)
    os._exit(0)


def _kill_me(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _drain(_: Guard, run: Any) -> None:
    run.drain()
    _kill_me()


def _pause(_: Guard, run: Any) -> None:
    run.pause("lunch")
    _kill_me()


def _kill(guard: Guard, run: Any) -> None:
    with contextlib.suppress(RunStopped):
        guard.kill(run=run.id, reason="enough", actor="ann@desk")
        run.check()
    _kill_me()


def _shop() -> list[Any]:
    with Guard.open(telemetry=False) as guard:
        done = threading.Event()

        def operate() -> None:
            while not done.wait(0.01):
                for asked in guard.approvals():
                    guard.pause(asked.run_id, reason="a look")
                    guard.resume(asked.run_id)
                    guard.approve(asked.run_id, asked.key, reason="fine", actor="ann@desk")

        operator = threading.Thread(target=operate)
        operator.start()
        with guard.run(
            "shop",
            run_id="shop-0000001",
            tenant="acme",
            budget=Budget(usd="5", steps=50, warn_at=0.04),
            inputs={"name": "shop"},
            metadata={"team": "sales"},
        ):
            seen = shop(guard)
        done.set()
        operator.join()
    return seen


def main() -> None:
    """Write the files."""
    from agentguard.testing import cassettes

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["AGENTGUARD_HOME"] = folder
        with Guard.open(telemetry=False) as guard:
            guard.set_tenant_budget("acme", Budget(usd="50"), actor="ann@desk")
            guard.kill(reason="fire drill", actor="ann@desk")
            guard.revive(reason="over", actor="ann@desk")
        seen = _shop()
        for name, die in (
            ("crashed", _kill_me),
            ("doubtful", _kill_me),
            ("drained", _drain),
            ("paused", _pause),
            ("killed", _kill),
        ):
            _in_a_child(name, die)
        with Guard.open(telemetry=False) as guard:
            at = next(e.seq for e in guard.history("shop-0000001") if e.type == "scope_closed")
            with guard.fork("shop-0000001", at, new_run_id="forked-0000001") as fork:
                shop_again(guard)
            assert fork.state.final
            guard.export(None, FOLDER / "all.jsonl")
            cassettes.write(guard.parts.store, "shop-0000001", FOLDER / "shop.cassette")
            public = new_key(home / "key.pem")
            guard.checkpoint(FOLDER / "checkpoint", key=home / "key.pem")
            expected = {
                "python": sys.version,
                "public_key": public,
                "seen": [repr(thing) for thing in seen],
                "events": guard.verify().events,
                "runs": {
                    row.run_id: {
                        "state": str(row.state),
                        "steps": row.steps,
                        "usage": {name: amount for name, amount in row.usage.amounts().items() if amount},
                        "termination": row.termination,
                        "head": [row.head.seq, row.head.hash],
                        "types": [event.type for event in guard.history(row.run_id)],
                    }
                    for row in guard.runs()
                },
                "control": [event.type for event in guard.history("control")],
                "tenants": {account.tenant: str(account.spent.usd) for account in guard.tenants()},
            }
        (FOLDER / "log.sql").write_text(dump(home / "agentguard.db"))
        shutil.copy(home / "control.log", FOLDER)
    with tempfile.TemporaryDirectory() as folder:
        restore(Path(folder))
        expected["exit_codes"] = exit_codes(Path(folder))
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def shop_again(guard: Guard) -> None:
    """The shop until its letters are written, and then something else."""
    run = current_run()
    seen: list[Any] = [mail("ann"), ask(40), list(lines(3))]
    with contextlib.suppress(RunStopped), run.scope("letters", Budget(mails=1)):
        seen.append(mail("bob"))
        seen.append(mail("cid"))
    with run.scope("outer"):
        charge(9)


if __name__ == "__main__":
    sys.modules[NAME] = sys.modules["__main__"]
    for thing in list(vars(sys.modules["__main__"]).values()):
        if getattr(thing, "__module__", "") == "__main__":
            thing.__module__ = NAME
    main()
