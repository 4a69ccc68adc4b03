"""A headless Chromium for tests: Debian's package, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.servers import missing

_BINARIES = ("/usr/lib/chromium/chromium-headless-shell", "/usr/lib/chromium/chromium")
_NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
#: So that it does nothing but show pages.
_QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: How long, in milliseconds, a page may take on a busy machine.
PATIENCE = 60_000

DESKTOP = (1280, 900)
PHONE = (390, 844)


def binary() -> str:
    """Return the path of a Chromium; without one, the test is skipped, or fails in CI."""
    for path in _BINARIES:
        if Path(path).exists():
            return path
    return next(filter(None, map(shutil.which, _NAMES)), None) or missing(
        "apt-get install --no-install-recommends chromium-headless-shell"
    )


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser, and end it."""
    path = binary()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_QUIET), timeout=PATIENCE)
        try:
            yield browser
        finally:
            browser.close()


class Window:
    """A window of a size and color scheme, and what its pages complained of."""

    def __init__(self, context: BrowserContext) -> None:
        context.set_default_timeout(PATIENCE)
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def faults(self) -> list[str]:
        """Return what cannot be read on the page as it is: what overlaps, or sticks out."""
        found: list[str] = self.page.evaluate(_FAULTS)
        return found


@contextmanager
def window(
    browser: Browser,
    url: str,
    size: tuple[int, int] = DESKTOP,
    *,
    dark: bool = False,
    javascript: bool = True,
) -> Iterator[Window]:
    """Open a window, and close it; a page that complained fails the test."""
    context = browser.new_context(
        base_url=url,
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        java_script_enabled=javascript,
    )
    try:
        opened = Window(context)
        yield opened
        assert opened.complaints == []
    finally:
        context.close()


def log_in(opened: Window, token: str) -> None:
    """Log in with a token, as a person does."""
    page = opened.page
    page.goto("/")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Overview").wait_for()


def tab_through(page: Page) -> list[str]:
    """Press Tab all the way round a page; return what was not reached, or had no focus to be seen."""
    page.evaluate("window.reached = new Set(); window.last = null")
    faults: list[str] = []
    while True:
        page.keyboard.press("Tab")
        fault: str | None = page.evaluate(_FOCUSED)
        if fault == "end":
            break
        if fault:
            faults.append(fault)
    missed: list[str] = page.evaluate(_NOT_REACHED)
    return faults + missed


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has the focus is called so."""
    for _ in range(200):
        page.keyboard.press("Tab")
        if focused(page) == name:
            return
    raise AssertionError(f"Tab does not lead to {name!r}")


def focused(page: Page) -> str:
    """Return what the element that has the focus is called."""
    return str(page.evaluate(_NAME_OF_FOCUSED))


_NAME_OF_FOCUSED = """
() => {
  const e = document.activeElement;
  return (e.labels && e.labels.length ? e.labels[0].innerText : e.innerText).trim();
}
"""

# The outline that the style sheet draws, in the window.  A field for a date has the focus for several Tabs.
_FOCUSED = """
() => {
  const e = document.activeElement;
  if (e === document.body || e === window.last) return null;
  if (window.reached.has(e)) return "end";
  window.reached.add(window.last = e);
  const said = `<${e.tagName.toLowerCase()}> ${(e.innerText || e.name || "").slice(0, 40)}`;
  const style = getComputedStyle(e);
  if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2) return `${said} shows no focus`;
  const b = e.getBoundingClientRect();
  if (b.bottom <= 0 || b.top >= innerHeight || b.right <= 0 || b.left >= innerWidth) return `${said} is out of sight`;
  return null;
}
"""

_NOT_REACHED = """
() => [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary")]
  .filter((e) => e.checkVisibility() && !window.reached.has(e))
  .map((e) => `<${e.tagName.toLowerCase()}> ${(e.innerText || e.name || "").slice(0, 40)} is not reached by Tab`)
"""

# What is meant to be read or pressed must lie in the window (or in something that scrolls), and must not be
# covered by anything but what it is inside of, or what is inside of it.
_FAULTS = """
() => {
  const faults = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > root.clientWidth) {
    faults.push(`the page is ${root.scrollWidth} wide in a window of ${root.clientWidth}`);
  }
  const said = (e) => `<${e.tagName.toLowerCase()}> ${(e.innerText || e.name || "").slice(0, 40)}`;
  const scrolls = (e) => {
    for (let p = e.parentElement; p; p = p.parentElement) {
      if (p !== root && getComputedStyle(p).overflowX !== "visible") return true;
    }
    return false;
  };
  const boxes = [...document.querySelectorAll("a, button, input:not([type=hidden]), select, td, th, dt, dd, h1, h2")]
    .filter((e) => e.checkVisibility() && !e.classList.contains("skip") && !scrolls(e))
    .map((e) => [e, e.getBoundingClientRect()])
    .filter(([, b]) => b.width && b.height);
  for (const [e, b] of boxes) {
    if (b.right > root.clientWidth + 1 || b.left < -1) faults.push(`${said(e)} sticks out`);
    if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline" && e.tagName !== "INPUT") {
      faults.push(`${said(e)} does not hold its text`);
    }
  }
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (wide > 1 && high > 1 && !a.contains(b) && !b.contains(a)) faults.push(`${said(a)} overlaps ${said(b)}`);
  }));
  return faults;
}
"""
