"""Signed files of heads: anchors that show that a log was cut off, rewritten or lost.

A checkpoint is a signed note (C2SP signed-note, Ed25519), so that other tools can check it too:

    agentguard checkpoint
    2026-11-22T13:25:41+00:00
    9 4c7fbe8e...5ec3 01a20381-98e0-785a-86b7-ffb552be01b7

    — agentguard 8f3a2b1cq83v...

The signature covers the lines above the empty one: the time, and sequence, hash and id of each log,
ordered by id.  The same heads, time and key give the same file.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from agentguard._optional import require
from agentguard.audit._files import written
from agentguard.errors import AgentGuardError, RunNotFoundError
from agentguard.events.model import CONTROL_RUN_ID, Head
from agentguard.protocols import EventStore, KillSwitch, RunRow
from agentguard.runs.summary import from_row

ORIGIN: Final = "agentguard checkpoint"
NAME: Final = "agentguard"
_ED25519: Final = b"\x01"
_HEAD = re.compile(r"([0-9]{1,18}) ([0-9a-f]{64}) (.+)")
_SIGNATURE = re.compile(r"— (\S+) (\S+)")


class CheckpointError(AgentGuardError):
    """A checkpoint, or a key, is not what it should be: nothing in it can be trusted."""


# --- keys ----------------------------------------------------------------------------------------


def new_key(path: str | os.PathLike[str]) -> str:
    """Make a private key, for its user alone to read, and give the public one: a line of text.

    Raises:
        FileExistsError: there is a file already.
        MissingExtraError: the package `cryptography` is not installed.

    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     public = new_key(os.path.join(folder, "checkpoint.pem"))
        >>> public.startswith("agentguard+")
        True
    """
    key = _ed25519().Ed25519PrivateKey.generate()
    forms = require("cryptography.hazmat.primitives.serialization", extra="crypto", feature="a checkpoint")
    text = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    return public_key(key)


def public_key(key: Any) -> str:
    """The public key that goes with a private one, as text: `agentguard+<id>+<base64>`."""
    raw = _private(key).public_key().public_bytes_raw()
    return f"{NAME}+{_key_id(raw).hex()}+{base64.b64encode(_ED25519 + raw).decode()}"


def _private(key: Any) -> Any:
    if hasattr(key, "sign"):
        return key
    text = key if isinstance(key, bytes) else Path(key).read_bytes()
    forms = require("cryptography.hazmat.primitives.serialization", extra="crypto", feature="a checkpoint")
    try:
        loaded = forms.load_pem_private_key(text, password=None)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"no private key in PEM without a password: {error}") from error
    if not isinstance(loaded, _ed25519().Ed25519PrivateKey):
        raise CheckpointError(f"the key must be an Ed25519 key, not {type(loaded).__name__}")
    return loaded


def _public(text: str) -> tuple[bytes, bytes]:
    """The id and the raw bytes of a public key's text."""
    try:
        name, key_id, encoded = text.strip().split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error) as error:
        raise CheckpointError(f"no public key: {text!r}") from error
    if name != NAME or raw[:1] != _ED25519 or len(raw) != 33 or key_id != _key_id(raw[1:]).hex():
        raise CheckpointError(f"no Ed25519 key of {NAME}: {text!r}")
    return _key_id(raw[1:]), raw[1:]


def _key_id(raw: bytes) -> bytes:
    return sha256(NAME.encode() + b"\n" + _ED25519 + raw).digest()[:4]


def _ed25519() -> Any:
    module = "cryptography.hazmat.primitives.asymmetric.ed25519"
    return require(module, extra="crypto", feature="a signed checkpoint")


# --- writing -------------------------------------------------------------------------------------


def heads(
    store: EventStore, switch: KillSwitch, *, run_id: str | None = None, tenant: str | None = None
) -> dict[str, Head]:
    """The newest event of a log, of a tenant's runs, or of all runs and the control log.

    Raises:
        RunNotFoundError: there is no such run.
    """
    found: dict[str, Head] = {}
    if run_id is None:
        found = {row.run_id: _head(store, row) for row in store.rows(tenant=tenant, limit=2**62)}
    elif run_id != CONTROL_RUN_ID:
        row = store.row(run_id)
        if row is None:
            raise RunNotFoundError(run_id)
        found[run_id] = _head(store, row)
    if run_id == CONTROL_RUN_ID or (run_id is None and tenant is None):
        for stored in switch.read():
            found[CONTROL_RUN_ID] = Head(stored.seq, stored.hash.hex())
    return found


def _head(store: EventStore, row: RunRow) -> Head:
    last = None if row.ended_ns is not None else store.last(row.run_id)
    return from_row(row).head if last is None else Head(last.seq, last.hash.hex())


def write_checkpoint(
    path: str | os.PathLike[str], heads: Mapping[str, Head], *, key: Any, at_ns: int
) -> None:
    """Sign heads, and put the file in its place once it is complete.

    Raises:
        MissingExtraError: the package `cryptography` is not installed.
        CheckpointError: the key is none.
    """
    private = _private(key)
    at = datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat()
    lines = [ORIGIN, at, *(f"{head.seq} {head.hash} {run_id}" for run_id, head in sorted(heads.items()))]
    note = "".join(f"{line}\n" for line in lines)
    key_id = _key_id(private.public_key().public_bytes_raw())
    signature = base64.b64encode(key_id + private.sign(note.encode())).decode()
    with written(path) as file:
        file.write(f"{note}\n— {NAME} {signature}\n".encode())


# --- reading -------------------------------------------------------------------------------------


def read_checkpoint(path: str | os.PathLike[str], public_key: str) -> dict[str, Head]:
    """The heads of a checkpoint, as anchors for `verify`.

    Raises:
        CheckpointError: it is not signed with this key, or was altered.
        MissingExtraError: the package `cryptography` is not installed.
    """
    key_id, raw = _public(public_key)
    verify = _ed25519().Ed25519PublicKey.from_public_bytes(raw).verify
    try:
        text, _, signatures = Path(path).read_bytes().decode().rpartition("\n\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no checkpoint") from error
    note = f"{text}\n"
    for line in signatures.splitlines():
        signed = _signed(line)
        if hmac.compare_digest(signed[:4], key_id):
            try:
                verify(signed[4:], note.encode())
            except Exception as error:
                raise CheckpointError(f"{path} was altered after it was signed") from error
            return _parse(text, path)
    raise CheckpointError(f"{path} is not signed with the key {public_key}")


def _signed(line: str) -> bytes:
    match = _SIGNATURE.fullmatch(line)
    if match is None or match[1] != NAME:
        return b""
    try:
        signed = base64.b64decode(match[2], validate=True)
    except binascii.Error:
        return b""
    # Base64 has bits that mean nothing; a file has one form all the same.
    return signed if base64.b64encode(signed).decode() == match[2] else b""


def _parse(text: str, path: str | os.PathLike[str]) -> dict[str, Head]:
    origin, _, *lines = text.split("\n")
    if origin != ORIGIN:
        raise CheckpointError(f"{path} is signed, and is no checkpoint of agentguard")
    heads: dict[str, Head] = {}
    for line in lines:
        if (match := _HEAD.fullmatch(line)) is None:
            raise CheckpointError(f"{path} is signed, and has a line that is no head: {line!r}")
        heads[match[3]] = Head(int(match[1]), match[2])
    return heads
