"""What an attacker tries at the console's edges: guesses, headers, files, slow clients, forged proxies."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import hashlib
import hmac
import io
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("starlette")
pytest.importorskip("jinja2")
pytest.importorskip("uvicorn")
pytest.importorskip("typer")

import httpx
import uvicorn
from uvicorn.server import ServerState

from agentguard import Usage
from agentguard.cli import main
from agentguard.console import streams
from agentguard.console.middleware import Limits
from agentguard.console.protocol import PatientProtocol
from agentguard.console.tokens import Role, Tokens
from tests.consoles import Served, Site, serving

INJECTED = "a\r\nSet-Cookie: stolen=1\r\n\r\n<b>"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with made.guard:
        yield made


# --- guessing ------------------------------------------------------------------------------------


def test_every_secret_is_compared_once_and_by_a_digest_of_one_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared says nothing of the right secret, nor whether there is such a token."""
    tokens = Tokens(tmp_path / "tokens.json")
    right = tokens.add("on-call", Role.VIEWER)
    _, number, own = right.split("_", 2)
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def watched(a: str, b: str) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    guesses = [f"agt_{number}_", f"agt_{number}_{own[:-1]}", f"agt_{number}_{own}x", f"agt_{number}_x"]
    guesses += [f"agt_other_{own}", f"xyz_{number}_{own}", own, "", "agt__", "a" * 100_000, "é\ud800"]
    for secret in guesses:
        compared.clear()
        assert tokens.check(secret) is None
        [(given, expected)] = compared
        assert (len(given), len(expected)) == (64, 64)
        typed = secret.partition("_")[2].partition("_")[2]
        assert given == hashlib.sha256(typed.encode("utf-8", "surrogatepass")).hexdigest()
    assert tokens.check(right) is not None


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("GET", f"/runs/{quote(INJECTED)}", {}),
        ("GET", f"/runs/{quote(INJECTED)}/run.jsonl", {}),
        ("GET", f"/runs?name={quote(INJECTED)}&after={quote(INJECTED)}", {}),
        ("GET", f"/costs?by={quote(INJECTED)}&format=csv", {}),
        ("GET", f"/kill?scope=run&target={quote(INJECTED)}", {}),
        ("GET", f"/static/{quote(INJECTED)}", {}),
        ("GET", f"/kills/{quote(INJECTED)}", {}),
        ("POST", f"/runs/{quote(INJECTED)}/pause", {"reason": INJECTED}),
        ("POST", "/runs/known/pause", {"reason": INJECTED}),
        ("POST", "/runs/known/decide", {"key": INJECTED, "decision": "approve"}),
        (
            "POST",
            "/kill",
            {"scope": "tenant", "target": INJECTED, "reason": "x", "confirm": f"kill {INJECTED}"},
        ),
        ("POST", "/kill", {"scope": "tenant", "target": "t", "reason": INJECTED, "confirm": "kill t"}),
        ("POST", "/revive", {"scope": "tenant", "target": INJECTED, "reason": INJECTED}),
        ("POST", "/login", {"token": INJECTED}),
    ],
)
def test_nothing_that_is_sent_begins_a_header_of_its_own(
    site: Site, method: str, path: str, fields: dict[str, str]
) -> None:
    browser = site.browser(Role.ADMIN)
    with site.guard.run("known", run_id="known"):
        answer = (
            browser.post(path, csrf=browser.csrf("/"), **fields) if method == "POST" else browser.get(path)
        )
    assert answer.status_code < 500
    assert "stolen" not in str(answer.headers.get_list("set-cookie"))
    assert not any({"\r", "\n"} & set(name + value) for name, value in answer.headers.multi_items())


def test_the_name_of_a_download_is_ours_whatever_the_run_is_called(site: Site) -> None:
    name = 'x"; filename="evil.exe'
    with site.guard.run(name, run_id=name):
        pass
    answer = site.browser().get(f"/runs/{quote(name, safe='')}/run.jsonl")
    assert answer.headers["content-disposition"] == 'attachment; filename="run.jsonl"'


# --- files ---------------------------------------------------------------------------------------

FORMULAS = ["=cmd()", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff0b1", "\uff201"]
ESCAPES = ["model\x1b[2J", "model\x9b31m", "model\u202egnp", "model\x07"]


def record_costs(site: Site, models: list[str]) -> None:
    with site.guard.run("costs") as run:
        for model in models:
            told = {"gen_ai.request.model": model}
            run.call("ask", int, kind="llm", usage=Usage(usd="0.01"), attributes=told)


def test_a_csv_has_no_formula_and_no_command_for_a_terminal(site: Site) -> None:
    record_costs(site, [*FORMULAS, *ESCAPES, "gpt=5"])
    text = site.browser().get("/costs?by=model&format=csv").text
    keys = [row[0] for row in csv.reader(io.StringIO(text))][1:]
    assert len(keys) == len({*FORMULAS, *ESCAPES}) + 1
    assert not any(key.strip()[0] in "=+-@\uff1d\uff0b\uff0d\uff20" for key in keys)
    assert "gpt=5" in keys, "what is no formula stays as it is"
    assert text.replace("\r\n", "").isprintable()


def test_a_download_has_no_command_for_a_terminal(site: Site) -> None:
    with site.guard.run("r") as run:
        run.call("echo", lambda text: text, f"\x1b[2J\x9b31m\u202e{INJECTED}")
    content = site.browser().get(f"/runs/{run.id}/run.jsonl").content
    assert not any(byte < 32 for byte in content.replace(b"\n", b""))
    assert all(json.loads(line) for line in content.splitlines())


# --- slow clients --------------------------------------------------------------------------------


class Reader:
    """An open page over ASGI: it reads as many messages as a test says, and then none."""

    def __init__(self, app: Any, secret: str, reads: int) -> None:
        self._reads = reads
        self.sent: list[dict[str, Any]] = []
        self.stuck = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/live",
            "raw_path": b"/live",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"authorization", f"Bearer {secret}".encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.task = asyncio.create_task(app(scope, self._receive(), self._send))

    def _receive(self) -> Any:
        asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive() -> Any:
            for message in asked:
                return message
            return await asyncio.Event().wait()

        return receive

    async def until_stuck(self) -> None:
        """Wait until it reads no more; fail if the page was ended before."""
        waiting = asyncio.create_task(self.stuck.wait())
        await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert self.stuck.is_set(), self.sent

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if len(self.sent) > self._reads:
            self.stuck.set()
            await asyncio.Event().wait()


def test_pages_that_do_not_read_hold_one_message_each_and_no_thread(site: Site) -> None:
    """There are 40 threads for requests: were one held for each page, the last answer would not come."""
    secret = site.token(Role.VIEWER)

    async def main() -> None:
        pages = [Reader(site.app, secret, reads=2) for _ in range(60)]
        await asyncio.gather(*(page.until_stuck() for page in pages))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(site.app), base_url="http://c") as client:
            answer = await client.get("/api/now", headers={"authorization": f"Bearer {secret}"})
        assert answer.status_code == 200
        assert {len(page.sent) for page in pages} == {3}, "the head, the first part, and the one that waits"
        for page in pages:
            page.task.cancel()
        await asyncio.gather(*(page.task for page in pages), return_exceptions=True)

    asyncio.run(main())


def test_a_page_that_does_not_read_is_given_up_and_its_place_is_free(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_MOST_STREAMS", 1)
    secret = site.token(Role.VIEWER)

    async def status(app: Any) -> int:
        page = Reader(app, secret, reads=0)
        await page.stuck.wait()
        await asyncio.wait([page.task], timeout=None if app is not site.app else 0)
        page.task.cancel()
        await asyncio.wait([page.task])
        return int(page.sent[0]["status"])

    async def main() -> None:
        first = Reader(site.app, secret, reads=2)
        await first.stuck.wait()
        assert await status(site.app) == 503, "it has the only place, and is still waited for"
        first.task.cancel()
        await asyncio.wait([first.task])
        given_up = Reader(Limits(site.app, read_seconds=0.01), secret, reads=2)
        await asyncio.wait_for(given_up.task, 60)  # it ends by itself, without an error
        assert await status(site.app) == 200

    asyncio.run(main())


def test_pages_that_come_at_once_are_no_more_than_may_be_open(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_MOST_STREAMS", 2)
    secret = site.token(Role.VIEWER)

    async def main() -> None:
        pages = [Reader(site.app, secret, reads=2) for _ in range(9)]
        ends = [
            asyncio.wait(
                [page.task, asyncio.create_task(page.stuck.wait())], return_when=asyncio.FIRST_COMPLETED
            )
            for page in pages
        ]
        await asyncio.gather(*ends)
        assert sum(page.stuck.is_set() for page in pages) == 2
        for page in pages:
            page.task.cancel()
        await asyncio.wait([page.task for page in pages])

    asyncio.run(main())


@asynccontextmanager
async def listening(app: Any, seconds: float) -> AsyncIterator[int]:
    """Serve an app as `agentguard serve` does; headers may take so many seconds."""
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    kind = type("Fast", (PatientProtocol,), {"header_seconds": seconds})
    server = await asyncio.get_running_loop().create_server(
        lambda: kind(config, ServerState(), {}), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


async def until_closed(port: int, *parts: bytes, dribble: bytes = b"") -> bytes:
    """Send parts, each after the answer to the last, then a byte at a time; return all that came until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    for part in parts:
        writer.write(part)
        if part.endswith(b"\r\n\r\n"):
            found += await reader.readuntil(b"done")
    for byte in dribble:
        with contextlib.suppress(TimeoutError, ConnectionError):
            found += await asyncio.wait_for(reader.read(1), 0.01)
            writer.write(bytes([byte]))
        if reader.at_eof():
            break
    with contextlib.suppress(ConnectionError):
        found += await reader.read()
    writer.close()
    return found


async def answer_done(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})


HEADERS = b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("parts", "answers"),
    [((), 0), ((b"GET",), 0), ((HEADERS,), 0), ((HEADERS + b"\r\n", HEADERS), 1)],
    ids=["nothing", "half a line", "half of the headers", "half of a second request"],
)
@pytest.mark.parametrize("dribble", [b"", b"x" * 100_000], ids=["then nothing", "then a byte now and then"])
def test_a_client_that_does_not_finish_its_headers_is_not_waited_for(
    parts: tuple[bytes, ...], answers: int, dribble: bytes
) -> None:
    async def main() -> bytes:
        async with listening(answer_done, 0.2) as port:
            return await asyncio.wait_for(until_closed(port, *parts, dribble=dribble), 60)

    assert asyncio.run(main()).count(b"done") == answers


def test_a_client_that_reads_nothing_of_an_endless_answer_is_given_up() -> None:
    """What it has not read waits in buffers of a bounded size, and no longer than that."""

    async def main() -> int:
        ended, sent = asyncio.Event(), 0

        async def endless(scope: Any, receive: Any, send: Any) -> None:
            nonlocal sent
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 2**16, "more_body": True})
                    sent += 2**16
            finally:
                ended.set()

        async with listening(Limits(endless, read_seconds=0.2), 60) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(HEADERS + b"\r\n")
            await asyncio.wait_for(ended.wait(), 60)
            writer.close()
        return sent

    assert 0 < asyncio.run(main()) < 64 * 2**20


def test_an_answer_may_take_longer_than_headers_may() -> None:
    async def main() -> bytes:
        silent_is_closed = asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            await silent_is_closed.wait()
            await answer_done(scope, receive, send)

        async with listening(slow, 0.2) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEADERS + b"\r\n")
            await until_closed(port)  # which is as long as headers may take, from now on
            await until_closed(port)
            silent_is_closed.set()
            found = await reader.readuntil(b"done")
            writer.close()
            return found

    assert asyncio.run(main()).startswith(b"HTTP/1.1 200")


# --- TLS and proxies -----------------------------------------------------------------------------


def log_in(client: httpx.Client, secret: str) -> httpx.Response:
    csrf = client.get("/login").text.partition('name="csrf" value="')[2].partition('"')[0]
    return client.post("/login", data={"csrf": csrf, "token": secret})


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for loopback and its key."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=console", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", certificate, "-keyout", key),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def test_with_a_certificate_it_speaks_tls_alone_and_its_cookies_are_secure(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    words = ("--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]))
    with serving(tmp_path / "home", *words) as served:
        port = httpx.URL(served.url).port
        trusting = ssl.create_default_context(cafile=certificate[0])
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusting) as client:
            answer = log_in(client, served.token)
            assert answer.status_code == 303
            cookies = answer.headers.get_list("set-cookie")
            assert all("Secure" in cookie for cookie in cookies if "Max-Age=0" not in cookie)
            assert client.get("/").status_code == 200, "the browser sends the cookie back"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{port}/login")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https://127.0.0.1:{port}/login")
        old = ssl.create_default_context(cafile=certificate[0])
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.deprecated_call():
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", port)) as raw, pytest.raises(ssl.SSLError):
            old.wrap_socket(raw, server_hostname="127.0.0.1")


@pytest.mark.parametrize("words", [("--tls-cert", "x.pem"), ("--tls-key", "x.pem")])
def test_half_of_a_certificate_is_refused(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--home", str(tmp_path), *words]) == 2
    assert "given together" in capsys.readouterr().err


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A console that believes a proxy at 127.0.0.2."""
    with serving(tmp_path_factory.mktemp("proxied"), "--behind-proxy", "127.0.0.2") as served:
        yield served


def from_address(served: Served, address: str, **headers: str) -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=address)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Client(base_url=served.url, transport=transport, headers=named)


@pytest.mark.parametrize(("address", "believed"), [("127.0.0.2", True), ("127.0.0.3", False)])
def test_the_scheme_is_believed_of_the_proxy_alone(proxied: Served, address: str, believed: bool) -> None:
    with from_address(proxied, address, x_forwarded_proto="https", x_forwarded_for="192.0.2.1") as client:
        cookie = client.get("/login").headers["set-cookie"]
    assert ("Secure" in cookie) is believed


def statuses_at_once(site: Site, secret: str, number: int) -> list[int]:
    async def main() -> list[int]:
        transport = httpx.ASGITransport(site.app)
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://c", headers=headers) as client:
            return [
                answer.status_code
                for answer in await asyncio.gather(*(client.get("/api/now") for _ in range(number)))
            ]

    return asyncio.run(main())


def test_a_right_token_is_never_a_guess_however_many_use_it_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, slow_disk = Tokens.all, threading.Event()

    def read_slowly(tokens: Tokens) -> Any:
        slow_disk.wait(0.02)
        return read(tokens)

    secret = site.token(Role.VIEWER)
    monkeypatch.setattr(Tokens, "all", read_slowly)
    assert statuses_at_once(site, secret, 30) == [200] * 30


def test_guesses_made_at_once_are_counted_one_by_one(site: Site) -> None:
    found = statuses_at_once(site, "agt_00_guess", 100)
    assert (found.count(401), found.count(429)) == (10, 90)


@pytest.mark.parametrize(
    ("address", "claim", "statuses"),
    [
        ("127.0.0.4", "192.0.2.{}", [401] * 10 + [429]),  # no proxy: one address, whatever it says
        ("127.0.0.2", "198.51.100.{}", [401] * 11),  # eleven clients of the proxy
        ("127.0.0.2", "{0}.0.0.1, 203.0.113.9", [401] * 10 + [429]),  # one, which claims to stand for others
    ],
    ids=["no proxy", "its clients", "a client that lies"],
)
def test_guesses_are_counted_by_the_address_that_the_proxy_saw(
    proxied: Served, address: str, claim: str, statuses: list[int]
) -> None:
    found = []
    for number in range(1, 12):
        with from_address(proxied, address, x_forwarded_for=claim.format(number)) as client:
            found.append(client.get("/api/now", headers={"authorization": "Bearer agt_00_guess"}).status_code)
    assert found == statuses


@pytest.mark.parametrize(
    "proxies", ["*", "", "0.0.0.0/0", "::/0", "proxy.example", "10.0.0.1/8", "10.0.0.1,*"]
)
def test_a_proxy_that_would_be_everybody_or_nobody_is_refused(
    proxies: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--home", str(tmp_path), "--behind-proxy", proxies]) == 2
    assert "--behind-proxy" in capsys.readouterr().err
