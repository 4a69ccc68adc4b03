"""Alerts to a webhook: signed, retried, and each with an id by which the other end knows a repetition.

Signed as Standard Webhooks says (https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp` and
`webhook-signature`, which is `v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from agentguard._secrets.urls import public_url
from agentguard.alerts.watch import Notice

logger = logging.getLogger("agentguard.alerts")

#: Seconds that one attempt may take.
_TIMEOUT = 10.0
#: How often a notice is tried, and how long, in seconds, until the second try; then twice as long each time.
_TRIES, _FIRST_PAUSE = 6, 1.0
#: How many notices wait at most while the other end is away.
_MOST_WAITING = 1000
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - no secret
_TEMPORARY = frozenset((408, 425, 429))


class WebhookError(Exception):
    """A notice did not arrive."""


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: what is signed for one address goes to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Refuse."""


class Webhook:
    """Sends notices to an address, in a thread of its own.

    Args:
        url: `https://...`, or `http://...`.
        secret: what the messages are signed with; `whsec_` and base64, or any text. None: not signed.
        slack: send `{"text": ...}`, as Slack, Mattermost and others take it.
        first_pause: seconds until the second try.

    Raises:
        ValueError: the address or the secret cannot be meant.
    """

    def __init__(
        self, url: str, secret: str | None = None, *, slack: bool = False, first_pause: float = _FIRST_PAUSE
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"a webhook is an address as https://host/path, not {public_url(url)!r}")
        self._url = url
        self._name = f"{parts.scheme}://{parts.hostname}"  # the rest is a secret, with Slack
        self._key = None if secret is None else _key(secret)
        self._slack = slack
        self._first_pause = first_pause
        self._opener = urllib.request.build_opener(_StayHere)
        self._waiting: queue.Queue[Notice | None] = queue.Queue(_MOST_WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentguard-webhook", daemon=True)
        self._thread.start()

    def __call__(self, notice: Notice) -> None:
        """Take a notice to be sent; where too many wait, it is dropped, and logged."""
        try:
            self._waiting.put_nowait(notice)
        except queue.Full:
            logger.error("%s takes no alerts, one is dropped: %s", self._name, notice.alert.message)  # noqa: TRY400

    def close(self, timeout: float = 10.0) -> None:
        """Send what waits, and end; after `timeout` seconds nothing is tried again, begun, or waited for."""
        giving_up = threading.Timer(timeout, self._closing.set)
        giving_up.daemon = True
        giving_up.start()
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout)
        self._thread.join(timeout + _TIMEOUT)  # an endpoint that answers byte by byte has no end
        giving_up.cancel()

    def send(self, notice: Notice) -> None:
        """Send a notice now, once.

        Raises:
            WebhookError: it did not arrive.
        """
        body = json.dumps(self._payload(notice)).encode()
        number = message_id(notice)
        moment = str(int(time.time()))
        headers = {"content-type": "application/json", "webhook-id": number, "webhook-timestamp": moment}
        if self._key is not None:
            headers["webhook-signature"] = sign(self._key, number, moment, body)
        request = urllib.request.Request(self._url, body, headers)  # noqa: S310 - the scheme was checked
        try:
            with self._opener.open(request, timeout=_TIMEOUT):
                pass
        except urllib.error.HTTPError as error:
            error.close()
            told = _TemporaryError if error.code >= 500 or error.code in _TEMPORARY else WebhookError
            raise told(f"{self._name} answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _TemporaryError(f"{self._name} cannot be reached: {error}") from None

    def _payload(self, notice: Notice) -> dict[str, Any]:
        alert = notice.alert
        if self._slack:
            # So that nothing in a name mentions a channel or makes a link.
            text = alert.message.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return {"text": f"agentguard, {notice.state}: {text}"}
        return {
            "type": f"alert.{notice.state}",
            "timestamp": datetime.now(UTC).isoformat(),
            "data": {
                "kind": alert.kind,
                "subject": alert.subject,
                "tenant": alert.tenant,
                "message": alert.message,
                "since": datetime.fromtimestamp(notice.since_ns / 1e9, UTC).isoformat(),
                **alert.facts,
            },
        }

    def _run(self) -> None:
        while (notice := self._waiting.get()) is not None:
            if self._closing.is_set():
                logger.error("no time was left to send an alert: %s", notice.alert.message)
                continue
            try:
                self._deliver(notice)
            except Exception:
                logger.exception("an alert could not be sent to %s", self._name)

    def _deliver(self, notice: Notice) -> None:
        pause = self._first_pause
        for attempt in range(1, _TRIES + 1):
            try:
                return self.send(notice)
            except WebhookError as error:
                if not isinstance(error, _TemporaryError) or attempt == _TRIES or self._closing.is_set():
                    logger.error("an alert did not arrive: %s (%s)", error, notice.alert.message)  # noqa: TRY400
                    return None
                self._closing.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                pause *= 2
        return None


class _TemporaryError(WebhookError):
    """It may arrive later."""


def message_id(notice: Notice) -> str:
    """Return what a notice is known by: the same for each try."""
    alert = notice.alert
    text = json.dumps([alert.kind, alert.subject, notice.state, notice.at_ns])
    return f"msg_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def sign(key: bytes, number: str, moment: str, body: bytes) -> str:
    """Return the signature of a message, as the header `webhook-signature` has it."""
    digest = hmac.new(key, b"%s.%s.%s" % (number.encode(), moment.encode(), body), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _key(secret: str) -> bytes:
    if not secret:
        raise ValueError("the secret of a webhook must not be empty")
    if not secret.startswith(_SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(
            f"the secret of a webhook is {_SECRET_PREFIX} and base64, or any other text"
        ) from None
