"""The server that the tests of Postgres use is a real one, and is theirs alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests import postgres
from tests.postgres import Postgres, execute


@pytest.mark.parametrize("turn", range(4))
def test_each_test_has_an_empty_database_of_its_own(empty_postgres: str, turn: int) -> None:
    execute(empty_postgres, "CREATE TABLE mine (turn int)")
    assert execute(empty_postgres, "SELECT count(*) FROM mine") == [(0,)]


def test_the_last_one_to_leave_ends_the_shared_server(tmp_path: Path) -> None:
    if postgres.POSTGRES_URL is not None:
        pytest.skip("the server is somebody else's")
    with postgres.shared(tmp_path) as first:
        with postgres.shared(tmp_path) as second:
            assert first == second
        assert execute(first, "SELECT 1") == [(1,)]
    folder = Path(first.partition("@")[2].partition(":")[0].replace("%2F", "/"))
    assert not folder.exists()


def test_a_server_of_ones_own_can_be_killed_and_started_again(own_postgres: Postgres) -> None:
    own_postgres.execute("CREATE TABLE kept AS SELECT 7 AS value")
    own_postgres.kill()
    own_postgres.start()
    assert own_postgres.execute("SELECT value FROM kept") == [(7,)]
    own_postgres.send(signal.SIGSTOP)
    own_postgres.send(signal.SIGCONT)
    with own_postgres.replica() as follower, own_postgres.bouncer() as bouncer:
        assert follower.execute("SELECT pg_is_in_recovery()") == [(True,)]
        assert execute(bouncer.url(), "SELECT value FROM kept") == [(7,)]
