"""What an operator is told without looking: once, signed, again where it did not arrive, in no agent's way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Iterator
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
from agentguard.killswitch.model import Kill
from agentguard.testing import FakeClock
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


def test_a_relay_that_is_not_heard_is_told(redis_url: str) -> None:
    with Guard.open("memory://", kill_switch=redis_url, telemetry=False) as guard:
        assert [alert.kind for alert in alerts(Reader(guard).read(), Thresholds())] == ["relay_stale"]
        with guard.run("r"):  # which starts the relay of this host
            wait_until(lambda: alerts(Reader(guard).read(), Thresholds()) == [])


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
