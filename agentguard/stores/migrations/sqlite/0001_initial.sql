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
    fed INTEGER NOT NULL DEFAULT 0, -- whether it has ended and the feed has all of its events
    pruning INTEGER NOT NULL DEFAULT 0
);

-- An index ends with the rowid, so each of these lists the newest runs without sorting.
CREATE INDEX run_by_tenant ON run (tenant);
CREATE INDEX run_by_state ON run (state);
CREATE INDEX run_by_tenant_and_state ON run (tenant, state);
CREATE INDEX run_by_parent ON run (parent_id) WHERE parent_id IS NOT NULL;

CREATE INDEX run_not_fed ON run (fed) WHERE fed = 0;

-- The key is run number * 2^32 + seq.  With one key, which is the rowid, an append changes one page,
-- and the key is the compare-and-swap.
CREATE TABLE event (
    key INTEGER PRIMARY KEY,
    at INTEGER NOT NULL, -- when it was appended, in ns, to order the feed
    body BLOB NOT NULL,
    hash BLOB NOT NULL,
    payload BLOB
);

-- The events of all runs in one order.  Who asks for that order adds what is new, not who appends.
CREATE TABLE feed (
    position INTEGER PRIMARY KEY AUTOINCREMENT, -- not given again when the newest run is pruned
    key INTEGER NOT NULL UNIQUE
);

CREATE TABLE account (
    id TEXT PRIMARY KEY,
    data TEXT NOT NULL
) WITHOUT ROWID;

-- That the key is free is checked for INSERT OR REPLACE, which runs no DELETE trigger.
CREATE TRIGGER event_follows BEFORE INSERT ON event
WHEN CASE
    WHEN new.key & 4294967295 > 1
        THEN (SELECT max(key) FROM event WHERE key <= new.key) IS NOT new.key - 1
    ELSE new.key & 4294967295 = 0
        OR NOT EXISTS (SELECT 1 FROM run WHERE number = new.key >> 32)
        OR EXISTS (SELECT 1 FROM event WHERE key = new.key)
    END
BEGIN
    SELECT RAISE(ABORT, 'agentguard: an event is appended after the last one of its run');
END;

-- A step that was in flight when its run ended settles late.
CREATE TRIGGER event_is_late AFTER INSERT ON event
WHEN EXISTS (SELECT 1 FROM run WHERE number = new.key >> 32 AND fed = 1)
BEGIN
    UPDATE run SET fed = 0 WHERE number = new.key >> 32;
END;

CREATE TRIGGER event_stays_as_it_is BEFORE UPDATE ON event
WHEN new.payload IS NOT NULL
    OR new.key IS NOT old.key
    OR new.at IS NOT old.at
    OR new.body IS NOT old.body
    OR new.hash IS NOT old.hash
BEGIN
    SELECT RAISE(ABORT, 'agentguard: nothing of an event changes, but its payload may be erased');
END;

CREATE TRIGGER event_stays BEFORE DELETE ON event
WHEN NOT EXISTS (SELECT 1 FROM run WHERE number = old.key >> 32 AND pruning = 1)
BEGIN
    SELECT RAISE(ABORT, 'agentguard: events go only with their whole ended run');
END;

CREATE TRIGGER feed_follows BEFORE INSERT ON feed
WHEN EXISTS (SELECT 1 FROM feed WHERE key = new.key OR position = new.position)
    OR NOT EXISTS (SELECT 1 FROM event WHERE key = new.key)
BEGIN
    SELECT RAISE(ABORT, 'agentguard: an event has one place in the feed');
END;

CREATE TRIGGER feed_stays_as_it_is BEFORE UPDATE ON feed
BEGIN
    SELECT RAISE(ABORT, 'agentguard: a place in the feed does not change');
END;

CREATE TRIGGER feed_stays BEFORE DELETE ON feed
WHEN NOT EXISTS (SELECT 1 FROM run WHERE number = old.key >> 32 AND pruning = 1)
BEGIN
    SELECT RAISE(ABORT, 'agentguard: events go only with their whole ended run');
END;

CREATE TRIGGER run_is_pruned_ended BEFORE UPDATE ON run
WHEN new.pruning != 0 AND old.state NOT IN ('COMPLETED', 'KILLED', 'FAILED')
BEGIN
    SELECT RAISE(ABORT, 'agentguard: only an ended run can be pruned');
END;

CREATE TRIGGER run_stays BEFORE DELETE ON run
WHEN old.pruning = 0 OR EXISTS (
    SELECT 1 FROM event WHERE key > old.number << 32 AND key < old.number + 1 << 32
)
BEGIN
    SELECT RAISE(ABORT, 'agentguard: a run goes only when it is pruned, after its events');
END;
