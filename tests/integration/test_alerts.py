"""What an operator is told without looking: once, signed, again where it did not arrive, in no agent's way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.kit import wait_until

pytest.importorskip("typer")

from agentguard import Budget, Guard, Usage, guarded_step
from agentguard.alerts.rules import Alert, Thresholds, alerts
from agentguard.alerts.watch import FIRING, Notice, Reader, Watch
from agentguard.alerts.webhook import Webhook
from agentguard.cli import main
from agentguard.errors import RunNotFoundError
from agentguard.killswitch.model import Kill
from agentguard.testing import FakeClock
from tests.relays import end_relays
from tests.servers import free_port

SECRET = f"whsec_{base64.b64encode(b'a very secret key').decode()}"


@guarded_step(usage=Usage(usd="0.30"))
def pay() -> None: ...


class Message(NamedTuple):
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """The other end of a webhook; answers with the codes of `answers`, then 200."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.answers: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(Message(dict(self.headers.items()), body))
                receiver.may_answer.wait(30)
                code = receiver.answers.pop(0) if receiver.answers else 200
                self.send_response(code)
                if code == 302:
                    self.send_header("location", f"{receiver.url}/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.may_answer.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    opened = Receiver()
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def guard(clock: FakeClock) -> Iterator[Guard]:
    with Guard.in_memory(telemetry=False, clock=clock) as guard:
        yield guard


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line sets in this process is taken back."""
    monkeypatch.setenv("AGENTGUARD_STORE", "to be restored")
    monkeypatch.delenv("AGENTGUARD_STORE")


def told(watch: Watch) -> list[tuple[str, str]]:
    return [(notice.alert.kind, notice.state) for notice in watch.look()]


def notice(number: int = 1) -> Notice:
    return Notice(
        Alert("budget", "r", "acme", f"run r has used 90% <!channel> & {number}", {}), FIRING, number, number
    )


# --- what is told --------------------------------------------------------------------------------


def test_a_limit_that_is_nearly_used_is_told_once_and_when_it_is_over(guard: Guard) -> None:
    watch = Watch(guard, Thresholds(budget_share=0.5))
    with guard.run("r", budget=Budget(usd=1)) as run:
        pay()
        assert told(watch) == []
        pay()
        assert told(watch) == [("budget", "firing")]
        assert told(watch) == []
        run.set_budget(Budget(usd=10))
        assert told(watch) == [("budget", "resolved")]


def test_what_goes_on_is_told_again_after_a_while(guard: Guard, clock: FakeClock) -> None:
    watch = Watch(guard, Thresholds(budget_share=0.5), repeat=60)
    with guard.run("r", budget=Budget(usd="0.5")):
        pay()
        [first] = watch.look()
        clock.advance(59)
        assert watch.look() == []
        clock.advance(1)
        [again] = watch.look()
        assert (again.since_ns, again.at_ns - first.at_ns) == (first.since_ns, 60 * 10**9)


def test_a_run_that_spends_fast_is_told(guard: Guard, clock: FakeClock) -> None:
    watch = Watch(guard, Thresholds(usd_per_minute=Decimal("0.50")))
    with guard.run("r"):
        pay()
        assert told(watch) == []
        pay()
        assert told(watch) == [("rate", "firing")]
        clock.advance(61)
        assert told(watch) == [("rate", "resolved")]


def test_a_tenant_that_has_spent_most_of_its_money_is_told(guard: Guard) -> None:
    guard.set_tenant_budget("acme", Budget(usd=1), per="day")
    watch = Watch(guard, Thresholds(budget_share=0.5))
    with guard.run("r", tenant="acme"):
        pay()
        pay()
        [only] = watch.look()
    assert (only.alert.kind, only.alert.tenant) == ("tenant_budget", "acme")
    assert "$0.6 of $1 per day" in only.alert.message


def test_a_step_that_waits_for_an_operator_is_told(guard: Guard, tmp_path: Path) -> None:
    watch = Watch(guard, Thresholds(budget_share=None))
    with guard.run("r", run_id="r") as run:
        thread = threading.Thread(target=run.bind(lambda: run.call("wire", int, approval=True)))
        thread.start()
        wait_until(guard.approvals)
        assert told(watch) == [("waiting", "firing")]
        guard.approve("r", guard.approvals()[0].key)
        thread.join()
        assert told(watch) == [("waiting", "resolved")]


def test_a_run_that_goes_on_after_its_kill_is_told_after_the_grace(guard: Guard, clock: FakeClock) -> None:
    with guard.run("r", tenant="acme"):
        present = Reader(guard).read()
    killed = Kill("tenant", "acme", "wild", "ann", present.now_ns, generation=1)
    of_another = killed._replace(target="other")
    thresholds = Thresholds(kill_grace=timedelta(seconds=5))

    def kinds(kill: Kill, seconds: int) -> list[str]:
        later = present._replace(kills=[kill], now_ns=present.now_ns + seconds * 10**9)
        return [alert.kind for alert in alerts(later, thresholds)]

    assert kinds(killed, 4) == []
    assert kinds(killed, 5) == ["kill_unanswered"]
    assert kinds(of_another, 5) == kinds(killed._replace(cleared=True), 5) == []


def test_a_store_that_cannot_be_read_is_told_and_ends_no_other_alert(sqlite_guard: Guard) -> None:
    watching = Guard.open(telemetry=False)
    watch = Watch(watching, Thresholds(budget_share=0.5))
    with sqlite_guard.run("r", budget=Budget(usd="0.5")):
        pay()
        assert told(watch) == [("budget", "firing")]
        watching.close()
        assert set(told(watch)) == {("unavailable", "firing")}
        assert {alert.kind for alert in watch.firing} == {"budget", "unavailable"}


def test_thresholds_that_cannot_be_meant_are_refused() -> None:
    for wrong in (
        Thresholds(budget_share=0),
        Thresholds(budget_share=1.5),
        Thresholds(usd_per_minute=Decimal(0)),
    ):
        with pytest.raises(ValueError, match="budget_share|usd_per_minute"):
            wrong.check()


def test_every_alert_is_a_log_record_with_its_facts(guard: Guard, caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(guard, Thresholds(budget_share=0.5))
    with guard.run("r", budget=Budget(usd="0.5"), tenant="acme") as run, caplog.at_level(logging.INFO):
        pay()
        watch.look()
    [record] = [record for record in caplog.records if record.name == "agentguard.alerts"]
    assert (record.levelname, record.__dict__["alert"], record.__dict__["subject"]) == (
        "WARNING",
        "budget",
        run.id,
    )


def test_a_sink_that_fails_harms_no_other(guard: Guard) -> None:
    got: list[Notice] = []

    def fails(_: Notice) -> None:
        raise RuntimeError("no")

    watch = Watch(guard, Thresholds(budget_share=0.5), [fails, got.append])
    with guard.run("r", budget=Budget(usd="0.5")):
        pay()
        watch.look()
    assert len(got) == 1


# --- on record -----------------------------------------------------------------------------------


def on_record(guard: Guard, run_id: str) -> list[tuple[str, str]]:
    return [
        (event.data["kind"], event.data["state"]) for event in guard.history(run_id) if event.type == "alert"
    ]


def test_an_alert_of_a_run_is_in_its_log_when_it_begins_and_when_it_is_over(
    guard: Guard, clock: FakeClock
) -> None:
    watch = Watch(guard, Thresholds(budget_share=0.5), repeat=60)
    with guard.run("r", budget=Budget(usd=1)) as run:
        pay()
        pay()
        for _ in range(3):
            watch.look()
            clock.advance(61)  # what goes on is told again, and on record already
        assert on_record(guard, run.id) == [("budget", "firing")]
        pay()  # whose log another one has written to
        run.set_budget(Budget(usd=10))
        watch.look()
        run.set_budget(Budget(usd=1))
        watch.look()
    watch.look()
    assert on_record(guard, run.id) == [("budget", "firing"), ("budget", "resolved"), ("budget", "firing")]
    [told, *_] = [event.data for event in guard.history(run.id) if event.type == "alert"]
    assert told["facts"]["share"] == 0.6
    assert "has used 60% of its limit of usd" in told["message"]
    assert guard.verify(run.id)
    assert guard.history(run.id)[-1].type == "run_completed", "an ended run takes no alert"


def test_a_replay_passes_over_alerts(guard: Guard) -> None:
    watch = Watch(guard, Thresholds(budget_share=0.5))

    def program(look: bool) -> None:
        pay()
        pay()
        if look:
            watch.look()
        pay()

    with guard.run("r", budget=Budget(usd=1)) as run:
        program(True)
    assert len(on_record(guard, run.id)) == 1
    with guard.replay(run.id):
        program(False)


@pytest.fixture(params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "postgres":
        monkeypatch.setenv("AGENTGUARD_STORE", request.getfixturevalue("postgres_url"))


@pytest.mark.usefixtures("shared")
def test_it_is_there_once_however_many_watch(caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        guards = [stack.enter_context(Guard.open(telemetry=False)) for _ in range(5)]
        watches = [Watch(guard, Thresholds(budget_share=0.5)) for guard in guards]
        with guards[0].run("r", budget=Budget(usd=1)) as run:
            pay()
            pay()
            with ThreadPoolExecutor(5) as pool:
                for told_by_one in pool.map(told, watches):
                    assert told_by_one == [("budget", "firing")]
            pay()
        assert on_record(guards[0], run.id) == [("budget", "firing")]
        assert guards[0].verify(run.id)
    assert "not on record" not in caplog.text


@pytest.mark.usefixtures("within_a_day")
def test_an_alert_of_a_tenant_is_in_the_control_log_once(
    sqlite_guard: Guard, capsys: pytest.CaptureFixture[str]
) -> None:
    sqlite_guard.set_tenant_budget("acme", Budget(usd=1), per="day")
    with Guard.open(telemetry=False) as other, sqlite_guard.run("r", tenant="acme"):
        pay()
        pay()
        for guard in (sqlite_guard, other):
            Watch(guard, Thresholds(budget_share=0.5)).look()
        assert on_record(other, "control") == [("tenant_budget", "firing")]
        other.set_tenant_budget("acme", Budget(usd=9), per="day")
    assert main(["show", "control"]) == 0
    assert "alert tenant_budget firing: tenant acme has spent $0.6 of $1 per day" in capsys.readouterr().out


@pytest.mark.usefixtures("within_a_day")
@pytest.mark.parametrize("where", ["page", "redis"])
def test_an_alert_of_a_tenant_is_there_once_though_many_find_it_at_once(
    where: str, request: pytest.FixtureRequest, home: Path
) -> None:
    switch = "page" if where == "page" else request.getfixturevalue("redis_url")
    with ExitStack() as stack:
        guards = [stack.enter_context(Guard.open(telemetry=False, kill_switch=switch)) for _ in range(5)]
        guards[0].set_tenant_budget("acme", Budget(usd=1), per="day")
        with guards[0].run("r", tenant="acme"):
            pay()
            pay()
        watches = [Watch(guard, Thresholds(budget_share=0.5)) for guard in guards]
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(Watch.look, watches))
            assert on_record(guards[0], "control") == [("tenant_budget", "firing")]
            guards[0].set_tenant_budget("acme", Budget(usd=9), per="day")
            list(pool.map(Watch.look, watches))
        assert on_record(guards[0], "control") == [("tenant_budget", "firing"), ("tenant_budget", "resolved")]
        assert guards[0].verify()
    end_relays(home)


def test_where_it_cannot_be_put_on_record_it_is_told_all_the_same(
    guard: Guard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with guard.run("r", budget=Budget(usd="0.5")) as run:
        pay()
        guard.export(run.id, tmp_path / "export.jsonl")
    with Guard.open(f"file://{tmp_path / 'export.jsonl'}", telemetry=False) as reading:
        assert ("budget", "firing") in told(Watch(reading, Thresholds(budget_share=0.5)))
    assert "an alert is not on record: " in caplog.text


LOSES = """
import os
from agentguard import Guard
with Guard.open(telemetry=False).run("lost", run_id="lost-run"):
    os._exit(1)
"""


def test_a_live_run_whose_process_is_gone_is_told_with_the_next_step(
    home: Path, sqlite_guard: Guard, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = os.environ | {"AGENTGUARD_HOME": str(home)}
    subprocess.run([sys.executable, "-c", LOSES], env=environment, check=False)
    watch = Watch(sqlite_guard, Thresholds())
    [only] = watch.look()
    assert (only.alert.kind, only.alert.subject) == ("owner_gone", "lost-run")
    assert "has lost its process: agentguard recover lost-run" in only.alert.message
    assert on_record(sqlite_guard, "lost-run") == [("owner_gone", "firing")]
    assert main(["show", "lost-run"]) == 0
    assert "alert owner_gone firing: run lost-run (lost) has lost its process" in capsys.readouterr().out
    with sqlite_guard.recover("lost-run"):
        assert told(watch) == [("owner_gone", "resolved")]
        assert on_record(sqlite_guard, "lost-run") == [("owner_gone", "firing"), ("owner_gone", "resolved")]


def test_an_alert_of_ones_own_is_of_a_run_or_of_a_subject(guard: Guard) -> None:
    assert guard.record_alert("queue", "is long", subject="mails")
    assert not guard.record_alert("queue", "is long", subject="mails")
    assert guard.record_alert("queue", "is long", subject="letters")
    assert guard.record_alert("queue", "is short", subject="mails", firing=False)
    assert guard.history("control")[0].data == {
        "kind": "queue",
        "state": "firing",
        "message": "is long",
        "subject": "mails",
    }
    for wrong in ({}, {"run": "r", "subject": "s"}):
        with pytest.raises(ValueError, match="give run=, or subject="):
            guard.record_alert("queue", "is long", **wrong)  # type: ignore[arg-type]
    with pytest.raises(RunNotFoundError):
        guard.record_alert("queue", "is long", run="nobody")


# --- how it is sent ------------------------------------------------------------------------------


def test_a_message_is_signed_and_says_what_happened(receiver: Receiver) -> None:
    sink = Webhook(receiver.url, SECRET)
    sink(notice())
    sink.close()
    [message] = receiver.got
    number, moment = message.headers["Webhook-Id"], message.headers["Webhook-Timestamp"]
    signed = f"{number}.{moment}.".encode() + message.body
    expected = base64.b64encode(hmac.new(b"a very secret key", signed, hashlib.sha256).digest()).decode()
    assert message.headers["Webhook-Signature"] == f"v1,{expected}"
    assert message.json["type"] == "alert.firing"
    assert message.json["data"]["kind"] == "budget"


def test_it_is_tried_again_under_the_same_id_until_it_arrives(receiver: Receiver) -> None:
    receiver.answers = [503, 429, 500]
    sink = Webhook(receiver.url, first_pause=0.01)
    sink(notice())
    wait_until(lambda: len(receiver.got) == 4)
    sink.close()
    assert len({message.headers["Webhook-Id"] for message in receiver.got}) == 1


@pytest.mark.parametrize("code", [400, 404, 410, 302])
def test_what_is_refused_for_good_is_not_tried_again(
    receiver: Receiver, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [code]
    sink = Webhook(receiver.url, first_pause=0.01)
    sink(notice(1))
    sink(notice(2))
    sink.close()
    assert len(receiver.got) == 2
    assert f"answers {code}" in caplog.text
    assert "/hook" not in caplog.text  # with Slack, the path is the secret


def test_an_end_that_does_not_answer_holds_up_nobody_and_loses_nothing_that_fits(
    receiver: Receiver, guard: Guard
) -> None:
    receiver.may_answer.clear()
    sink = Webhook(receiver.url)
    for number in range(5):
        sink(notice(number))  # returns at once
    with guard.run("r"):
        pay()
    receiver.may_answer.set()
    sink.close()
    assert len(receiver.got) == 5


def test_with_slack_nothing_in_a_name_mentions_a_channel(receiver: Receiver) -> None:
    sink = Webhook(receiver.url, slack=True)
    sink(notice())
    sink.close()
    [message] = receiver.got
    assert message.json == {"text": "agentguard, firing: run r has used 90% &lt;!channel&gt; &amp; 1"}


@pytest.mark.parametrize("url", ["", "ftp://x", "https://", "file:///etc/passwd"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="a webhook is an address"):
        Webhook(url)


# --- commands ------------------------------------------------------------------------------------


def test_the_test_command_says_whether_it_arrived(
    receiver: Receiver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    given = ["--webhook", receiver.url, "--secret-file", str(tmp_path / "secret")]
    assert main(["alerts", "test", *given]) == 0
    assert receiver.got[0].json["data"]["kind"] == "test"
    assert "Webhook-Signature" in receiver.got[0].headers
    receiver.answers = [403]
    assert main(["alerts", "test", *given]) == 5
    assert main(["alerts", "test", "--webhook", f"http://127.0.0.1:{free_port()}/"]) == 5
    assert main(["alerts", "test"]) == 2
    capsys.readouterr()


def test_a_watch_by_command_logs_each_alert_with_the_time_and_its_zone_or_as_json(
    home: Path, sqlite_guard: Guard
) -> None:
    environment = os.environ | {"AGENTGUARD_HOME": str(home), "TZ": "Asia/Kolkata"}
    command = [sys.executable, "-m", "agentguard.cli", "alerts", "watch", "--budget-share", "0.5"]
    said = []
    with sqlite_guard.run("r", budget=Budget(usd="0.5")) as run:
        pay()
        for options in ([], ["--json"]):
            with subprocess.Popen(
                [*command, *options], env=environment, stderr=subprocess.PIPE, text=True
            ) as process:
                assert process.stderr is not None
                said.append(process.stderr.readline())
                process.terminate()
                assert process.communicate()[1] == ""
    text, told = said[0], json.loads(said[1])
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}}\+05:30 firing: .*{run.id}.*\n", text)
    assert told["at"].endswith("+00:00")
    assert (told["level"], told["logger"]) == ("WARNING", "agentguard.alerts")
    assert (told["alert"], told["subject"], told["state"]) == ("budget", run.id, "firing")
    assert told["message"] in text


def test_the_list_is_what_a_watch_would_tell(sqlite_guard: Guard, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite_guard.run("r", budget=Budget(usd="0.5")) as run:
        pay()
        assert main(["alerts", "list", "--budget-share", "0.5", "--json"]) == 0
        [found] = json.loads(capsys.readouterr().out)
        assert (found["kind"], found["subject"]) == ("budget", run.id)
        assert main(["alerts", "list", "--budget-share", "0.9"]) == 0
        assert "nothing needs an operator" in capsys.readouterr().out
        assert main(["alerts", "list", "--budget-share", "7"]) == 2
        assert main(["alerts", "list", "--rate", "much"]) == 2
