"""Run rows as PostgreSQL's columns; what is nested is JSON text."""

from __future__ import annotations

from typing import Any

import msgspec

from agentguard.protocols import RunRow

# Sorted, so that equal owners are equal texts, which the claim of a run compares.
_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def parameters(row: RunRow, ahead: int) -> dict[str, Any]:
    """The columns of a run by name; `ahead` is the server's clock over that of this host."""
    columns = {name: getattr(row, name) for name in row.__struct_fields__}
    columns["heartbeat_ns"] += ahead
    columns["owner"] = _encode(row.owner).decode()
    columns["summary"] = _encode(row.summary).decode()
    return columns


def run_row(columns: tuple[Any, ...], ahead: int) -> RunRow:
    """A run from its columns, in the order of the queries."""
    names = ("run_id", "name", "tenant", "state", "created_ns", "number", "parent_id", "ended_ns", "epoch")
    fields: dict[str, Any] = dict(zip(names, columns, strict=False))
    return RunRow(
        **fields,
        owner=_data(columns[9]),
        heartbeat_ns=columns[10] - ahead,
        salt=columns[11],
        summary=_data(columns[12]),
    )


def _data(column: str) -> dict[str, Any]:
    try:
        return _decode(column)
    except ValueError:  # somebody edited it by hand, and other rows must not suffer
        return {"unreadable": column}
