"""`agentguard alerts`: what an operator is to be told, once or again and again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer

from agentguard._clock import SYSTEM_CLOCK
from agentguard.alerts import rules
from agentguard.alerts.rules import Alert, Thresholds
from agentguard.alerts.watch import FIRING, Notice, Reader, Watch
from agentguard.alerts.webhook import Webhook, WebhookError
from agentguard.cli import exit_codes, lookup, output, tables
from agentguard.cli.app import app
from agentguard.cli.exit_codes import UsageError
from agentguard.cli.options import HomeOption, JsonOption, StoreOption

alerts = typer.Typer(
    help="Tell an operator what needs one: in a log, and to a webhook.", no_args_is_help=True
)
app.add_typer(alerts, name="alerts")

ShareOption = Annotated[
    float, typer.Option("--budget-share", metavar="S", help="Tell of limits of which this part is used.")
]
RateOption = Annotated[
    str | None, typer.Option("--rate", metavar="USD", help="Tell of runs that spend so much a minute.")
]
WebhookOption = Annotated[
    str | None,
    typer.Option(
        "--webhook", metavar="URL", envvar="AGENTGUARD_ALERT_WEBHOOK", help="Where alerts are sent."
    ),
]
SecretOption = Annotated[
    Path | None,
    typer.Option(
        "--secret-file",
        metavar="FILE",
        envvar="AGENTGUARD_ALERT_SECRET_FILE",
        help="What they are signed with, by HMAC-SHA256.",
    ),
]
SlackOption = Annotated[bool, typer.Option("--slack", help="Send them in the shape that Slack takes.")]


@alerts.command("list", epilog="--json: an array of {kind, subject, tenant, message, facts}.")
def list_alerts(
    *,
    budget_share: ShareOption = 0.9,
    rate: RateOption = None,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look once, and list what an operator is to be told."""
    lookup.use(store, home)
    thresholds = thresholds_of(budget_share, rate)
    with lookup.acting() as guard:
        found = rules.alerts(Reader(guard).read(), thresholds)
    if as_json:
        output.print_json([alert._asdict() for alert in found])
    elif not found:
        output.console().print("nothing needs an operator")
    else:
        table = tables.table(("alert", "what"))
        for alert in found:
            tables.add(table, alert.kind, alert.message)
        output.console().print(table)


@alerts.command(epilog="It runs until SIGTERM or Ctrl-C.  --json: its log, an object a line.")
def watch(
    *,
    budget_share: ShareOption = 0.9,
    rate: RateOption = None,
    webhook: WebhookOption = None,
    secret_file: SecretOption = None,
    slack: SlackOption = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="S", min=0.1, max=3600, help="Seconds between two looks.")
    ] = 5.0,
    repeat: Annotated[
        float, typer.Option("--repeat", metavar="S", min=1, help="Seconds until what goes on is told again.")
    ] = 3600.0,
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look again and again; log each alert when it begins and when it is over, and send it to a webhook."""
    lookup.use(store, home)
    output.log(as_json=as_json)
    thresholds = thresholds_of(budget_share, rate)
    with lookup.acting() as guard, sending(webhook, secret_file, slack=slack) as sinks:
        looking = Watch(guard, thresholds, sinks, interval=interval, repeat=repeat)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            looking.run()


@alerts.command("test", epilog="--json: {delivered, error}.")
def send_test(
    *,
    webhook: WebhookOption = None,
    secret_file: SecretOption = None,
    slack: SlackOption = False,
    as_json: JsonOption = False,
) -> None:
    """Send a test alert to the webhook, and say whether it arrived."""
    if webhook is None:
        raise UsageError("say --webhook URL, or set AGENTGUARD_ALERT_WEBHOOK")
    alert = Alert(rules.TEST, "test", "", "this is a test of agentguard's alerts", {})
    error = None
    with sending(webhook, secret_file, slack=slack) as (sink,):
        try:
            now = SYSTEM_CLOCK.wall()
            sink.send(Notice(alert, FIRING, now, now))
        except WebhookError as failed:
            error = str(failed)
    if as_json:
        output.print_json({"delivered": error is None, "error": error})
    elif error is None:
        output.console().print("delivered")
    else:
        output.complain(error)
    if error is not None:
        raise typer.Exit(exit_codes.UNAVAILABLE)


@contextmanager
def sending(url: str | None, secret_file: Path | None, *, slack: bool) -> Iterator[tuple[Webhook, ...]]:
    """Open the webhook that was named, if one was, and close it.

    Raises:
        UsageError: its address or its secret cannot be meant.
    """
    if url is None:
        yield ()
        return
    try:
        secret = None if secret_file is None else secret_file.read_text().strip()
        sink = Webhook(url, secret, slack=slack)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        yield (sink,)
    finally:
        sink.close()


def thresholds_of(budget_share: float, rate: str | None) -> Thresholds:
    """Return the thresholds that were typed.

    Raises:
        UsageError: one of them cannot be meant.
    """
    try:
        return Thresholds(budget_share, None if rate is None else Decimal(rate)).check()
    except InvalidOperation as error:
        raise UsageError(f"--rate {rate!r} is no amount in USD") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
