"""What the console draws, compares and adds up: curves, bars, runs side by side, costs, health."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from starlette.requests import Request

from agentguard import Budget, Guard, KillSwitchTriggeredError, Run, StoreUnavailableError, Usage
from agentguard.audit.cost_book import BOOK_KEYS, CostBook
from agentguard.console import metrics, pages, rendering
from agentguard.console.app import create_app
from agentguard.console.auth import ConsoleError, Identity
from agentguard.console.calls import Call
from agentguard.console.data import Console
from agentguard.console.spending import curves
from agentguard.console.tokens import Role, Tokens
from agentguard.monitoring import BUCKET_SECONDS, LiveRuns, RunStatus, status_of
from agentguard.testing.fakes import FakeClock
from tests.consoles import Client, Site

XSS = "<script>alert(1)</script>"
CENT = Usage(usd="0.01", tokens=10)
VIEWER = Identity("ann", Role.VIEWER, None)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with made.guard:
        yield made


@pytest.fixture
def viewer(site: Site) -> Client:
    return site.client(site.token(Role.VIEWER))


def text_of(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", answer.text)


def pay(run: Run, results: list[object], usage: Usage = CENT) -> None:
    for result in results:
        run.call("pay", lambda result=result: result, usage=usage)


def status(guard: Guard, run_id: str) -> RunStatus:
    row = guard.components.store.row(run_id)
    assert row is not None
    return status_of(guard.components.store, row, guard.components.clock)


def fork_of(guard: Guard, origin: Run, at: int, results: list[object]) -> Run:
    """Fork a run after its event `at`, and give the calls after it other results."""
    with guard.fork(origin.id, at) as fork:
        pay(fork, results)
    return fork


# --- what was spent over time ----------------------------------------------------------------------


def test_the_curves_of_a_run_end_at_what_it_has_spent_and_never_fall(site: Site) -> None:
    with site.guard.run("a", budget=Budget(usd="0.10")) as run:
        pay(run, [1] * 7)
        drawn = {
            each.name: each for each in curves(site.guard.components.store, status(site.guard, run.id), 0)
        }
    assert {name: each.spent for name, each in drawn.items()} == {"usd": Decimal("0.07"), "tokens": 70}
    assert (drawn["usd"].limit, drawn["tokens"].limit) == (Decimal("0.10"), None)
    heights = [float(point.partition(",")[2]) for point in drawn["usd"].line.split()]
    assert heights == sorted(heights, reverse=True)
    assert (heights[0], heights[-1], drawn["usd"].limit_y) == (100, pytest.approx(30), 0)


def test_a_curve_does_not_fall_where_the_log_has_grown_since_the_run_was_looked_at(site: Site) -> None:
    with site.guard.run("a") as run:
        pay(run, [1])
        before = status(site.guard, run.id)
        pay(run, [2])
        [usd, _] = curves(site.guard.components.store, before, 0)
    assert usd.spent == Decimal("0.02")
    assert usd.line.endswith(",0")


def test_a_limit_far_above_what_was_spent_is_told_and_not_drawn(site: Site, viewer: Client) -> None:
    with site.guard.run("a", budget=Budget(usd=1000)) as run:
        pay(run, [1])
    page = text_of(viewer, f"/runs/{run.id}")
    assert "limit $1,000.00</span> (far above this picture)" in page
    assert "<line" not in page


def test_a_run_that_spent_nothing_has_no_curve(site: Site, viewer: Client) -> None:
    with site.guard.run("a") as run:
        run.call("x", int)
    assert 'class="chart"' not in text_of(viewer, f"/runs/{run.id}")


def test_a_fork_begins_with_what_it_took_over(site: Site) -> None:
    with site.guard.run("a") as origin:
        pay(origin, [1, 2, 3])
    fork = fork_of(site.guard, origin, 4, [1, 2, 3])
    [usd, _] = curves(site.guard.components.store, status(site.guard, fork.id), 0)
    assert usd.spent == Decimal("0.03")


def test_a_long_run_is_drawn_from_few_of_its_events_and_is_too_long_to_compare(
    site: Site, viewer: Client
) -> None:
    with site.guard.run("long") as run:
        pay(run, [1] * 10_001)
    [usd, tokens] = curves(site.guard.components.store, status(site.guard, run.id), 0)
    assert (usd.spent, tokens.spent) == (Decimal("100.01"), 100_010)
    assert len(usd.line.split()) < 300
    answer = viewer.get(f"/runs/{run.id}?beside={run.id}")
    assert answer.status_code == 400
    assert f"agentguard diff {run.id} {run.id}" in answer.text


def test_the_rate_of_a_live_run_is_told_for_each_whole_span_of_the_last_minutes() -> None:
    clock = FakeClock()
    with Guard.in_memory(clock=clock, telemetry=False) as guard, guard.run("a") as run:
        live = LiveRuns(guard.components.store, guard.components.clock)
        for cents in (1, 0, 3):
            pay(run, [1] * cents)
            clock.advance(BUCKET_SECONDS)
        [now] = live.read()
        assert [str(usd) for usd in now.spending] == ["0.01", "0", "0.03"]
        clock.advance(3600)
        assert live.read()[0].spending == ()


def test_the_rate_is_drawn_on_the_overview(site: Site, viewer: Client, tmp_path: Path) -> None:
    clock = FakeClock()
    with Guard.in_memory(clock=clock, telemetry=False) as guard, guard.run(XSS) as run:
        for cents in (1, 2):
            pay(run, [1] * cents)
            clock.advance(BUCKET_SECONDS)
        console = Console(guard, Tokens(tmp_path / "t.json"))
        shown = pages.overview(Call(console, VIEWER, Request({"type": "http"}), {})).body.decode()
    assert 'class="spark"' in shown
    assert '<polyline points="0,50 1000,0"/>' in shown
    assert XSS not in shown


def test_each_step_has_a_bar_that_lies_in_the_time_of_the_page(site: Site, viewer: Client) -> None:
    with site.guard.run("a") as run:
        pay(run, [1, 2])
    bars = re.findall(
        r'class="span".*?<rect x="([\d.]+)" width="([\d.]+)"', text_of(viewer, f"/runs/{run.id}")
    )
    assert len(bars) == 2
    assert all(float(x) >= 0 and float(x) + float(width) <= 1000 for x, width in bars)


# --- verify, what-if, side by side -----------------------------------------------------------------


def test_a_log_is_held_against_an_anchor_that_was_kept(site: Site, viewer: Client) -> None:
    with site.guard.run("a") as run:
        pay(run, [1])
    head = run.summary().head
    page = f"/runs/{run.id}?verify=1&anchor="
    assert f"<code>{head.seq}:{head.hash}</code>" in text_of(viewer, page)
    assert "truncation not excluded" in text_of(viewer, page)
    assert f"it agrees with the anchor at event {head.seq}" in text_of(
        viewer, f"{page}{head.seq}:{head.hash}"
    )
    assert "it agrees" in text_of(viewer, f"{page}{run.id}={head.seq}:{head.hash}")
    assert "NOT intact" in text_of(viewer, f"{page}{head.seq}:{'0' * 64}")
    assert "NOT intact" in text_of(viewer, f"{page}{head.seq + 1}:{head.hash}")


@pytest.mark.parametrize("anchor", ["x", "1:ab", f"other=1:{'0' * 64}", f"{XSS}=1:{'0' * 64}"])
def test_what_is_no_anchor_of_the_run_is_refused(site: Site, viewer: Client, anchor: str) -> None:
    with site.guard.run("a") as run:
        pay(run, [1])
    answer = viewer.get(f"/runs/{run.id}?verify=1&anchor={anchor}")
    assert answer.status_code == 400
    assert XSS not in answer.text


def test_what_other_limits_would_have_done_is_shown_beside_what_was(site: Site, viewer: Client) -> None:
    with site.guard.run("a", budget=Budget(usd=1)) as run:
        pay(run, [1, 2, 3])
    stopped = text_of(viewer, f"/runs/{run.id}?whatif=1&usd=0.02")
    assert re.search(r"stopped at event <a[^>]*>7</a></b> \(main/pay#3\) by the limit of usd", stopped)
    assert 'data-label="As it was">COMPLETED' in stopped
    assert 'data-label="What if">not stopped' in text_of(viewer, f"/runs/{run.id}?whatif=1&usd=0.03&steps=3")
    for query in ("", "&usd=x", "&usd=-1", "&tokens=1.5", "&steps=1e999"):
        assert viewer.get(f"/runs/{run.id}?whatif=1{query}").status_code == 400, query


def test_a_fork_is_shown_beside_its_origin_call_by_call(site: Site, viewer: Client) -> None:
    with site.guard.run("origin") as origin:
        pay(origin, ["same", "before", "later"])
    fork = fork_of(site.guard, origin, 4, ["same", "after", "later"])
    page = text_of(viewer, f"/runs/{origin.id}")
    assert f'href="/runs/{origin.id}?beside={fork.id}"' in page
    assert f'href="/runs/{fork.id}?beside={origin.id}"' in text_of(viewer, f"/runs/{fork.id}")
    beside = text_of(viewer, f"/runs/{origin.id}?beside={fork.id}")
    assert "They differ in 1 place: outcome at main/pay#2." in beside
    rows = re.findall(r"<tr( class=\"differs\")?><td><b>pay</b>(.*?)</tr>", beside)
    assert [bool(differs) for differs, _ in rows] == [False, True, False]
    assert ["(shared)" in row for _, row in rows] == [True, False, False]
    assert "&#34;before&#34;</pre> <b>$0.0100</b>" in rows[1][1]
    assert "&#34;after&#34;</pre> <b>$0.0100</b>" in rows[1][1]
    assert [d.kind for d in site.guard.diff(origin.id, fork.id).differences] == ["outcome"]


def test_calls_that_only_one_run_made_stand_alone(site: Site, viewer: Client) -> None:
    runs = []
    for count in (1, 2):
        with site.guard.run("a") as run:
            pay(run, [1] * count)
        runs.append(run.id)
    beside = text_of(viewer, f"/runs/{runs[0]}?beside={runs[1]}")
    assert "They differ in 1 place: extra at main/pay#2." in beside
    assert beside.count("<i>no such call</i>") == 1


def test_side_by_side_shows_no_values_where_they_are_hidden_and_nothing_of_another_tenant(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, hide_payloads=True)
    with site.guard:
        with site.guard.run("mine", tenant="mine") as mine:
            mine.call("pay", lambda value: value, "the-secret")
        with site.guard.run("theirs", tenant="theirs") as theirs:
            theirs.call("pay", lambda value: value, "the-secret")
        viewer, operator = (site.client(site.token(role)) for role in (Role.VIEWER, Role.OPERATOR))
        path = f"/runs/{mine.id}?beside={theirs.id}"
        assert "the-secret" not in viewer.get(path).text
        assert "completed" in text_of(viewer, path)
        assert "the-secret" in operator.get(path).text
        own = site.client(site.token(Role.ADMIN, "mine"))
        for refused in (path, f"/runs/{theirs.id}?beside={mine.id}", f"/live/{theirs.id}"):
            assert own.get(refused).status_code == 404, refused


def test_nothing_in_the_new_views_becomes_markup(site: Site) -> None:
    browser = site.browser(Role.ADMIN)
    site.guard.set_tenant_budget(XSS.replace("/", "_"), Budget(usd=5))
    with site.guard.run(XSS, budget=Budget(usd=1, tokens=100)) as origin:
        origin.call(XSS, lambda value: value, XSS, usage=CENT)
        with pytest.raises(ValueError, match="alert"):
            origin.call("fails", _fail, usage=CENT)
    with site.guard.fork(origin.id, 4, name=XSS) as fork:
        fork.call(XSS, lambda value: value, XSS, usage=CENT)
        shown = [
            browser.get(path).text
            for path in (
                "/",
                "/costs?by=step",
                "/costs?by=name",
                f"/runs/{origin.id}",
                f"/runs/{origin.id}?beside={fork.id}",
                f"/runs/{origin.id}?whatif=1&usd=0.001",
                f"/runs/{fork.id}?verify=1",
                f"/runs/{origin.id}?beside={XSS}",
                f"/costs?since={XSS}",
            )
        ]
    assert not any(XSS in text or "<script>" in text for text in shown)
    assert all("&lt;script&gt;" in text for text in shown)


def _fail() -> None:
    raise ValueError(XSS)


def test_an_event_links_to_its_trace_where_traces_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider

    from agentguard.telemetry.spans import Telemetry

    with Guard.in_memory(telemetry=Telemetry(TracerProvider())) as guard:
        with guard.run("a") as run:
            pay(run, [1])
        tokens = Tokens(tmp_path / "t.json")
        header = {"authorization": f"Bearer {tokens.add('ann', Role.VIEWER)}"}
        url = "https://jaeger.example/trace/{trace_id}?x=1"
        page = text_of(Client(create_app(guard, tokens, trace_url=url), header), f"/runs/{run.id}")
        [trace] = {event.trace_id for event in guard.history(run.id) if event.trace_id}
    assert f'href="https://jaeger.example/trace/{trace}?x=1"' in page


@pytest.mark.parametrize(
    "url", ["jaeger/{trace_id}", "javascript:alert('{trace_id}')", "https://jaeger.example/"]
)
def test_an_address_of_traces_that_cannot_be_meant_is_refused(site: Site, url: str) -> None:
    with pytest.raises(ValueError, match="trace_id"):
        create_app(site.guard, site.tokens, trace_url=url)


# --- runs ------------------------------------------------------------------------------------------


def test_runs_are_filtered_by_day_and_by_what_they_spent_and_are_sorted(tmp_path: Path) -> None:
    clock = FakeClock()
    with Guard.in_memory(clock=clock, telemetry=False) as guard:
        for day, cents in enumerate((1, 5, 3)):
            with guard.run(f"day-{day}") as run:
                pay(run, [1] * cents)
                clock.advance(60 * cents)
            clock.advance(86_400)
        tokens = Tokens(tmp_path / "t.json")
        header = {"authorization": f"Bearer {tokens.add('ann', Role.VIEWER)}"}
        client = Client(create_app(guard, tokens), header)

        def names(query: str) -> list[str]:
            listed = [each["name"] for each in client.get(f"/api/runs?{query}").json()["runs"]]
            page = text_of(client, f"/runs?{query}")
            assert re.findall(r'<td><a href="[^"]+">(day-\d)</a>', page) == listed
            return [name.removeprefix("day-") for name in listed]

        assert names("") == names("sort=newest") == ["2", "1", "0"]
        assert names("sort=spent") == names("sort=longest") == ["1", "2", "0"]
        assert names("usd=0.03") == ["2", "1"]
        assert names("since=2026-01-02") == ["2", "1"]
        assert names("until=2026-01-02") == ["1", "0"]
        assert names("since=2026-01-02&until=2026-01-02") == ["1"]
        assert names("since=0001-01-01&until=9999-12-31") == ["2", "1", "0"]
        assert names("since=2026-01-02&sort=spent&usd=0.04&name=day*") == ["1"]


def test_what_a_live_run_has_spent_up_to_now_is_shown_filtered_and_sorted_by(
    site: Site, viewer: Client
) -> None:
    with site.guard.run("done") as run:
        pay(run, [1])
    with site.guard.run("wild") as run, site.guard.run("idle"):
        pay(run, [1] * 5)
        for query in ("usd=0.03", "usd=0.03&state=RUNNING", "usd=0.03&sort=spent"):
            found = viewer.get(f"/api/runs?{query}").json()["runs"]
            assert [(each["name"], each["usage"]["usd"]) for each in found] == [("wild", "0.05")]
            assert 'data-label="Spent" class="number">$0.05' in text_of(viewer, f"/runs?{query}")
        names = [each["name"] for each in viewer.get("/api/runs?sort=spent").json()["runs"]]
        assert names == ["wild", "done", "idle"]


@pytest.mark.parametrize(
    "query",
    ["since=x", "until=2026-13-01", "usd=x", "usd=-1", "usd=nan", "usd=inf", "sort=x"],
)
def test_a_filter_of_runs_that_cannot_be_meant_is_refused(viewer: Client, query: str) -> None:
    assert viewer.get(f"/runs?{query}").status_code == 400
    assert viewer.get(f"/api/runs?{query}").status_code == 400


# --- costs -----------------------------------------------------------------------------------------


def spending_runs(guard: Guard) -> None:
    for number in range(6):
        with guard.run(f"run-{number % 2}", tenant=("acme", "shop", "lab")[number % 3]) as run:
            pay(run, [1] * (number + 1))
            run.call("ask", int, kind="llm", reserve=None, usage=lambda _: Usage())


def test_the_costs_of_the_console_are_those_of_the_guard(site: Site) -> None:
    spending_runs(site.guard)
    book = CostBook(site.guard.components.store)
    with site.guard.run("goes-on", tenant="acme") as live:
        for _ in range(3):
            pay(live, [1, 2])
            assert book.read_on(60)
            for tenant in (None, "acme", "nobody"):
                found = book.lines(BOOK_KEYS, tenant=tenant)
                assert found == {key: site.guard.costs(key, tenant=tenant) for key in BOOK_KEYS}
    assert book.lines(["day"], since="9999-01-01") == {"day": []}


def test_costs_are_added_up_a_while_at_a_time_and_each_run_once(site: Site) -> None:
    spending_runs(site.guard)
    book, looks = CostBook(site.guard.components.store), 0
    while not book.read_on(0):
        looks += 1
        if looks == 2:  # a run that came meanwhile
            with site.guard.run("new") as run:
                pay(run, [1])
    assert book.lines(BOOK_KEYS) == {key: site.guard.costs(key) for key in BOOK_KEYS}


def test_costs_that_are_not_all_there_say_so_and_make_no_file(site: Site, tmp_path: Path) -> None:
    spending_runs(site.guard)
    console = Console(site.guard, Tokens(tmp_path / "t.json"), adding_seconds=0)

    def answer(query: bytes) -> str:
        request = Request({"type": "http", "query_string": query, "headers": []})
        return pages.costs(Call(console, VIEWER, request, {})).body.decode()

    assert "still being added up" in answer(b"")
    assert 'http-equiv="refresh"' in answer(b"")
    with pytest.raises(ConsoleError, match="still being added up"):
        answer(b"format=csv")


@pytest.mark.usefixtures("within_a_day")
def test_costs_are_drawn_by_day_model_and_tenant(site: Site, viewer: Client) -> None:
    spending_runs(site.guard)
    page = text_of(viewer, "/costs?by=tenant")
    assert len(re.findall(r'class="chart[ "]', page)) == 3
    assert re.search(r'<b>lab</b></td><td data-label="Money" class="number">\$0.0900', page)
    assert "refresh" not in page
    own = text_of(site.client(site.token(Role.VIEWER, "acme")), "/costs?by=tenant")
    assert "acme" in own
    assert not re.search("shop|lab<", own)
    assert len(re.findall(r'class="chart[ "]', own)) == 2


def test_days_are_drawn_as_a_week_at_least_so_that_one_is_no_wall(site: Site, viewer: Client) -> None:
    with site.guard.run("r") as run:
        pay(run, ["x"])
    chart = text_of(viewer, "/costs").partition("By day")[2].partition("</svg>")[0]
    [width] = [float(found) for found in re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="([\d.]+)"', chart)][
        -1:
    ]
    whole = float(re.findall(r'viewBox="0 0 ([\d.]+)', chart)[0])
    assert width <= whole / 7


def test_the_control_log_says_who_did_what_to_which_run_and_why(site: Site) -> None:
    browser = site.browser()
    with site.guard.run("r") as run:
        browser.post(f"/runs/{run.id}/pause", reason="lunch")
        site.guard.resume(run.id, actor="bob", reason="back")
        site.guard.kill(tenant="other", reason="burns", actor="ann")
    rows = re.findall(r"<tr><td>(.*?)</tr>", text_of(browser, "/control"), re.DOTALL)
    said = [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in rows]
    assert said[0].startswith("kill set tenant other ann burns")
    assert said[1].startswith(f"resume run {run.id} bob back")
    assert said[2].startswith(f"pause run {run.id} console:operator-all lunch")
    assert f'href="/runs/{run.id}"' in rows[1]


def test_the_page_of_a_kill_shows_its_run_though_it_was_ordered_elsewhere(site: Site, viewer: Client) -> None:
    with suppress(KillSwitchTriggeredError), site.guard.run("r") as run:
        generation = site.guard.kill(run=run.id, reason="burns", actor="ann")
    text = text_of(viewer, f"/kills/{generation}")
    assert re.search(rf'<a href="/runs/{run.id}">r</a>.*?<td class="good">KILLED</td>', text)


def test_an_alert_leads_to_its_run_and_a_question_shows_the_call(site: Site, viewer: Client) -> None:
    with site.guard.run("spends", budget=Budget(usd="0.01")) as run:
        pay(run, ["x"])
        text = text_of(viewer, "/")
    assert f'<a href="/runs/{run.id}">run {run.id} (spends) has used 100% of its limit of usd</a>' in text
    assert rendering.templates.filters["arguments"]([["a", 1], {"to": XSS}]) == f'"a", 1, to="{XSS}"'


def test_costs_have_no_bars_where_nothing_was_charged(viewer: Client) -> None:
    assert "Nothing was charged." in text_of(viewer, "/costs")
    assert "<svg" not in text_of(viewer, "/costs")


# --- health ----------------------------------------------------------------------------------------


def away(*_: object, **__: object) -> None:
    raise StoreUnavailableError("the store is away")


def test_the_overview_says_how_the_parts_stand(site: Site, viewer: Client) -> None:
    assert re.search(r'class="good"><b>✓ store</b>', text_of(viewer, "/"))
    kinds = {part["kind"] for part in viewer.get("/api/now").json()["health"]}
    assert kinds == {"store", "kill switch"}
    assert 'agentguard_part_works{kind="store",name="memory://"} 1' in viewer.get("/metrics").text


def test_a_publisher_that_is_behind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    with Guard.open(
        f"sqlite:///{tmp_path / 'a.db'}", kill_switch="memory", clock=clock, telemetry=False
    ) as guard:
        with guard.run("a") as run:
            pay(run, [1])
        positions = guard.components.abilities.positions
        assert positions is not None
        positions.save_position("kafka:events", 2)
        clock.advance(90)
        late = Console(guard, Tokens(tmp_path / "t.json")).now(VIEWER).health
        positions.save_position("kafka:events", 2**40)
        done = Console(guard, Tokens(tmp_path / "t.json")).now(VIEWER).health
        monkeypatch.setattr(guard.components.store, "positions", away)
        unknown = Console(guard, Tokens(tmp_path / "t.json")).now(VIEWER)
    assert [part.ok for part in unknown.health if part.kind == "publisher"] == [None]
    assert 'kind="publisher"' not in metrics.text(unknown)
    [[late_one], [done_one]] = (
        [part for part in parts if part.kind == "publisher"] for parts in (late, done)
    )
    assert (late_one.name, late_one.detail, late_one.ok) == ("kafka:events", "90 s behind", False)
    assert (done_one.detail, done_one.ok) == ("has published all", True)


def test_a_token_of_one_tenant_is_told_whether_it_works_and_no_figure(site: Site) -> None:
    own = site.client(site.token(Role.VIEWER, "acme"))
    health = own.get("/api/now").json()["health"]
    assert [(part["kind"], part["name"], part["detail"]) for part in health] == [
        ("store", "", "works"),
        ("kill switch", "", "works"),
    ]


def test_without_its_store_the_overview_says_so_and_still_kills(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, program = site.browser(), site.client(site.token(Role.VIEWER))
    csrf = browser.csrf("/runs")
    monkeypatch.setattr(site.guard.components.store, "rows", away)
    overview = text_of(browser, "/")
    assert "store cannot be used: the store is away" in overview
    assert "KILL" in overview
    question = text_of(browser, "/kill?scope=global")
    assert "cannot be told" in question
    assert "every live run that it covers" in question
    assert program.get("/api/now").status_code == 503
    assert program.get("/metrics").status_code == 503
    fields = {"scope": "global", "target": "", "reason": "burns", "confirm": "kill all"}
    assert browser.post("/kill", csrf=csrf, **fields).status_code == 303
    assert [kill.scope for kill in site.guard.kills()] == ["global"]
