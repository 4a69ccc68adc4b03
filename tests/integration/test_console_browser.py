"""The console as an operator has it: in a browser, over agents that run in processes of their own.

Pictures of the pages are written into docs/console, for docs/how-to/console.md; `AGENTGUARD_TEST_PICTURES` names another
folder.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("uvicorn")
pytest.importorskip("typer")
pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Browser, Page, expect

from tests.browser import DESKTOP, PATIENCE, PHONE, chromium, focused, log_in, tab_through, tab_to, window
from tests.consoles import Served, line, serving
from tests.kit import wait_until

#: Where pictures go; read before the tests' own settings are cleared.
PICTURES = Path(os.environ.get("AGENTGUARD_TEST_PICTURES") or Path(__file__).parents[2] / "docs/console")

expect.set_options(timeout=PATIENCE)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def run_ids(agents: list[subprocess.Popen[str]], each: int) -> list[str]:
    return [line(agent) for agent in agents for _ in range(each)]


def usd_of(page: Page, name: str) -> float:
    row = page.locator("#live tr", has_text=name).first
    expect(row).to_contain_text("$")  # a run on a busy machine may have spent nothing yet
    found = re.search(r"\$([\d,.]+)", row.inner_text())
    assert found is not None
    return float(found[1].replace(",", ""))


def test_runs_in_three_processes_are_killed_from_the_page_that_shows_what_they_spend(
    served: Served, browser: Browser
) -> None:
    counts = {"mail": 17, "search": 17, "wild": 16}
    agents = [
        served.agent("spend_in_threads", name, "acme", str(count), "0.5") for name, count in counts.items()
    ]
    ids = [line(agent) for agent, count in zip(agents, counts.values(), strict=True) for _ in range(count)]
    with window(browser, served.url) as opened:
        log_in(opened, served.token)
        page = opened.page
        expect(page.locator("#live")).to_contain_text("wild-5")
        before = usd_of(page, "wild-5")
        page.wait_for_function(
            "before => [...document.querySelectorAll('#live tr')].some(row => row.innerText.includes('wild-5')"
            " && Number((row.innerText.match(/\\$([\\d.]+)/) || [0, 0])[1]) > before)",
            arg=before,
        )  # without a load of the page
        page.get_by_label("What").select_option("tenant")
        page.get_by_label("Tenant or run").fill("acme")
        page.get_by_role("button", name="KILL …").click()
        expect(page.get_by_role("alert")).to_contain_text("stops 50 live runs")
        page.get_by_label("Reason").fill("burns money")
        page.get_by_label("Type kill acme").fill("kill all")
        page.get_by_role("button", name="KILL", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("not confirmed, nothing was done")
        [complaint] = opened.complaints
        assert "400 (Bad Request)" in complaint
        opened.complaints.clear()
        page.go_back()
        page.get_by_label("Reason").fill("burns money")
        page.get_by_label("Type kill acme").fill("kill acme")
        page.get_by_role("button", name="KILL", exact=True).click()
        expect(page.get_by_role("status")).to_have_class("good")
        # Agents that have ended since are counted no more.
        expect(page.get_by_role("status")).to_contain_text(re.compile(r"(\d) of \1 processes have acted"))
        expect(page.locator("td", has_text="KILLED")).to_have_count(50)
    ends = [line(agent) for agent, count in zip(agents, counts.values(), strict=True) for _ in range(count)]
    assert ends == ["stopped: burns money"] * 50
    assert len(set(ids)) == 50


def test_a_run_that_is_watched_shows_its_new_events_and_its_end_without_a_load_of_the_page(
    served: Served, browser: Browser
) -> None:
    agent = served.agent("spend", "watched", "acme", "0.05")
    run_id = line(agent)
    with window(browser, served.url) as opened:
        log_in(opened, served.token)
        page = opened.page
        page.goto(f"/runs/{run_id}")
        page.evaluate("window.loaded = true")
        rows = page.locator("#events li")
        expect(rows).not_to_have_count(before := rows.count())
        assert rows.count() > before
        expect(page.locator("#now svg[aria-label='usd spent over time'] polyline")).to_be_visible()
        with served.client() as client:
            order = {"scope": "run", "target": run_id, "reason": "enough", "confirm": f"kill {run_id[-6:]}"}
            client.post("/api/kill", json=order)
        expect(page.locator("#now")).to_contain_text("KILLED")
        expect(page.locator("#events")).to_contain_text("run_killed")
        numbers = rows.evaluate_all("rows => rows.map(row => row.value)")
        assert numbers == list(range(1, len(numbers) + 1))
        assert page.evaluate("window.loaded") is True
    assert line(agent) == "stopped: enough"


def test_a_payment_is_approved_and_another_denied_with_a_reason(served: Served, browser: Browser) -> None:
    agent = served.agent("ask", "pays", "acme", "500", "900")
    line(agent)
    with window(browser, served.url) as opened:
        log_in(opened, served.token)
        page = opened.page
        for usd, choice in (("500", "Approve"), ("900", "Deny")):
            expect(page.locator("#waiting")).to_contain_text(usd)
            page.locator("#waiting").get_by_label("Reason").fill("as agreed")
            page.get_by_role("button", name=choice).click()
            assert line(agent) == ("paid 500" if choice == "Approve" else "denied 900: as agreed")


def test_a_limit_is_raised_and_then_kept(served: Served, browser: Browser) -> None:
    agent = served.agent("ask_for_more", "pays", "acme", "3")
    run_id = line(agent)
    assert line(agent) == "paid 0"
    with window(browser, served.url) as opened:
        log_in(opened, served.token)
        waiting = opened.page.locator("#waiting")
        expect(waiting).to_contain_text("1 allowed, 1 spent, 0 reserved, 1 more requested")
        waiting.get_by_label("New limit of usd").fill("2")
        waiting.get_by_label("Reason").first.fill("the customer agreed")
        waiting.get_by_role("button", name="Raise").click()
        assert line(agent) == "paid 1"
        opened.page.goto("/")
        expect(waiting).to_contain_text("2 allowed, 2 spent")
        waiting.get_by_label("Reason").last.fill("that is enough")
        waiting.get_by_role("button", name="Deny").click()
        assert line(agent) == "stopped at 2"
        opened.page.goto("/control")
        expect(opened.page.locator("main")).to_contain_text("the customer agreed")
        expect(opened.page.locator("main")).to_contain_text("that is enough")
        assert run_id in opened.page.locator("main").inner_text()


def test_without_javascript_runs_are_read_and_killed(served: Served, browser: Browser) -> None:
    agents = [served.agent("spend_in_threads", name, "acme", "2") for name in ("mail", "wild")]
    ids = run_ids(agents, 2)
    with window(browser, served.url, javascript=False) as opened:
        log_in(opened, served.token)
        page = opened.page
        before = usd_of(page, "wild-1")
        wait_until(lambda: page.reload() and usd_of(page, "wild-1") > before)
        page.get_by_role("link", name="Runs").click()
        page.get_by_label("Name").fill("wild-*")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("tbody tr")).to_have_count(2)
        page.get_by_role("link", name="wild-1").click()
        expect(page.locator("#events")).to_contain_text("spin#1")
        page.get_by_role("link", name="Overview").click()
        page.locator("#live tr", has_text="wild-1").get_by_role("link", name="KILL …").click()
        expect(page.get_by_role("alert")).to_contain_text("stops 1 live runs")
        page.get_by_label("Reason").fill("burns money")
        page.get_by_label("Type kill").fill(page.locator("label code").inner_text())
        page.get_by_role("button", name="KILL", exact=True).click()
        expect(page.get_by_role("status")).to_have_class("good")  # the page loads itself until then
        expect(page.locator("tbody tr")).to_contain_text(["KILLED"])
        page.get_by_role("link", name="Overview").first.click()
        page.get_by_role("button", name="KILL …").click()
        page.get_by_label("Reason").fill("all of it")
        page.get_by_label("Type kill all").fill("kill all")
        page.get_by_role("button", name="KILL", exact=True).click()
        expect(page.get_by_role("status")).to_have_class("good")
    assert [line(agents[0]), line(agents[0])] == ["stopped: all of it"] * 2
    assert sorted([line(agents[1]), line(agents[1])]) == ["stopped: all of it", "stopped: burns money"]
    assert len(set(ids)) == 4


def test_a_kill_by_the_keyboard_alone(served: Served, browser: Browser) -> None:
    agent = served.agent("spend", "wild", "acme")
    run_id = line(agent)
    with window(browser, served.url) as opened:
        page = opened.page
        page.goto("/")
        expect(page.get_by_label("Token")).to_be_focused()
        page.keyboard.type(served.token)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Overview").wait_for()
        tab_to(page, "wild")
        spent = usd_of(page, "wild")
        page.wait_for_function(
            "spent => Number(document.querySelector('#live td[data-label=Spent]').innerText.slice(1)) > spent",
            arg=spent,
        )
        assert focused(page) == "wild", "it has the focus still, though its table was drawn anew"
        page.keyboard.press("Tab")
        assert focused(page) == "KILL …"
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=f"Kill run {run_id}").wait_for()
        expect(page.get_by_label("Reason")).to_be_focused()
        page.keyboard.type("burns money")
        page.keyboard.press("Tab")
        page.keyboard.type(f"kill {run_id[-6:]}")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_class("good")
    assert line(agent) == "stopped: burns money"


def test_a_press_of_the_mouse_that_lasts_is_no_lost_click(served: Served, browser: Browser) -> None:
    agent = served.agent("spend", "pressed", "acme")
    run_id = line(agent)
    with window(browser, served.url) as opened:
        log_in(opened, served.token)
        page = opened.page
        page.locator("#live").get_by_role("link", name="pressed").hover()
        page.mouse.down()
        page.evaluate(
            "() => new Promise((told) => { let n = 0; const s = new EventSource('/live');"
            " s.onmessage = () => { if (++n === 3) { s.close(); told(); } } })"
        )  # the page was told something new meanwhile
        page.mouse.up()
        page.wait_for_url(f"**/runs/{run_id}")


def test_every_action_is_reached_by_tab_and_shows_that_it_is(served: Served, browser: Browser) -> None:
    agents = [
        served.agent("spend", "live", "acme", "30"),
        served.agent("ask", "refund", "shop", "120"),
        served.agent("ask_for_more", "campaign", "shop", "2"),
    ]
    ids = run_ids(agents, 1)
    origin, fork = line(served.agent("forked", "order-paper", "shop")).split()
    paths = ["/", "/runs", "/costs?by=step", "/control", "/kill?scope=tenant&target=acme"]
    paths += [*(f"/runs/{run_id}" for run_id in ids), f"/runs/{origin}?whatif=1&usd=0.90&verify=1"]
    paths += [f"/runs/{origin}?beside={fork}", "/login"]
    with window(browser, served.url, javascript=False) as opened:  # so that nothing moves meanwhile
        log_in(opened, served.token)
        expect(opened.page.locator("#waiting")).to_contain_text("higher limit")
        faults = {}
        for path in paths:
            opened.page.goto(path)
            if found := tab_through(opened.page):
                faults[path] = found
        assert faults == {}


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_can_be_read(served: Served, browser: Browser, size: tuple[int, int], dark: bool) -> None:
    agents = [
        served.agent("spend_in_threads", "mail-for-the-customers-of-the-northern-region", "acme", "3"),
        served.agent("ask", "refund", "shop", "120"),
        served.agent("ask_for_more", "campaign", "shop", "2"),
    ]
    run_id = run_ids(agents, 1)[0]
    assert line(served.agent("past", "acme", "9")) == "asked"
    origin, fork = line(served.agent("forked", "order-paper", "shop")).split()
    with window(browser, served.url, size, dark=dark) as opened:
        log_in(opened, served.token)
        page = opened.page
        expect(page.locator("#waiting")).to_contain_text("120")
        expect(page.locator("#waiting")).to_contain_text("higher limit")
        expect(page.locator("#live tr", has_text="northern-region-2")).to_contain_text("$")
        faults = {}
        pages = {
            "runs": "/runs",
            "run": f"/runs/{run_id}",
            "ended": f"/runs/{origin}?whatif=1&usd=0.90&verify=1",
            "beside": f"/runs/{origin}?beside={fork}",
            "costs": "/costs?by=step",
            "control": "/control",
            "kill": "/kill?scope=tenant&target=acme",
            "login": "/login",
            "overview": "/",  # the last, so that there are rates to draw
        }
        for name, path in pages.items():
            page.goto(path)
            if found := opened.faults():
                faults[name] = found
            picture(page, name, size, dark=dark)
        assert faults == {}


def picture(page: Page, name: str, size: tuple[int, int], *, dark: bool) -> None:
    """Write a picture; this folder is no part of the repository."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    where = f"{name}-{'phone' if size == PHONE else 'desktop'}-{'dark' if dark else 'light'}.png"
    page.screenshot(path=PICTURES / where, full_page=size == PHONE)
