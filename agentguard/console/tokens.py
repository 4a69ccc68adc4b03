"""The tokens that open the console: named, with a role, stored as hashes in one file."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path

import msgspec

from agentguard import _typed
from agentguard._home import make_private
from agentguard.errors import AgentGuardError
from agentguard.tenancy import check_id

FILE = "console-tokens.json"
_PREFIX = "agt"
_MAX_NAME = 64


class Role(IntEnum):
    """What a token allows; each role allows what those below it allow.

    A viewer reads.  An operator also approves, denies, pauses, resumes and kills.  An admin also revives.
    """

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @classmethod
    def named(cls, name: str) -> Role:
        """Return the role of a name.

        Raises:
            ValueError: there is none.
        """
        try:
            return cls[name.upper()]
        except KeyError:
            raise ValueError(f"role must be viewer, operator or admin, not {name!r}") from None


class TokenError(AgentGuardError):
    """The file of tokens cannot be read, or a token of that name is there already, or is not."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is stored: all but its secret.

    `tenant` binds it to the runs of one tenant; None sees all.  Times are seconds since the epoch.
    """

    id: str
    name: str
    role: str
    digest: str
    created: float
    tenant: str | None = None
    expires: float | None = None
    revoked: float | None = None

    def works(self, now: float) -> bool:
        """Return whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class Tokens:
    """The tokens in a file that only its user may read.

    It is read anew each time, so that a revocation acts at once.

    A secret has 256 random bits, so that a plain SHA-256 of it can neither be reversed nor guessed.

    Example:
        >>> import tempfile, pathlib
        >>> tokens = Tokens(pathlib.Path(tempfile.mkdtemp()) / "tokens.json")
        >>> secret = tokens.add("on-call", Role.OPERATOR)
        >>> tokens.check(secret).name, tokens.check(secret + "x")
        ('on-call', None)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[Token]:
        """Return every token, revoked ones too.

        Raises:
            TokenError: the file cannot be read.
        """
        try:
            return _typed.decode(self.path.read_bytes(), list[Token])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            raise TokenError(f"the console's tokens in {self.path} cannot be read: {error}") from error

    def working(self) -> list[Token]:
        """Return the tokens that open the console now."""
        now = datetime.now(UTC).timestamp()
        return [token for token in self.all() if token.works(now)]

    def add(
        self, name: str, role: Role, *, tenant: str | None = None, lifetime: timedelta | None = None
    ) -> str:
        """Make a token and return its secret, which is shown this once.

        Raises:
            ValueError: the name, the tenant or the lifetime cannot be meant.
            TokenError: a working token has this name.
        """
        _check_name(name)
        if tenant is not None:
            check_id(tenant, "tenant")
        if lifetime is not None and lifetime <= timedelta(0):
            raise ValueError(f"lifetime must be above 0, not {lifetime}")
        now = datetime.now(UTC).timestamp()
        number, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        token = Token(
            id=number,
            name=name,
            role=role.name.lower(),
            digest=_digest(secret),
            created=now,
            tenant=tenant,
            expires=None if lifetime is None else now + lifetime.total_seconds(),
        )
        with self._changing() as tokens:
            if any(other.name == name and other.works(now) for other in tokens):
                raise TokenError(f"there is a token {name!r} already; revoke it first, or take another name")
            tokens.append(token)
        return f"{_PREFIX}_{number}_{secret}"

    def revoke(self, name: str) -> None:
        """Let a token open nothing from now on; the sessions that it opened end too.

        Raises:
            TokenError: no working token has this name.
        """
        now = datetime.now(UTC).timestamp()
        with self._changing() as tokens:
            for index, token in enumerate(tokens):
                if token.name == name and token.works(now):
                    tokens[index] = msgspec.structs.replace(token, revoked=now)
                    return
        raise TokenError(f"there is no working token {name!r}; `agentguard token list` names them")

    def check(self, secret: str) -> Token | None:
        """Return the token of a secret; None if it is wrong, revoked or expired.

        The comparison takes as long for a wrong secret as for a right one, and as long without such a token.
        """
        prefix, _, rest = secret.partition("_")
        number, _, own = rest.partition("_")
        found = self.by_id(number) if prefix == _PREFIX else None
        expected = found.digest if found is not None else _digest("")
        matches = hmac.compare_digest(_digest(own), expected)
        return found if found is not None and matches and own else None

    def by_id(self, number: str) -> Token | None:
        """Return the working token with this id."""
        return next((token for token in self.working() if token.id == number), None)

    @contextmanager
    def _changing(self) -> Iterator[list[Token]]:
        make_private(self.path.parent)
        with _lock(self.path.with_suffix(".lock")):
            tokens = self.all()
            yield tokens
            _replace(self.path, msgspec.json.format(msgspec.json.encode(tokens)))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _check_name(name: str) -> None:
    if not name or len(name) > _MAX_NAME or not name.isprintable() or name != name.strip():
        raise ValueError(f"a token's name must be 1 to {_MAX_NAME} printable characters, not {name!r}")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            import fcntl  # noqa: PLC0415 - not on Windows
        except ImportError:  # tokens are made by hand, one at a time
            pass
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # of mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
