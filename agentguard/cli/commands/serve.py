"""`agentguard serve`: the web console."""

from __future__ import annotations

import ipaddress
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from agentguard import _optional
from agentguard.alerts.watch import Watch
from agentguard.cli import lookup, output
from agentguard.cli.app import app
from agentguard.cli.commands.alerts import (
    RateOption,
    SecretOption,
    ShareOption,
    SlackOption,
    WebhookOption,
    sending,
    thresholds_of,
)
from agentguard.cli.commands.token import tokens as kept_tokens
from agentguard.cli.exit_codes import UsageError
from agentguard.cli.options import HomeOption, JsonOption, StoreOption
from agentguard.console.tokens import FILE, Role, Tokens
from agentguard.console.traces import TraceLinks

#: How long, in seconds, open pages are waited for at the end.
_GRACE_SECONDS = 2


@app.command(
    epilog="It runs until SIGTERM or Ctrl-C.  --json: {token} where none is, and its log, an object a line."
)
def serve(
    *,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="On which port.")] = 8642,
    certificate: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="The certificate, for HTTPS.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key.")] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--behind-proxy",
            metavar="ADDRESS",
            help="Whose X-Forwarded headers are believed: addresses or networks, with commas between.",
        ),
    ] = None,
    hide_payloads: Annotated[
        bool, typer.Option("--hide-payloads", help="Hide arguments and results from viewers.")
    ] = False,
    trace_url: Annotated[
        str | None,
        typer.Option(
            "--trace-url", metavar="URL", help="Where a trace is shown: https://jaeger/trace/{trace_id}."
        ),
    ] = None,
    budget_share: ShareOption = 0.9,
    rate: RateOption = None,
    webhook: WebhookOption = None,
    secret_file: SecretOption = None,
    slack: SlackOption = False,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the runs in a browser, and stop them from there; tell of alerts."""
    _optional.check("starlette", extra="console", feature="agentguard serve")
    _optional.check("jinja2", extra="console", feature="agentguard serve")
    _optional.check("uvicorn", extra="console", feature="agentguard serve")
    import uvicorn

    from agentguard.console.app import create_app
    from agentguard.console.protocol import PatientProtocol

    lookup.use(store, home)
    if (certificate is None) != (key is None):
        raise UsageError("--tls-cert and --tls-key are given together, or neither")
    _check_proxies(proxy)
    try:
        TraceLinks(trace_url)
    except ValueError as error:
        raise UsageError(f"--trace-url: {error}") from error
    tokens, thresholds = kept_tokens(), thresholds_of(budget_share, rate)
    with ExitStack() as stack:
        guard = stack.enter_context(lookup.acting())
        if not tokens.working():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentguard-")))
            tokens = _own_token(host, folder, as_json=as_json)
        uvicorns: dict[str, Any] = {}  # what it logs, it prints as it likes
        if as_json:
            output.log(as_json=True)
            uvicorns["log_config"] = None
        watch = Watch(guard, thresholds, stack.enter_context(sending(webhook, secret_file, slack=slack)))
        watch.start()
        stack.callback(watch.stop)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # which uvicorn raises again at its end
        uvicorn.run(
            create_app(
                guard,
                tokens,
                hide_payloads=hide_payloads,
                thresholds=thresholds,
                trace_url=trace_url,
            ),
            host=host,
            port=port,
            http=PatientProtocol,
            ws="none",
            ssl_certfile=certificate,
            ssl_keyfile=None if key is None else str(key),
            proxy_headers=proxy is not None,
            forwarded_allow_ips=proxy,
            server_header=False,
            access_log=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            limit_concurrency=1000,
            **uvicorns,
        )


def _own_token(host: str, folder: Path, *, as_json: bool) -> Tokens:
    """A token for this process alone, where none was made.

    Raises:
        UsageError: other hosts could come in.
    """
    if not _is_loopback(host):
        raise UsageError(
            f"{host} can be reached from elsewhere: make a token first, by "
            "agentguard token add NAME --role admin"
        )
    tokens = Tokens(folder / FILE)
    secret = tokens.add("local", Role.ADMIN)
    if as_json:
        output.print_json({"token": secret}, indent=None)
    else:
        print(f"there are no tokens yet; log in with this one, until this program ends: {secret}", flush=True)
    return tokens


def _check_proxies(proxies: str | None) -> None:
    """Refuse what trusts everybody, who could then guess tokens under a new address each time.

    Raises:
        UsageError: it is no list of addresses and networks.
    """
    for part in () if proxies is None else proxies.split(","):
        try:
            trusted = ipaddress.ip_network(part.strip())
        except ValueError as error:
            raise UsageError(
                f"--behind-proxy takes the proxy's address or network, as 10.0.0.7 or 10.0.0.0/24: {error}"
            ) from None
        if not trusted.prefixlen:
            raise UsageError(f"--behind-proxy {part.strip()} trusts everybody; name the proxy's network")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
