"""The two ways in which something leaves the logs in PostgreSQL: erased payloads and pruned runs.

A month of which nothing is kept goes as one partition; of the others each run goes in an act of its own, so
that writers get their turns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from psycopg import errors as pg

from agentguard.stores._postgres_transactions import WRITES, Transactions


def erase(transactions: Transactions, sql: Mapping[str, str], run_id: str) -> int:
    """Drop the payloads and the salt of a run; gives how many payloads there were."""
    with transactions.begin() as link:
        dropped = link.change(sql["erase_payloads"], (run_id,))
        link.change(sql["erase_salt"], (run_id,))
        return dropped


def prune(
    transactions: Transactions, sql: Mapping[str, str], ended_before_ns: int, keep: Collection[str]
) -> list[str]:
    """Drop ended runs, and give their ids."""
    pruned: list[str] = []
    for (month,) in transactions.select("months"):
        pruned += _drop_month(transactions, sql, month, ended_before_ns, keep)
    for number, run_id in transactions.select("prunable", (ended_before_ns,)):
        if run_id not in keep and _prune_run(transactions, sql, number, run_id):
            pruned.append(run_id)
    return pruned


def _drop_month(
    transactions: Transactions,
    sql: Mapping[str, str],
    month: str,
    ended_before_ns: int,
    keep: Collection[str],
) -> list[str]:
    try:
        with transactions.begin(WRITES) as link:  # which has not entered: it waits for those who have
            [[dropped]] = link.ask(sql["drop_month"], (month, ended_before_ns, list(keep)))
            for run_id in dropped or ():
                link.change(sql["delete_accounts"], {"run_id": run_id})
            return dropped or []
    except pg.LockNotAvailable:  # it is in use: its runs go one by one
        return []


def _prune_run(transactions: Transactions, sql: Mapping[str, str], number: int, run_id: str) -> bool:
    with transactions.begin() as link:
        if not link.change(sql["mark_pruning"], (number,)):
            return False
        link.change(sql["delete_events"], (number,))
        link.change(sql["delete_run"], (number,))
        link.change(sql["delete_accounts"], {"run_id": run_id})
        return True
