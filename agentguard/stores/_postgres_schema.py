"""The schema in a PostgreSQL database: numbered scripts, carried out in order and never edited."""

from __future__ import annotations

from psycopg.sql import SQL, Identifier

from agentguard._secrets.urls import public_url
from agentguard.errors import StoreUnavailableError
from agentguard.stores import _postgres_queue, _sql
from agentguard.stores._postgres_link import Link, Translation, connect

#: "agrd": two that migrate at once take turns.
_LOCK = 0x61677264
#: How many months have partitions made for them in advance.
_MONTHS = 12


def known_version() -> int:
    """The version that this library is written for."""
    return _sql.migrations("postgres")[-1][0]


def check(link: Link, url: str, *, narrow: bool) -> bool:
    """Refuse a database that this library cannot work with; gives whether the login is a tenant's own.

    Raises:
        StoreUnavailableError: the schema is missing, older or newer, or was restored and not migrated; or,
            with `narrow`, the login could not be kept to one tenant.
    """
    place = public_url(url)
    version = version_of(link)
    known = known_version()
    if version is None:
        raise StoreUnavailableError(
            f"{place} has no agentguard schema that this login may use; run `agentguard migrate --store URL` "
            "as its owner"
        )
    if version > known:
        raise StoreUnavailableError(
            f"{place} has schema {version} and this agentguard knows {known}; upgrade agentguard"
        )
    if version < known:
        raise StoreUnavailableError(
            f"{place} has schema {version} and this agentguard needs {known}; run `agentguard migrate`"
        )
    queries = _sql.queries("postgres")
    [[tenant_login]] = link.ask(queries["is_tenant"])
    if not tenant_login and link.ask(queries["is_behind"]) == [(True,)]:
        raise StoreUnavailableError(
            f"{place} was restored into another server, whose positions would begin anew; run "
            "`agentguard migrate` once"
        )
    if narrow and link.ask(queries["bypasses"]) == [(True,)]:
        raise StoreUnavailableError(
            f"{place}: row-level security does not bind this login, so tenant= would not hold; use one that "
            "is no superuser and has the role agentguard_agent"
        )
    return bool(tenant_login)


def version_of(link: Link) -> int | None:
    """The schema's version, or None where there is none to be seen."""
    exists = link.ask("SELECT to_regclass('agentguard.migration') IS NOT NULL")
    if exists != [(True,)]:
        return None
    [[version]] = link.ask("SELECT coalesce(max(version), 0) FROM agentguard.migration")
    return int(version)


def migrate(url: str, *, store_timeout: float = 30.0) -> list[str]:
    """Bring a database's schema up to date and make partitions in advance; gives what was done.

    All of it is one transaction.  Run it with a login that owns the schema, or may create one, and roles.

    Raises:
        StoreUnavailableError: the schema is newer than this library, the server refuses, or the encoding of a
            database without a schema cannot store every text.
    """
    errors = Translation(url)
    with errors(), connect(url, store_timeout) as link, link.transaction():
        _check_encoding(link, url)
        return _migrate(link, url)


def _check_encoding(link: Link, url: str) -> None:
    [[encoding]] = link.ask("SHOW server_encoding")
    if encoding != "UTF8" and version_of(link) is None:
        raise StoreUnavailableError(
            f"{public_url(url)} has the encoding {encoding}, in which not every text can be stored; make a "
            "database by `createdb --encoding=UTF8 --template=template0 NAME`"
        )


def bind_login(url: str, login: str, tenant: str) -> None:
    """Let a login of the server read one tenant and nothing else.

    Raises:
        StoreUnavailableError: there is no such login, it is bound to another tenant, or this one may not.
    """
    errors = Translation(url)
    queries = _sql.queries("postgres")
    with errors(), connect(url, 30.0) as link, link.transaction():
        bound = link.ask(queries["bind_login"], (login, tenant, login))
        if bound != [(tenant,)]:
            raise StoreUnavailableError(
                f"login {login} is bound to another tenant already; make a login for each tenant"
            )
        link.execute(SQL("GRANT agentguard_tenant TO {}").format(Identifier(login)))


def _migrate(link: Link, url: str) -> list[str]:
    link.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    version = _prepare(link)
    known = known_version()
    if version > known:
        raise StoreUnavailableError(
            f"{public_url(url)} has schema {version} and this agentguard knows {known}; upgrade agentguard"
        )
    done = []
    if version < known:
        _postgres_queue.make_way(link)
    for number, name, script in _scripts():
        if number > version:
            link.execute(script.encode())
            link.execute("INSERT INTO agentguard.migration (version, name) VALUES (%s, %s)", (number, name))
            done.append(name)
    [[made]] = link.ask("SELECT agentguard.make_partitions(%s)", (_MONTHS,))
    if made:
        done.append(f"{made} monthly partitions")
    done += _postgres_queue.migrate(link)
    if link.change(_CATCH_UP):
        done.append("positions go on after those that were restored")
    return done


def _prepare(link: Link) -> int:
    queries = _sql.queries("postgres_roles")
    for name in ("roles", "schema"):
        link.ask(queries[name])
    link.ask(_sql.queries("postgres_queue")["schema"])
    for name in ("become_owner", "versions"):
        link.ask(queries[name])
    return version_of(link) or 0


def _scripts() -> list[tuple[int, str, str]]:
    return [(number, f"{number:04}", script) for number, script in _sql.migrations("postgres")]


# The next transaction begins above everything that was given.
_CATCH_UP = """
UPDATE agentguard.timeline SET base = base + 1 + (
    (SELECT coalesce(max(position), 0) FROM agentguard.event)
    - agentguard.now_at(pg_snapshot_xmax(pg_current_snapshot()))
) / 1048576
WHERE (SELECT coalesce(max(position), 0) FROM agentguard.event)
    > agentguard.now_at(pg_snapshot_xmax(pg_current_snapshot()))
"""
