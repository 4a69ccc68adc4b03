"""Ledgers that lie apart from the event store (SEMANTICS rule 4)."""
