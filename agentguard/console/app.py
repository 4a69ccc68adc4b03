"""The ASGI application of the console."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from agentguard.alerts.rules import Thresholds
from agentguard.console import api, pages
from agentguard.console.actions import ACTIONS, Action
from agentguard.console.auth import (
    LOGIN_COOKIE,
    SESSION_COOKIE,
    ConsoleError,
    check_csrf,
    set_cookie,
)
from agentguard.console.calls import Call, Handler
from agentguard.console.data import Console
from agentguard.console.middleware import Limits
from agentguard.console.rendering import page
from agentguard.console.streams import Streams
from agentguard.console.tokens import Tokens
from agentguard.errors import (
    AgentGuardError,
    KillSwitchUnavailableError,
    RunNotFoundError,
    StoreUnavailableError,
)
from agentguard.guard import Guard

if TYPE_CHECKING:
    from starlette.requests import Request

#: How many fields a form has at most.
_MOST_FIELDS = 20

_RUN = "/runs/{run_id:path}"

_ASSETS = {"console.css": "text/css", "console.js": "text/javascript"}


def create_app(
    guard: Guard,
    tokens: Tokens,
    *,
    hide_payloads: bool = False,
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - it cannot be changed
    trace_url: str | None = None,
) -> Starlette:
    """Return the console over a guard; everything but the log-in needs a token.

    Args:
        guard: whose store and kill switch are shown and used; it stays open while the app runs.
        tokens: who may see and do what.
        hide_payloads: hide the arguments and results of steps from viewers.
        thresholds: from where on the overview and the metrics tell of an alert.
        trace_url: where a trace is shown, as `https://jaeger.example/trace/{trace_id}`.

    Raises:
        ValueError: `trace_url` is no such address.
    """
    console = Console(guard, tokens, hide_payloads=hide_payloads, thresholds=thresholds, trace_url=trace_url)
    return _App(console).build()


class _App:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._streams = Streams(console)

    def build(self) -> Starlette:
        """Return the application with its routes."""
        read, act = self._page, self._form
        routes = [
            Route("/login", self._ask_login, methods=["GET"]),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/logout", act(self._log_out), methods=["POST"]),
            Route("/static/{name}", _asset),
            Route("/", read(pages.overview)),
            Route("/live", self._streams.overview),
            Route("/live/{run_id:path}", self._streams.run),
            Route("/runs", read(pages.runs)),
            Route(f"{_RUN}/run.jsonl", read(pages.download)),
            Route(_RUN, read(pages.run)),
            Route("/costs", read(pages.costs)),
            Route("/control", read(pages.control)),
            Route("/kill", read(pages.ask_kill), methods=["GET"]),
            Route("/kills/{generation}", read(pages.killed)),
            Route("/api/openapi.json", self._api(api.openapi, "GET")),
        ]
        for action in ACTIONS:
            form, data = act(_then_page(action)), self._api(_then_data(action), "POST")
            routes.append(Route(_any_id(action.path), form, methods=["POST"]))
            routes.append(Route(_any_id(f"/api{action.path}"), data, methods=["POST"]))
        for path, handler, parameters in api.READINGS:
            routes.append(Route(_any_id(path), self._api(handler, "GET", parameters)))
        kinds = (AgentGuardError, ConsoleError, HTTPException, ValueError)
        handlers = dict.fromkeys(kinds, self._refuse)
        return Starlette(routes=routes, middleware=[Middleware(Limits)], exception_handlers=handlers)

    # --- who asks, and with what -----------------------------------------------------------------

    def _page(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            who = await run_in_threadpool(self._console.auth.identify, request)
            if who is None:
                return RedirectResponse("/login", 303)
            return await run_in_threadpool(handler, Call(self._console, who, request, {}))

        return answer

    def _form(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            who = await run_in_threadpool(self._console.auth.identify, request)
            if who is None:
                return RedirectResponse("/login", 303)
            form = await _form_of(request)
            check_csrf(form.get("csrf", ""), who.csrf)
            return await run_in_threadpool(handler, Call(self._console, who, request, form))

        return answer

    def _api(
        self, handler: Handler, method: str, known: tuple[str, ...] = ()
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            who = await run_in_threadpool(self._console.auth.identify, request)
            if who is None or (method != "GET" and who.csrf is not None):
                # A browser sends its cookie by itself: that alone must change nothing.
                raise ConsoleError(401, "send a token as Authorization: Bearer TOKEN")
            fields = {} if method == "GET" else await _json_of(request)
            for name in request.query_params:
                if name not in known:  # a misspelt filter would show what was not asked for
                    raise ConsoleError(
                        400, f"there is no {name!r} here; known are {', '.join(known) or 'none'}"
                    )
            return await run_in_threadpool(handler, Call(self._console, who, request, fields))

        return answer

    # --- log-in ----------------------------------------------------------------------------------

    async def _ask_login(self, request: Request) -> Response:
        return _login_page(request)

    async def _log_in(self, request: Request) -> Response:
        form = await _form_of(request)
        try:
            check_csrf(form.get("csrf", ""), request.cookies.get(LOGIN_COOKIE))
            _, session = await run_in_threadpool(self._console.auth.log_in, request, form.get("token", ""))
        except ConsoleError as error:
            return _login_page(request, error)
        response = RedirectResponse("/", 303)
        set_cookie(response, request, SESSION_COOKIE, session)
        response.delete_cookie(LOGIN_COOKIE)
        return response

    def _log_out(self, call: Call) -> Response:
        self._console.auth.log_out(call.request)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(SESSION_COOKIE)
        return response

    # --- what goes wrong -------------------------------------------------------------------------

    async def _refuse(self, request: Request, error: Exception) -> Response:
        status, message = _status(error)
        if request.url.path.startswith(("/api/", "/metrics", "/live")):
            return JSONResponse({"error": message}, status)
        try:
            who = await run_in_threadpool(self._console.auth.identify, request)
        except (ConsoleError, AgentGuardError):
            who = None
        return page("error.html", who, message=message, code=status)


def _then_page(action: Action) -> Handler:
    return lambda call: pages.after(action.act(call))


def _then_data(action: Action) -> Handler:
    return lambda call: api.after(call, action.act(call))


def _any_id(path: str) -> str:
    """A path whose id of a run may have slashes."""
    return path.replace("{run_id}", "{run_id:path}")


def _status(error: Exception) -> tuple[int, str]:
    match error:
        case ConsoleError():
            return error.status, error.message
        case HTTPException():
            return error.status_code, error.detail
        case RunNotFoundError():
            return 404, str(error)
        case StoreUnavailableError() | KillSwitchUnavailableError():
            return 503, str(error)
        case ValueError():
            return 400, str(error)
        case _:
            return 409, str(error)


def _login_page(request: Request, error: ConsoleError | None = None) -> Response:
    csrf = secrets.token_urlsafe(32)
    status, message = (200, "") if error is None else (error.status, error.message)
    response = page("login.html", None, code=status, csrf=csrf, message=message)
    set_cookie(response, request, LOGIN_COOKIE, csrf)
    return response


async def _form_of(request: Request) -> dict[str, str]:
    # Browsers of other sites can send this type too: the token of the session is what keeps them out.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ConsoleError(415, "a form is sent as application/x-www-form-urlencoded")
    text = (await request.body()).decode("utf-8", "replace")
    fields = parse_qs(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    return {name: values[-1] for name, values in fields.items()}


async def _json_of(request: Request) -> dict[str, str]:
    try:
        body = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):
        raise ConsoleError(400, "the body is no JSON") from None
    if not isinstance(body, dict) or not all(isinstance(value, str) for value in body.values()):
        raise ConsoleError(400, "the body must be a JSON object whose values are strings")
    return body


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _ASSETS:  # a list, so that no path leads out of it
        raise HTTPException(404)
    content = resources.files("agentguard.console").joinpath("static", name).read_bytes()
    return Response(content, media_type=_ASSETS[name])
