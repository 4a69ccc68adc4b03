-- The logs, one row for each run, and the shared accounts.  Released migrations are never edited.

CREATE TABLE run (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- not given again when the newest run is pruned
    run_id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    state TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    parent_id TEXT,
    ended_ns INTEGER,
    epoch INTEGER NOT NULL,
    owner TEXT NOT NULL,
    heartbeat_ns INTEGER NOT NULL,
    salt BLOB,
    summary TEXT NOT NULL,
    pruning INTEGER NOT NULL DEFAULT 0
);

-- An index ends with the rowid, so each of these lists the newest runs without sorting.
CREATE INDEX run_by_tenant ON run (tenant);
CREATE INDEX run_by_state ON run (state);
CREATE INDEX run_by_tenant_and_state ON run (tenant, state);
CREATE INDEX run_by_parent ON run (parent_id) WHERE parent_id IS NOT NULL;

-- Run 0 is nobody's: its one empty event keeps the highest position from being given again.
CREATE TABLE event (
    position INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    body BLOB NOT NULL,
    hash BLOB NOT NULL,
    payload BLOB,
    UNIQUE (run, seq)
);

CREATE TABLE account (
    id TEXT PRIMARY KEY,
    data TEXT NOT NULL
) WITHOUT ROWID;

-- The first two lines are for INSERT OR REPLACE, which runs no DELETE trigger.
CREATE TRIGGER event_follows BEFORE INSERT ON event
WHEN EXISTS (SELECT 1 FROM event WHERE position = new.position)
    OR EXISTS (SELECT 1 FROM event WHERE run = new.run AND seq = new.seq)
    OR CASE
        WHEN new.run = 0 THEN new.body != x''
        WHEN new.seq = 1 THEN NOT EXISTS (SELECT 1 FROM run WHERE number = new.run)
        ELSE NOT EXISTS (SELECT 1 FROM event WHERE run = new.run AND seq = new.seq - 1)
    END
BEGIN
    SELECT RAISE(ABORT, 'agentguard: an event is appended after the last one of its run');
END;

CREATE TRIGGER event_stays_as_it_is BEFORE UPDATE ON event
WHEN new.payload IS NOT NULL
    OR new.position IS NOT old.position
    OR new.run IS NOT old.run
    OR new.seq IS NOT old.seq
    OR new.body IS NOT old.body
    OR new.hash IS NOT old.hash
BEGIN
    SELECT RAISE(ABORT, 'agentguard: nothing of an event changes, but its payload may be erased');
END;

CREATE TRIGGER event_stays BEFORE DELETE ON event
WHEN old.run != 0 AND NOT EXISTS (SELECT 1 FROM run WHERE number = old.run AND pruning = 1)
BEGIN
    SELECT RAISE(ABORT, 'agentguard: events go only with their whole ended run');
END;

CREATE TRIGGER run_is_pruned_ended BEFORE UPDATE ON run
WHEN new.pruning != 0 AND old.state NOT IN ('COMPLETED', 'KILLED', 'FAILED')
BEGIN
    SELECT RAISE(ABORT, 'agentguard: only an ended run can be pruned');
END;

CREATE TRIGGER run_stays BEFORE DELETE ON run
WHEN old.pruning = 0 OR EXISTS (SELECT 1 FROM event WHERE run = old.number)
BEGIN
    SELECT RAISE(ABORT, 'agentguard: a run goes only when it is pruned, after its events');
END;
