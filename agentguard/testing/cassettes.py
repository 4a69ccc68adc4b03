"""Cassettes: a recorded run as a file for version control, and back to a log that can be replayed.

    {"agentguard_cassette": 1}                               the first line
    {"run": "test_mail/test_answers", "name": ..., ...}      a log begins: the run's, then those inside it
    {"type": "step_started", "key": "main/search#1", ...}    its events, in order, one a line
    {"end": {"events": 9, "sha256": "..."}}                  the last line, over all before it

What differs each time and means nothing to a replay is left out: times, durations, ids of spans, salts,
digests and hashes.  They are made again when a cassette is read, so that its log verifies like any other.
Only the last line changes along with another one.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from agentguard._secrets.masking import mask_text
from agentguard._secrets.shapes import SHAPES
from agentguard.audit._files import written
from agentguard.errors import AgentGuardError
from agentguard.events import codec, conversations
from agentguard.events import model as ev
from agentguard.events.codec import Stored, digester
from agentguard.events.model import Record
from agentguard.protocols import EventStore, RunRow
from agentguard.runs.fold import RunFold
from agentguard.steps.log import row_of

FORMAT: Final = 1
#: A cassette keeps no secrets, so nothing is to be guessed from its digests.
SALT: Final = b"agentguard/cassette".ljust(32, b"\0")
_DIGEST: Final = digester(SALT)

#: The digest of an event's payload, by what the event is.
_DIGESTS: Final = {
    ev.RUN_CREATED: "inputs",
    ev.STEP_STARTED: "args",
    ev.STEP_REFUSED: "args",
    ev.APPROVAL_REQUESTED: "args",
    ev.STEP_COMPLETED: "result",
    ev.STEP_FAILED: "result",
    ev.STEP_RESOLVED: "result",
    ev.VALUE: "value",
}
#: Facts that differ from one recording to the next.
_PASSING: Final = ("shown", "running_ns", "python", "generation", "epoch")
#: What the outcome of a step repeats of its start.
_ENDS: Final = (ev.STEP_COMPLETED, ev.STEP_FAILED)
_OF_START: Final = ("pos", "name", "kind", "attempt")
#: When a cassette's events were, as far as its log says: a moment for each.
_EPOCH_NS: Final = 1_767_225_600_000_000_000
_KEPT: Final = ("type", "key", "pos", "name", "kind", "attempt", "usage", "data")


class CassetteError(AgentGuardError):
    """A cassette cannot be written as it is, or is not what was recorded; `line` says where."""

    _facts = ("path", "line", "problem")

    def __init__(self, path: str, line: int | None, problem: str) -> None:
        self.path = path
        self.line = line
        self.problem = problem
        super().__init__(f"{path}{'' if line is None else f', line {line}'}: {problem}")


# --- writing -------------------------------------------------------------------------------------


def write(store: EventStore, run_id: str, path: Path) -> int:
    """Write the log of a run, and of the runs inside it; gives how many events there are.

    Raises:
        CassetteError: something in it looks like a secret, or could not be replayed.
    """
    lines = [json.dumps({"agentguard_cassette": FORMAT})]
    lines += _log_lines(store, run_id, path)
    for number, line in enumerate(lines, 1):
        if (kind := _secret(line)) is not None:
            where = line if len(line) < 100 else f"{line[:60]}..."
            raise CassetteError(
                str(path), number, f"refusing to write what looks like a secret ({kind}): {mask_text(where)}"
            )
    text = "".join(f"{line}\n" for line in lines)
    events = sum(line.startswith('{"type":') for line in lines)
    end = {"end": {"events": events, "sha256": sha256(text.encode()).hexdigest()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as file:
        file.write(f"{text}{json.dumps(end)}\n".encode())
    path.chmod(0o644)
    return events


def _log_lines(store: EventStore, run_id: str, path: Path) -> Iterator[str]:
    row = store.row(run_id)
    if row is None:
        return
    facts = {"run": run_id, "name": row.name, "tenant": row.tenant, "parent": row.parent_id}
    yield json.dumps({name: value for name, value in facts.items() if value is not None}, ensure_ascii=False)
    inside: set[str] = set()
    starts: dict[str | None, Record] = {}
    log = conversations.whole(store.read(run_id), row.salt)
    for stored, whole in zip(store.read(run_id), log, strict=True):
        record = codec.decode(stored.body)
        _check(record, inside, path)
        apart = [] if whole.payload == stored.payload else conversations.paths(stored.payload or b"")
        yield _line(record, whole.payload, starts.get(record.key), apart, comparable=row.salt == SALT)
        if record.type == ev.STEP_STARTED:
            starts[record.key] = record
    for child in store.children(run_id):
        yield from _log_lines(store, child.run_id, path)


def _check(record: Record, inside: set[str], path: Path) -> None:
    """Refuse a step that no replay can serve; one inside another step need not be served."""
    data = record.data or {}
    if record.type == ev.STEP_STARTED and "parent" in data:
        inside.add(record.key or "")
    if "unreplayable" in data and record.key not in inside and "parent" not in data:
        raise CassetteError(
            str(path), None, f"{record.key} could not be replayed from it: {data['unreplayable']}"
        )


def _line(
    record: Record,
    payload: bytes | None,
    start: Record | None,
    apart: Sequence[conversations.Path],
    *,
    comparable: bool,
) -> str:
    fields = {name: getattr(record, name) for name in _KEPT}
    if record.type in _ENDS and start is not None:
        fields |= {name: None for name in _OF_START if getattr(start, name) == getattr(record, name)}
    elif record.type == ev.STEP_STARTED and record.attempt == 1:
        fields["attempt"] = None
    data = {name: value for name, value in (record.data or {}).items() if name not in _PASSING}
    if payload is not None or not comparable:
        data.pop(_DIGESTS.get(record.type, ""), None)
    if payload is not None:
        fields |= _payload_fields(payload) | {"conversations": apart}
    fields["data"] = data
    kept = {
        name: value for name, value in fields.items() if value not in (None, 0, {}, []) or name == "payload"
    }
    return json.dumps(kept, ensure_ascii=False)


def _payload_fields(payload: bytes) -> dict[str, Any]:
    """A payload as JSON where that gives the same bytes back, else as text or base64."""
    try:
        value = json.loads(payload)
        if _encode(value) == payload:
            return {"payload": value}
        return {"payload_text": payload.decode()}
    except ValueError:
        return {"payload_base64": base64.b64encode(payload).decode()}


def _encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (OverflowError, TypeError, ValueError):
        return b""


def _secret(line: str) -> str | None:
    """What kind of secret a line seems to hold."""
    if mask_text(line) == line:
        return None
    return next((kind for kind, shape in SHAPES.items() if re.search(shape.pattern, line)), "by its name")


# --- reading -------------------------------------------------------------------------------------


def read(path: Path, store: EventStore) -> str:
    """Put the logs of a cassette into a store, and give the id of the run.

    Raises:
        CassetteError: it was cut off, edited, or is of a newer format.
    """
    lines = _checked(path)
    run_id: str | None = None
    log: list[tuple[int, dict[str, Any]]] = []
    head: dict[str, Any] = {}
    for number, entry in [*lines, (0, {"run": None})]:
        if "run" not in entry:
            log.append((number, entry))
            continue
        if head:
            _add(path, store, head, log)
            run_id = run_id or head["run"]
        head, log = entry, []
    if run_id is None:
        raise CassetteError(str(path), None, "it holds no run")
    return run_id


def _checked(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The lines between the first and the last, once these two say that all is there."""
    raw = path.read_bytes().replace(b"\r\n", b"\n")  # as git may check it out
    lines = raw.splitlines(keepends=True)
    entries = [_entry(path, number, line) for number, line in enumerate(lines, 1)]
    version = entries[0].get("agentguard_cassette") if entries else None
    if version != FORMAT:
        said = "is no cassette of agentguard" if version is None else f"has format {version}, not {FORMAT}"
        raise CassetteError(str(path), 1, f"the file {said}")
    end = entries[-1].get("end")
    if not isinstance(end, dict):
        raise CassetteError(str(path), len(lines), "it was cut off: the last line with the digest is missing")
    if end.get("sha256") != sha256(b"".join(lines[:-1])).hexdigest():
        raise CassetteError(
            str(path), None, "it is not what was recorded: it was edited, or merged; record it again"
        )
    return list(enumerate(entries[1:-1], 2))


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise CassetteError(str(path), number, f"it is no JSON: {error}") from error
    if not isinstance(entry, dict):
        raise CassetteError(str(path), number, "it is no JSON object")
    return entry


def _add(
    path: Path, store: EventStore, head: dict[str, Any], log: Iterable[tuple[int, dict[str, Any]]]
) -> None:
    """One log, its times, digests and hashes made again."""
    fold = RunFold(head["run"])
    events: list[Stored] = []
    starts: dict[str | None, Record] = {}
    messages = conversations.StoredMessages(_DIGEST)
    for number, entry in log:
        try:
            record, payload = _record(entry, fold, starts)
            body = codec.encode(record)
            digest = codec.chain(fold.hash, body)
            fold.apply(codec.decode(body), digest)
        except (AgentGuardError, LookupError, TypeError, ValueError) as error:
            raise CassetteError(str(path), number, f"it is no event: {error!r}") from error
        if isinstance(payload, conversations.ConversationCall):
            payload = messages.payload(payload)
        events.append(Stored(record.seq, body, digest, payload))
        messages.take_in(events[-1])
        if record.type == ev.STEP_STARTED:
            starts[record.key] = record
    if not events:
        raise CassetteError(str(path), None, f"run {head['run']} has no events")
    row = RunRow(
        run_id=fold.run_id,
        name=fold.name,
        tenant=fold.tenant,
        state=str(fold.state),
        created_ns=fold.created_ns,
        parent_id=fold.parent_id,
        salt=SALT,
    )
    store.create(row_of(row, fold), events)


def _record(
    entry: dict[str, Any], fold: RunFold, starts: dict[str | None, Record]
) -> tuple[Record, bytes | None]:
    fields: dict[str, Any] = {}
    if entry["type"] == ev.STEP_STARTED:
        fields["attempt"] = 1
    elif entry["type"] in _ENDS and (start := starts.get(entry.get("key"))) is not None:
        fields |= {name: getattr(start, name) for name in _OF_START}
    fields |= {name: entry[name] for name in _KEPT if name in entry}
    data = dict(fields.pop("data", {}))
    payload = _payload(entry)
    if payload is not None:
        data[_DIGESTS[entry["type"]]] = _DIGEST(payload)
    usage = fields.get("usage")
    record = Record(
        seq=fold.seq + 1,
        at_ns=_EPOCH_NS + fold.seq * 1_000_000,
        spent=None if usage is None else fold.spent_after(usage),
        data=data or None,
        **fields,
    )
    return record, payload


def _payload(entry: dict[str, Any]) -> bytes | None:
    if "payload_base64" in entry:
        return base64.b64decode(entry["payload_base64"], validate=True)
    if "payload" in entry:
        payload = msgspec.json.encode(entry["payload"])
    elif "payload_text" in entry:
        payload = str(entry["payload_text"]).encode()
    else:
        return None
    apart = map(tuple, entry.get("conversations", ()))
    return conversations.apart(payload, apart, _DIGEST) if "conversations" in entry else payload
