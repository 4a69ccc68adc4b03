"""Who asks: sessions of the browser, tokens of programs, roles, and how often one may guess."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, NamedTuple

from agentguard.console.tokens import Role, Token, Tokens

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response

SESSION_COOKIE = "agentguard_session"
LOGIN_COOKIE = "agentguard_login"
_SESSION_SECONDS = 12 * 3600
_MOST_SESSIONS = 1000
#: So many wrong tokens of one address in so many seconds, and no more are tried.
_TRIES, _WINDOW_SECONDS = 10, 60.0
_MOST_ADDRESSES = 10_000


class ConsoleError(Exception):
    """What the console refuses, with the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Identity(NamedTuple):
    """Whose token it is, and what it allows.  `csrf` is None for a program, which sends its token itself."""

    name: str
    role: Role
    tenant: str | None
    csrf: str | None = None

    def require(self, role: Role) -> None:
        """Refuse what the role does not allow.

        Raises:
            ConsoleError: the role is below `role`.
        """
        if self.role < role:
            raise ConsoleError(
                403, f"this needs the role {role.name.lower()}; {self.name} is a {self.role.name.lower()}"
            )

    def sees(self, tenant: str) -> bool:
        """Return whether runs of a tenant are there for this token."""
        return self.tenant is None or self.tenant == tenant


class _Session(NamedTuple):
    token_id: str
    csrf: str
    ends: float


class Auth:
    """Opens sessions and recognizes requests; safe between threads."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()
        self._checking = threading.Lock()

    def identify(self, request: HTTPConnection) -> Identity | None:
        """Return who sends a request: by `Authorization: Bearer`, else by the session's cookie.

        Raises:
            ConsoleError: the token is wrong, or too many were.
        """
        header = request.headers.get("authorization")
        if header is not None:
            scheme, _, secret = header.partition(" ")
            if scheme.lower() != "bearer":
                raise ConsoleError(401, "send the token as Authorization: Bearer TOKEN")
            return _identity(self._checked(secret.strip(), _address(request)))
        with self._lock:
            session = self._sessions.get(request.cookies.get(SESSION_COOKIE, ""))
        if session is None or session.ends < time.monotonic():
            return None
        token = self._tokens.by_id(session.token_id)  # looked up each time: it may have been revoked since
        return None if token is None else _identity(token, session.csrf)

    def log_in(self, request: Request, secret: str) -> tuple[Identity, str]:
        """Open a session under a new id, and return who it is and the id.

        Raises:
            ConsoleError: the token is wrong, or too many were.
        """
        token = self._checked(secret.strip(), _address(request))
        number, session = (
            secrets.token_urlsafe(32),
            _Session(token.id, secrets.token_urlsafe(32), time.monotonic() + _SESSION_SECONDS),
        )
        with self._lock:
            self._sessions.pop(request.cookies.get(SESSION_COOKIE, ""), None)
            self._sessions[number] = session
            while len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return _identity(token, session.csrf), number

    def log_out(self, request: Request) -> None:
        """End the session of a request."""
        with self._lock:
            self._sessions.pop(request.cookies.get(SESSION_COOKIE, ""), None)

    def _checked(self, secret: str, address: str) -> Token:
        with self._checking:  # one at a time, so that many guesses at once are counted too
            now = time.monotonic()
            failures = self._failures.get(address, deque())
            while failures and failures[0] < now - _WINDOW_SECONDS:
                failures.popleft()
            if len(failures) >= _TRIES:
                raise ConsoleError(429, "too many wrong tokens; wait a minute")
            token = self._tokens.check(secret)
            if token is not None:
                return token
            failures.append(now)
            self._failures[address] = failures
            self._failures.move_to_end(address)
            while len(self._failures) > _MOST_ADDRESSES:
                self._failures.popitem(last=False)
            raise ConsoleError(401, "this token is wrong, revoked or expired")


def check_csrf(given: str, expected: str | None) -> None:
    """Refuse a form that another site may have sent.

    Raises:
        ConsoleError: the form has not the token of its session.
    """
    if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
        raise ConsoleError(403, "this form is out of date; load the page again")


def set_cookie(response: Response, request: Request, name: str, value: str) -> None:
    """Set a cookie that scripts cannot read and other sites cannot send."""
    secure = request.url.scheme == "https"
    response.set_cookie(name, value, httponly=True, samesite="strict", secure=secure, path="/")


def _identity(token: Token, csrf: str | None = None) -> Identity:
    return Identity(token.name, Role.named(token.role), token.tenant, csrf)


def _address(request: HTTPConnection) -> str:
    return request.client.host if request.client else ""
