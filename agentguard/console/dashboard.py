"""A Grafana dashboard of the metrics: one panel for each, so that it cannot name one that is not there."""

from __future__ import annotations

from typing import Any

from agentguard.console.metrics import FAMILIES, PREFIX

#: Grafana's grid is 24 wide.
_WIDTH, _HEIGHT, _IN_A_ROW = 12, 8, 2
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it; it asks for the Prometheus that has the metrics."""
    return {
        "title": "agentguard",
        "uid": "agentguard",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
            ]
        },
        "panels": [_panel(number, family, said) for number, (family, said) in enumerate(FAMILIES.items())],
    }


def _panel(number: int, family: str, said: str) -> dict[str, Any]:
    row, column = divmod(number, _IN_A_ROW)
    unit = "currencyUSD" if "usd" in family else "short"
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": said.removesuffix("."),
        "datasource": _DATASOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [{"refId": "A", "datasource": _DATASOURCE, "expr": f"{PREFIX}{family}"}],
    }
