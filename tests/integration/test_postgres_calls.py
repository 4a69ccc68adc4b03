"""Calls: statements that are prepared where they can be, and whose parameters are packed by the library."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from agentguard.stores._postgres_calls import (
    Call,
    bigint,
    bigints,
    binary,
    byteas,
    integer,
    integers,
    text,
    texts,
)
from agentguard.stores._postgres_link import Link, connect
from tests.postgres import Postgres

DIVIDE = Call("divide", "SELECT $1::integer / $2::integer", integer, integer)
ALL = Call(
    "all",
    "SELECT $1::integer, $2::bigint, $3::text, $4::bytea, $5::integer[], $6::bigint[], $7::text[], $8::bytea[]",
    *(integer, bigint, text, binary, integers, bigints, texts, byteas),
)


@pytest.fixture
def link(postgres_url: str) -> Iterator[Link]:
    with connect(postgres_url, 30.0) as link:
        yield link


@pytest.mark.parametrize(
    "values",
    [
        (-1, 2**63 - 1, "Zoë ☃", b"\0\xff", [1, -(2**31)], [2**40], ["", "Zoë ☃"], [b"", None, b"\0"]),
        (None, None, None, None, None, None, None, None),
        (0, 0, "", b"", [], [], [], []),
        (0, 0, "", b"", [None], [None, 1], [None, "a"], [None]),
    ],
)
def test_the_server_reads_what_was_packed(link: Link, values: tuple[object, ...]) -> None:
    assert link.rows(link.call(ALL, *values)) == [values]


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (DIVIDE, (2**31, 1)),
        (ALL, (0, 2**63, "", b"", [], [], [], [])),
        (ALL, (0, 0, "\udc80", b"", [], [], [], [])),
        (ALL, (0, 0, "", b"", [2**31], [], [], [])),
        (ALL, (0, 0, "", b"", [], [], ["\udc80"], [])),
        (ALL, (0, 0, "\0", b"", [], [], [], [])),  # which the server finds
    ],
)
def test_what_has_no_form_in_the_server_is_an_error_of_the_drivers(
    link: Link, call: Call, values: tuple[object, ...]
) -> None:
    with pytest.raises(psycopg.DataError):
        link.call(call, *values)
    assert link.rows(link.call(DIVIDE, 6, 2)) == [(3,)]


def test_calls_that_go_together_are_one_transaction_and_the_first_error_is_told(link: Link) -> None:
    link.execute("CREATE TABLE kept (value integer)")
    keep = Call("keep", "INSERT INTO kept VALUES ($1)", integer)
    link.together([(keep, (1,)), (keep, (2,))])
    with pytest.raises(psycopg.errors.DivisionByZero):
        link.together([(keep, (3,)), (DIVIDE, (1, 0)), (keep, (4,))])
    with pytest.raises(psycopg.errors.DivisionByZero):
        link.call(DIVIDE, 1, 0)
    assert link.together([]) == []
    assert [link.rows(result) for result in link.together([(DIVIDE, (6, 2)), (DIVIDE, (6, 3))])] == [
        [(3,)],
        [(2,)],
    ]
    assert link.ask("SELECT value FROM kept ORDER BY value") == [(1,), (2,)]


@pytest.mark.parametrize("size", [10**5, 10**6, 10**7])
def test_calls_that_go_together_may_be_larger_than_a_socket_takes_at_once(link: Link, size: int) -> None:
    link.patience = 10.0
    echo = Call("echo", "SELECT $1::bytea", binary)
    values = [bytes([number]) * size for number in range(3)]
    for _ in range(5):
        results = link.together([(echo, (value,)) for value in values])
        assert [link.rows(result) for result in results] == [[(value,)] for value in values]


def test_a_call_is_prepared_once_and_by_the_server_itself_alone(own_postgres: Postgres) -> None:
    """Behind a pool the next transaction may be on another session, which does not know it."""
    count = "SELECT count(*) FROM pg_prepared_statements"
    with own_postgres.bouncer(pool_size=1) as bouncer:
        for url, prepared in ((own_postgres.url(), 1), (bouncer.url(), 0)):
            with connect(url, 30.0) as link:
                assert [link.rows(link.call(DIVIDE, 6, by)) for by in (1, 2, 3)] == [[(6,)], [(3,)], [(2,)]]
                assert link.ask(count) == [(prepared,)]
