"""The same as the pages, as JSON for programs: `Authorization: Bearer TOKEN`, and bodies in JSON."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from agentguard.console import metrics
from agentguard.console.actions import ACTIONS
from agentguard.console.auth import ConsoleError
from agentguard.console.calls import Call, parse_number
from agentguard.console.dashboard import dashboard
from agentguard.console.data import Hit, Snapshot, row_data
from agentguard.console.run_list import RunFilter
from agentguard.console.timeline import entry_data
from agentguard.protocols import RunRow


def present(call: Call) -> Response:
    """Return live runs, steps that wait, alerts, kills in force, tenants' budgets, and how parts stand."""
    now = call.console.now(call.who)
    check_read(now)
    return JSONResponse(
        {
            "live": [status.to_data() for status in now.live],
            "approvals": [
                {**w.approval._asdict(), "tenant": w.tenant, "arguments": w.arguments} for w in now.waiting
            ],
            "alerts": [alert._asdict() for alert in now.alerts],
            "kills": [kill._asdict() for kill in now.kills],
            "tenants": [
                {"tenant": a.tenant, "per": a.per, "budget": a.budget.to_fields(), "usd": str(a.spent.usd)}
                for a in now.tenants
            ],
            "health": [part._asdict() for part in now.health],
        }
    )


def runs(call: Call) -> Response:
    """Return a page of runs; `after` of the answer begins the next one."""
    wanted = RunFilter(*map(call.query, RunFilter._fields))
    found = call.console.runs(call.who, wanted, call.query("after"))
    return JSONResponse({"runs": [row_data(row) for row in found.rows], "after": found.after})


def run(call: Call) -> Response:
    """Return how a run stands."""
    row = call.console.row(call.who, call.path("run_id"))
    return JSONResponse(call.console.status(row).to_data())


def events(call: Call) -> Response:
    """Return a page of a run's events; `after` of the answer begins the next one."""
    row = call.console.row(call.who, call.path("run_id"))
    found, after = call.console.timeline(call.who, row, parse_number(call.query("after") or "0"))
    return JSONResponse({"events": [entry_data(entry) for entry in found], "after": after})


def verify(call: Call) -> Response:
    """Return whether a run's log is what was written."""
    row = call.console.row(call.who, call.path("run_id"))
    report = call.console.guard.verify(row.run_id)
    return JSONResponse({"intact": bool(report), "report": str(report)})


def killed(call: Call) -> Response:
    """Return whom a kill has reached so far."""
    return JSONResponse(_hit_data(call.console.hit(call.who, parse_number(call.path("generation")))))


def after(call: Call, done: Hit | RunRow | None) -> Response:
    """Say how that stands which an action was about."""
    match done:
        case RunRow():
            return JSONResponse(call.console.status(done).to_data())
        case Hit():
            return JSONResponse(_hit_data(done))
        case None:
            return JSONResponse({})


def read_metrics(call: Call) -> Response:
    """Return the metrics for Prometheus."""
    now = call.console.now(call.who)
    check_read(now)
    return Response(metrics.text(now), media_type=metrics.CONTENT_TYPE)


def grafana(call: Call) -> Response:
    """Return a Grafana dashboard of the metrics, to be imported there."""
    return JSONResponse(dashboard())


def check_read(now: Snapshot) -> None:
    """Refuse to say of the present what could not be read.

    Raises:
        ConsoleError: the store or the kill switch could not be.
    """
    if now.trouble:
        raise ConsoleError(503, "; ".join(f"{name}: {problem}" for name, problem in now.trouble.items()))


def _hit_data(hit: Hit) -> dict[str, Any]:
    return {
        **hit.kill._asdict(),
        **hit.reached._asdict(),
        "late_pids": hit.late_pids,
        "complete": hit.complete,
        "runs": {run.summary.run_id: str(run.summary.state) for run in hit.runs},
    }


#: What is read: path, handler, and the parameters of the query.
READINGS = (
    ("/api/now", present, ()),
    ("/api/runs", runs, (*RunFilter._fields, "after")),
    ("/api/runs/{run_id}/events", events, ("after",)),
    ("/api/runs/{run_id}/verify", verify, ()),
    ("/api/runs/{run_id}", run, ()),  # after those that have more behind it: an id may have slashes
    ("/api/kills/{generation}", killed, ()),
    ("/api/grafana.json", grafana, ()),
    ("/metrics", read_metrics, ()),
)


def openapi(call: Call) -> Response:
    """Return the OpenAPI document of the operations."""
    paths: dict[str, dict[str, Any]] = {}
    for path, handler, parameters in READINGS:
        paths[path] = {"get": _operation("GET", path, handler.__doc__ or "", parameters)}
    for action in ACTIONS:
        path = f"/api{action.path}"
        paths[path] = {"post": _operation("POST", path, action.act.__doc__ or "", action.fields)}
    document = {
        "openapi": "3.1.0",
        "info": {"title": "agentguard console", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }
    return JSONResponse(document)


def _operation(method: str, path: str, said: str, fields: tuple[str, ...]) -> dict[str, Any]:
    text = {"type": "string"}
    found: dict[str, Any] = {
        "summary": said.splitlines()[0],
        "parameters": [
            {"name": part[1:-1], "in": "path", "required": True, "schema": text}
            for part in path.split("/")
            if part.startswith("{")
        ],
        "responses": {
            "200": {"description": "done"},
            "4XX": {"description": "refused; `error` of the JSON body says why"},
        },
    }
    if method == "GET":
        found["parameters"] += [{"name": name, "in": "query", "schema": text} for name in fields]
    elif fields:
        schema = {"type": "object", "properties": dict.fromkeys(fields, text), "additionalProperties": False}
        found["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return found
