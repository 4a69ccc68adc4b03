"""The console: who may see and do what, and what an attacker must not."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")


from agentguard import Budget, Guard, KillSwitchTriggeredError, StoreUnavailableError
from agentguard.console.app import create_app
from agentguard.console.middleware import MOST_BYTES, Limits
from agentguard.console.tokens import Role, TokenError, Tokens
from agentguard.runs.state import RunState
from tests.consoles import Client, Site

XSS = "<script>alert(1)</script>"
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with made.guard:
        yield made


# --- tokens ----------------------------------------------------------------------------------------


def test_the_file_of_tokens_has_no_secret_and_only_its_user_reads_it(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "deep" / "tokens.json")
    secret = tokens.add("on-call", Role.OPERATOR)
    assert secret.rpartition("_")[2] not in tokens.path.read_text()
    assert tokens.path.stat().st_mode & 0o077 == 0


def test_a_token_of_a_taken_name_is_refused_until_the_first_is_revoked(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    first = tokens.add("on-call", Role.VIEWER)
    with pytest.raises(TokenError, match="already"):
        tokens.add("on-call", Role.ADMIN)
    tokens.revoke("on-call")
    assert tokens.check(first) is None
    assert tokens.check(tokens.add("on-call", Role.ADMIN)) is not None


@pytest.mark.parametrize("secret", ["", "_", "agt", "agt_", "agt__", "agt_x_y", "é\ud800", "a" * 10_000])
def test_what_is_no_token_opens_nothing(tmp_path: Path, secret: str) -> None:
    tokens = Tokens(tmp_path / "tokens.json")
    right = tokens.add("on-call", Role.VIEWER)
    assert tokens.check(secret) is None
    assert tokens.check(right.rpartition("_")[0] + "_") is None


@pytest.mark.parametrize("name", ["", " x", "a\nb", "\x1b[31m", "x" * 65])
def test_a_name_that_could_forge_a_record_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Tokens(tmp_path / "tokens.json").add(name, Role.VIEWER)


def test_a_file_of_tokens_that_is_damaged_opens_nothing(site: Site) -> None:
    secret = site.token(Role.ADMIN)
    site.tokens.path.write_text("{")
    assert site.client(secret).get("/api/now").status_code == 409


# --- log-in ----------------------------------------------------------------------------------------

PAGES = ["/", "/runs", "/runs/x", "/costs", "/control", "/kill", "/kills/1", "/runs/x/run.jsonl"]
PROGRAMS = ["/api/now", "/api/runs", "/api/runs/x", "/api/openapi.json", "/metrics", "/live"]


@pytest.mark.parametrize("path", PAGES + PROGRAMS)
def test_nothing_is_shown_without_a_token(site: Site, path: str) -> None:
    answer = site.client().get(path)
    assert answer.status_code in (303, 401)
    assert answer.headers.get("location", "/login") == "/login"


@pytest.mark.parametrize("path", PAGES + PROGRAMS)
def test_nothing_is_shown_for_a_wrong_token(site: Site, path: str) -> None:
    assert site.client("agt_00_wrong").get(path).status_code == 401


def test_the_cookie_of_a_session_is_out_of_reach_of_scripts_and_other_sites(site: Site) -> None:
    cookie = site.client().log_in(site.token(Role.VIEWER)).headers.get_list("set-cookie")
    [session] = [each for each in cookie if each.startswith("agentguard_session=")]
    assert "HttpOnly" in session
    assert "SameSite=strict" in session


def test_a_session_that_was_planted_before_the_log_in_is_not_taken_over(site: Site) -> None:
    client = site.client()
    client.http.cookies.set("agentguard_session", "planted")
    client.log_in(site.token(Role.VIEWER))
    other = site.client()
    other.http.cookies.set("agentguard_session", "planted")
    assert other.get("/").status_code == 303


def test_a_log_in_that_another_site_sends_is_refused(site: Site) -> None:
    answer = site.client().http.post("/login", data={"csrf": "", "token": site.token(Role.VIEWER)})
    assert answer.status_code == 403
    assert "agentguard_session" not in answer.cookies


def test_guessing_is_slowed_down_for_the_right_token_too(site: Site) -> None:
    secret, client = site.token(Role.ADMIN), site.client()
    statuses = [client.log_in("agt_00_guess").status_code for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    assert client.log_in(secret).status_code == 429
    assert site.client(secret).get("/api/now").status_code == 429


def test_right_tokens_are_never_counted_as_guesses(site: Site) -> None:
    client = site.client(site.token(Role.VIEWER))
    assert {client.get("/api/now").status_code for _ in range(15)} == {200}


def test_a_session_ends_with_its_token(site: Site) -> None:
    browser = site.browser(Role.OPERATOR)
    assert browser.get("/").status_code == 200
    site.tokens.revoke("operator-all")
    assert browser.get("/").status_code == 303


def test_an_expired_token_opens_nothing(site: Site) -> None:
    secret = site.tokens.add("brief", Role.ADMIN, lifetime=timedelta(microseconds=1))
    assert site.client(secret).get("/api/now").status_code == 401


def test_logging_out_ends_the_session_on_the_server(site: Site) -> None:
    browser = site.browser()
    cookie = browser.http.cookies["agentguard_session"]
    assert browser.post("/logout").status_code == 303
    browser.http.cookies.set("agentguard_session", cookie)
    assert browser.get("/").status_code == 303


# --- what is sent ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/kill", "/revive", "/logout", "/runs/x/pause", "/runs/x/resume", "/runs/x/decide"]
)
@pytest.mark.parametrize("csrf", ["", "wrong", "é"])
def test_a_form_without_the_token_of_its_session_does_nothing(site: Site, path: str, csrf: str) -> None:
    browser = site.browser(Role.ADMIN)
    fields = {"scope": "global", "target": "", "reason": "x", "confirm": "kill all"}
    assert browser.post(path, csrf=csrf, **fields).status_code == 403
    assert site.guard.kills() == []


def test_a_form_with_the_token_of_another_session_does_nothing(site: Site) -> None:
    other = site.browser(Role.VIEWER).csrf("/")
    assert site.browser(Role.ADMIN).post("/logout", csrf=other).status_code == 403


def test_the_api_takes_no_action_from_a_cookie(site: Site) -> None:
    body = {"scope": "global", "target": "", "reason": "x", "confirm": "kill all"}
    assert site.browser(Role.ADMIN).http.post("/api/kill", json=body).status_code == 401
    assert site.guard.kills() == []


def test_a_filter_that_the_api_does_not_know_is_refused_and_not_passed_over(site: Site) -> None:
    """A misspelt filter would show what was not asked for."""
    client = site.client(site.token(Role.ADMIN))
    listed = client.get("/api/runs?tenat=acme&limit=5")
    assert (listed.status_code, "there is no 'tenat' here; known are " in listed.text) == (400, True)
    assert client.get("/api/now?tenant=acme").json() == {"error": "there is no 'tenant' here; known are none"}
    body = {"scope": "global", "target": "", "reason": "x", "confirm": "kill all"}
    assert client.http.post("/api/kill?dry_run=yes", json=body).status_code == 400
    assert site.guard.kills() == []


def test_a_body_that_is_too_large_is_refused(site: Site) -> None:
    answer = site.client().http.post("/login", content=b"x" * (MOST_BYTES + 1), headers=FORM)
    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"[", b"[]", b'{"reason": 1}', b"[" * 60_000, b"\xff"])
def test_a_body_that_is_no_object_of_strings_is_refused(site: Site, body: bytes) -> None:
    answer = site.client(site.token(Role.ADMIN)).http.post("/api/kill", content=body)
    assert answer.status_code == 400


def test_a_form_of_too_many_fields_is_refused(site: Site) -> None:
    answer = site.client().http.post("/login", content="a=1&" * 100, headers=FORM)
    assert answer.status_code == 400


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "console.css/../../app.py"])
def test_no_path_leads_out_of_the_assets(site: Site, name: str) -> None:
    assert site.client().get(f"/static/{name}").status_code in (303, 404)


@pytest.mark.parametrize("path", ["/login", "/static/console.js", "/nowhere", "/api/now"])
def test_every_answer_forbids_scripts_of_others_and_frames(site: Site, path: str) -> None:
    policy = site.client().get(path).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("query", ["state=NOWHERE", "state=%3Cscript%3E"])
def test_a_filter_that_cannot_be_meant_is_named(site: Site, query: str) -> None:
    answer = site.browser().get(f"/runs?{query}")
    assert answer.status_code == 400
    assert "<script>" not in answer.text


@pytest.mark.parametrize("query", ["by=x", "since=yesterday", "since=0001-01-01&by=day"])
def test_costs_refuse_what_cannot_be_meant(site: Site, query: str) -> None:
    assert site.browser().get(f"/costs?{query}").status_code in (200, 400)


# --- what is shown ---------------------------------------------------------------------------------


def test_no_name_reason_argument_or_result_becomes_markup(site: Site) -> None:
    browser = site.browser(Role.ADMIN)
    with site.guard.run(XSS, budget=Budget(steps=9), metadata={"x": XSS}) as run:
        run.call("echo", lambda value: value, XSS)
        browser.post(f"/runs/{run.id}/pause", reason=XSS)
        shown = [
            browser.get(path).text
            for path in ("/", "/runs", f"/runs/{run.id}", f"/kill?scope=run&target={run.id}")
        ]
        browser.post(f"/runs/{run.id}/resume")
    generation = site.guard.kill(reason=XSS, tenant="other")
    shown += [browser.get(path).text for path in ("/", "/control", f"/kills/{generation}", "/costs?by=name")]
    assert all("&lt;script&gt;" in text for text in shown)
    assert not any(XSS in text for text in shown)


def test_a_cell_of_the_csv_is_never_a_formula(site: Site) -> None:
    with site.guard.run("=cmd()") as run:
        run.call("x", lambda: 1)
    assert "'=cmd()" in site.browser().get("/costs?by=name&format=csv").text


def test_arguments_and_results_are_hidden_from_viewers_where_that_is_set(tmp_path: Path) -> None:
    site = Site(tmp_path, hide_payloads=True)
    with site.guard:
        with site.guard.run("a") as run:
            run.call("echo", lambda value: value, "the-secret")
        paths = [f"/runs/{run.id}", f"/api/runs/{run.id}/events", f"/runs/{run.id}/run.jsonl"]
        viewer, operator = (site.client(site.token(role)) for role in (Role.VIEWER, Role.OPERATOR))
        assert not any("the-secret" in viewer.get(path).text for path in paths)
        assert viewer.get(paths[2]).status_code == 403
        assert all("the-secret" in operator.get(path).text for path in paths)


def test_metrics_name_the_live_runs_of_each_tenant_and_escape_them(site: Site) -> None:
    with site.guard.run("a", tenant="acme"):
        text = site.client(site.token(Role.VIEWER)).get("/metrics").text
    assert 'agentguard_runs_live{tenant="acme",state="RUNNING"} 1' in text


def test_a_kill_needs_no_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client = site.client(site.token(Role.OPERATOR))

    def away(**given: object) -> None:
        raise StoreUnavailableError("the store is away")

    with pytest.raises(KillSwitchTriggeredError), site.guard.run("a") as run:
        with monkeypatch.context() as patched:
            patched.setattr(site.guard.components.store, "rows", away)
            killed = client.http.post(
                "/api/kill",
                json={"scope": "global", "target": "", "reason": "it burns", "confirm": "kill all"},
            )
        assert killed.status_code == 200, killed.text
        with suppress(KillSwitchTriggeredError):
            run.call("x", int)
        assert isinstance(run.stop, KillSwitchTriggeredError)


def test_a_form_that_is_cut_off_is_not_carried_out(site: Site) -> None:
    browser = site.browser()
    with site.guard.run("a", budget=Budget(usd=5)) as run:
        whole = f"csrf={browser.csrf('/')}&usd=100&reason=more".encode()
        cut = whole[: whole.index(b"usd=1") + len(b"usd=1")]
        sent: list[dict[str, object]] = []
        arriving = iter(
            [{"type": "http.request", "body": cut, "more_body": True}, {"type": "http.disconnect"}]
        )

        async def receive() -> dict[str, object]:
            return next(arriving)

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        cookies = "; ".join(f"{name}={value}" for name, value in browser.http.cookies.items())
        path = f"/runs/{run.id}/limit"
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"testserver"),
                (b"cookie", cookies.encode()),
                (b"content-type", FORM["content-type"].encode()),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
        }
        asyncio.run(site.app(scope, receive, send))
        assert sent == []
        assert run.summary().budget.usd == 5


def test_a_page_after_a_run_that_is_not_there_is_refused(site: Site) -> None:
    answer = site.client(site.token(Role.VIEWER)).get("/api/runs?after=gone")
    assert answer.status_code == 400
    assert "begin again" in answer.text


def test_runs_are_paged_without_gap_or_repetition(site: Site) -> None:
    made = []
    for _ in range(120):
        with site.guard.run("a") as run:
            made.append(run.id)
    client, seen, after = site.client(site.token(Role.VIEWER)), [], ""
    while after is not None:
        page = client.get(f"/api/runs?after={after}").json()
        seen += [each["run_id"] for each in page["runs"]]
        after = page["after"]
    assert seen == made[::-1]


def test_events_are_paged_without_gap_or_repetition(site: Site) -> None:
    with site.guard.run("a") as run:
        for number in range(150):
            run.call("x", lambda n: n, number)
    client, seen, after = site.client(site.token(Role.VIEWER)), [], 0
    while after is not None:
        page = client.get(f"/api/runs/{run.id}/events?after={after}").json()
        seen += [event["seq"] for event in page["events"]]
        after = page["after"]
    assert seen == list(range(1, site.guard.summary(run.id).head.seq + 1))


def test_a_download_is_what_export_writes_and_can_be_verified(site: Site, tmp_path: Path) -> None:
    with site.guard.run("a") as run:
        run.call("x", lambda: 1)
    file = tmp_path / "run.jsonl"
    file.write_bytes(site.browser().get(f"/runs/{run.id}/run.jsonl").content)
    with Guard.open(f"file://{file}", telemetry=False) as copy:
        assert copy.verify(run.id)
    assert "intact" in site.browser(Role.VIEWER).get(f"/runs/{run.id}?verify=1").text


# --- who may do what -------------------------------------------------------------------------------

KILL = {"scope": "global", "target": "", "reason": "burns", "confirm": "kill all"}


def test_a_viewer_changes_nothing(site: Site) -> None:
    client = site.client(site.token(Role.VIEWER))
    with site.guard.run("a") as run:
        for path in ("/api/kill", "/api/revive", f"/api/runs/{run.id}/pause", f"/api/runs/{run.id}/resume"):
            assert client.http.post(path, json=KILL).status_code == 403, path
        body = {"key": "x", "decision": "approve"}
        assert client.http.post(f"/api/runs/{run.id}/decide", json=body).status_code == 403
        assert client.get("/kill").status_code == 403
        assert site.guard.summary(run.id).state is RunState.RUNNING
    assert site.guard.kills() == []


def test_an_operator_does_not_revive(site: Site) -> None:
    site.guard.kill(reason="x")
    assert site.client(site.token(Role.OPERATOR)).http.post("/api/revive", json=KILL).status_code == 403
    assert not site.guard.kills()[0].cleared
    assert site.client(site.token(Role.ADMIN)).http.post("/api/revive", json=KILL).status_code == 200
    assert site.guard.kills()[0].cleared


def test_a_token_of_one_tenant_sees_and_stops_nothing_of_another(site: Site) -> None:
    client, browser = site.client(site.token(Role.ADMIN, "mine")), site.browser(Role.OPERATOR, "mine")
    site.guard.set_tenant_budget("theirs", Budget(usd=1))
    site.guard.kill(reason="private", tenant="theirs-too")
    with site.guard.run("secret-name", tenant="theirs") as run:
        run.call("secret-step", lambda: 1)
        paths = [f"/runs/{run.id}{rest}" for rest in ("", "/run.jsonl")]
        paths += [f"/api/runs/{run.id}{rest}" for rest in ("", "/events", "/verify")]
        paths += [f"/kill?scope=run&target={run.id}", "/kills/2", "/control"]
        shown = [
            "/",
            "/runs?tenant=theirs",
            "/runs",
            "/costs?by=name",
            "/api/now",
            "/metrics",
            "/kill?scope=tenant&target=mine",
        ]
        assert [path for path in paths if client.get(path).status_code < 400] == []
        texts = [each.get(path).text for path in shown for each in (client, browser)]
        assert not any(word in text for word in ("secret-name", "theirs-too", "private") for text in texts)
        orders = [
            {"scope": "global", "target": ""},
            {"scope": "tenant", "target": "theirs"},
            {"scope": "run", "target": run.id},
        ]
        for order in orders:
            words = {"reason": "x", "confirm": "kill all"}
            assert client.http.post("/api/kill", json=order | words).status_code in (403, 404)
            assert client.http.post("/api/revive", json=order | words).status_code in (403, 404)
        for act in ("pause", "resume", "decide"):
            body = {"reason": "x", "key": "x", "decision": "deny"}
            assert client.http.post(f"/api/runs/{run.id}/{act}", json=body).status_code == 404
        assert site.guard.summary(run.id).state is RunState.RUNNING
    assert [kill.target for kill in site.guard.kills()] == ["theirs-too"]


@pytest.mark.parametrize(
    "change",
    [
        {"reason": " "},
        {"confirm": ""},
        {"confirm": "kill"},
        {"scope": "all"},
        {"target": "x"},
        {"reason": "x" * 501},
    ],
)
def test_a_kill_wants_a_reason_a_scope_and_its_own_confirmation(site: Site, change: dict[str, str]) -> None:
    assert site.browser().post("/kill", **KILL | change).status_code in (400, 403)
    assert site.guard.kills() == []


def test_a_reason_cannot_forge_lines_of_a_record(site: Site) -> None:
    site.browser().post("/kill", **KILL | {"reason": "a\r\n\x1b[2Jb"})
    assert site.guard.kills()[0].reason == "a   [2Jb"


def test_a_key_and_the_time_behind_it_stay_apart(site: Site) -> None:
    with site.guard.run("a") as run:
        run.call("x", lambda: 1)
    assert re.search(r"main/x#1</small>\s+<small>\d{4}-", site.browser().get(f"/runs/{run.id}").text)


def test_the_dashboard_has_a_panel_for_each_metric_and_for_no_other(site: Site) -> None:
    client = site.client(site.token(Role.VIEWER))
    names = set(re.findall(r"# TYPE (\S+)", client.get("/metrics").text))
    panels = client.get("/api/grafana.json").json()["panels"]
    assert {target["expr"] for panel in panels for target in panel["targets"]} == names
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


def test_alerts_are_on_the_overview_in_the_api_and_in_the_metrics(site: Site) -> None:
    client = site.client(site.token(Role.VIEWER))
    with site.guard.run("nearly", budget=Budget(steps=10)) as run:
        for _ in range(9):
            run.call("x", int)
        assert "has used 90% of its limit of steps" in site.browser().get("/").text
        [alert] = client.get("/api/now").json()["alerts"]
        assert (alert["kind"], alert["subject"]) == ("budget", run.id)
        assert 'agentguard_alerts{kind="budget"} 1' in client.get("/metrics").text


def test_pause_and_resume_are_on_record_with_their_actor(site: Site) -> None:
    browser = site.browser()
    with site.guard.run("a") as run:
        assert browser.post(f"/runs/{run.id}/pause", reason="wait").status_code == 303
        assert site.guard.summary(run.id).state is RunState.PAUSED
        assert browser.post(f"/runs/{run.id}/pause", reason="again").status_code == 409
        browser.post(f"/runs/{run.id}/resume")
    actors = [e.data["actor"] for e in site.guard.history(run.id) if e.type in ("run_paused", "run_resumed")]
    assert actors == ["console:operator-all"] * 2


def test_a_limit_that_is_raised_is_on_record_and_holds(site: Site) -> None:
    client = site.client(site.token(Role.OPERATOR))
    with site.guard.run("a", budget=Budget(usd=1, steps=7)) as run:
        assert client.http.post(f"/api/runs/{run.id}/limit", json={"usd": "5"}).status_code == 200
        assert site.guard.summary(run.id).budget == Budget(usd=5, steps=7)
        for usd in ("", "-1", "nan", "x", "1e999999"):
            assert client.http.post(f"/api/runs/{run.id}/limit", json={"usd": usd}).status_code == 400, usd
    [event] = [each for each in site.guard.history(run.id) if each.type == "run_budget_set"]
    assert event.data["actor"] == "console:operator-all"
    assert client.http.post(f"/api/runs/{run.id}/limit", json={"usd": "9"}).status_code == 409


@pytest.mark.parametrize("run_id", ["a/b", "a/pause", "é %?#&", "<b>"])
def test_a_run_of_any_id_is_shown_and_paused(site: Site, run_id: str) -> None:
    browser = site.browser()
    with site.guard.run("a", run_id=run_id) as run:
        [link] = re.findall(r'href="(/runs/[^"]+)"', browser.get("/").text)
        assert browser.get(link).status_code == 200
        assert browser.post(f"{link}/pause", reason="x").headers["location"] == link
        assert site.guard.summary(run.id).state is RunState.PAUSED
        browser.post(f"{link}/resume")


def test_a_body_that_does_not_arrive_is_waited_for_no_longer_than_that() -> None:
    sent: list[Any] = []

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/login", "headers": []}
    asyncio.run(Limits(never, body_seconds=0.01)(scope, never, send))
    assert sent[0]["status"] == 408


def test_a_live_run_whose_log_was_altered_hides_no_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    tokens = Tokens(tmp_path / "tokens.json")
    secret = tokens.add("on-call", Role.OPERATOR)
    with Guard.open(url, kill_switch="memory", telemetry=False) as owner, ExitStack() as runs:
        for name in ("evil", "good"):
            runs.enter_context(owner.run(name))
        with closing(sqlite3.connect(tmp_path / "runs.db")) as connection, connection:
            triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for (trigger,) in triggers:
                connection.execute(f"DROP TRIGGER {trigger}")
            connection.execute("UPDATE event SET body = CAST(replace(body, 'evil', 'live') AS BLOB)")
        with Guard.open(url, kill_switch="memory", telemetry=False) as guard:
            client = Client(create_app(guard, tokens), {"authorization": f"Bearer {secret}"})
            text = client.get("/").text
            assert "log altered" in text
            assert "good" in text
            [evil] = [run for run in guard.runs() if run.damaged]
            assert client.get(f"/runs/{evil.run_id}?verify=1").status_code == 200
