"""Run rows as SQLite's columns; what is nested is JSON text, readable in a shell."""

from __future__ import annotations

from typing import Any

import msgspec

from agentguard.protocols import RunRow

# Sorted, so that equal owners are equal texts, which the claim of a run compares.
_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def parameters(row: RunRow) -> dict[str, Any]:
    """The columns of a run by name."""
    columns = {name: getattr(row, name) for name in row.__struct_fields__}
    columns["owner"] = _encode(row.owner).decode()
    columns["summary"] = _encode(row.summary).decode()
    return columns


def run_row(columns: tuple[Any, ...]) -> RunRow:
    """A run from its columns, in the order of the queries; text comes as its bytes.

    What was garbled by hand is given as it can be: who needs it says what is wrong with it, and other
    rows must not suffer.
    """
    return RunRow(
        run_id=_text(columns[0]),
        name=_text(columns[1]),
        tenant=_text(columns[2]),
        state=_text(columns[3]),
        created_ns=columns[4] or 0,
        number=columns[5],
        parent_id=optional_text(columns[6]),
        ended_ns=columns[7],
        epoch=columns[8] or 0,
        owner=_data(columns[9]),
        heartbeat_ns=columns[10] or 0,
        salt=columns[11],
        summary=_data(columns[12]),
    )


def optional_text(column: bytes | None) -> str | None:
    """What a column says that may be empty."""
    return None if column is None else _text(column)


def _text(column: bytes | None) -> str:
    # A page that was overwritten has NULL also where the schema allows none.
    return "" if column is None else column.decode("utf-8", "replace")


def _data(column: bytes | None) -> dict[str, Any]:
    if column is None:
        return {"unreadable": None}
    try:
        return _decode(column)
    except ValueError:
        return {"unreadable": _text(column)}
