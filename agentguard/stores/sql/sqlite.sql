-- The queries of SQLiteEventStore: a name, a line of purpose, the statement.
-- The casts change nothing of what was written here.  Whoever edits a file by hand may leave text or
-- numbers where bytes were, and the reverse; those are read as their bytes, so that a hash tells.
-- What a damaged page has as NULL is read as no bytes.

-- name: insert_event
-- Append one event; a trigger sees to it that it is the next one of its run.
INSERT INTO event (key, at, body, hash, payload) VALUES (?, ?, ?, ?, ?);

-- name: insert_run
-- Add a run.
INSERT INTO run (
    run_id, name, tenant, state, created_ns, parent_id, ended_ns, epoch, owner, heartbeat_ns,
    salt, summary
) VALUES (
    :run_id, :name, :tenant, :state, :created_ns, :parent_id, :ended_ns, :epoch, :owner,
    :heartbeat_ns, :salt, :summary
);

-- name: change_run
-- Write what may change of a run, unless a later claim has been made; never its salt.
UPDATE run SET
    state = :state, ended_ns = :ended_ns, epoch = :epoch, owner = :owner,
    heartbeat_ns = :heartbeat_ns, summary = :summary
WHERE number = :number AND epoch <= :epoch;

-- name: update_owner
-- Claim a run with the next epoch, or beat or release the claim that is held.
UPDATE run SET epoch = :epoch, owner = :owner, heartbeat_ns = :heartbeat_ns
WHERE run_id = :run_id
    AND (epoch = :epoch - 1 OR (epoch = :epoch AND (owner = :owner OR :owner = '{}')));

-- name: run
-- One run.
SELECT CAST(run_id AS BLOB), CAST(name AS BLOB), CAST(tenant AS BLOB), CAST(state AS BLOB),
    CAST(created_ns AS INTEGER), number, CAST(parent_id AS BLOB), CAST(ended_ns AS INTEGER),
    CAST(epoch AS INTEGER), CAST(owner AS BLOB), CAST(heartbeat_ns AS INTEGER), CAST(salt AS BLOB),
    CAST(summary AS BLOB)
FROM run WHERE run_id = ?;

-- name: runs
-- The newest runs.
SELECT CAST(run_id AS BLOB), CAST(name AS BLOB), CAST(tenant AS BLOB), CAST(state AS BLOB),
    CAST(created_ns AS INTEGER), number, CAST(parent_id AS BLOB), CAST(ended_ns AS INTEGER),
    CAST(epoch AS INTEGER), CAST(owner AS BLOB), CAST(heartbeat_ns AS INTEGER), CAST(salt AS BLOB),
    CAST(summary AS BLOB)
FROM run WHERE number < :below ORDER BY number DESC LIMIT :limit;

-- name: runs_of_tenant
-- The newest runs of a tenant.
SELECT CAST(run_id AS BLOB), CAST(name AS BLOB), CAST(tenant AS BLOB), CAST(state AS BLOB),
    CAST(created_ns AS INTEGER), number, CAST(parent_id AS BLOB), CAST(ended_ns AS INTEGER),
    CAST(epoch AS INTEGER), CAST(owner AS BLOB), CAST(heartbeat_ns AS INTEGER), CAST(salt AS BLOB),
    CAST(summary AS BLOB)
FROM run WHERE tenant = :tenant AND number < :below ORDER BY number DESC LIMIT :limit;

-- name: runs_in_state
-- The newest runs in a state.
SELECT CAST(run_id AS BLOB), CAST(name AS BLOB), CAST(tenant AS BLOB), CAST(state AS BLOB),
    CAST(created_ns AS INTEGER), number, CAST(parent_id AS BLOB), CAST(ended_ns AS INTEGER),
    CAST(epoch AS INTEGER), CAST(owner AS BLOB), CAST(heartbeat_ns AS INTEGER), CAST(salt AS BLOB),
    CAST(summary AS BLOB)
FROM run WHERE state = :state AND number < :below ORDER BY number DESC LIMIT :limit;

-- name: runs_of_tenant_in_state
-- The newest runs of a tenant in a state.
SELECT CAST(run_id AS BLOB), CAST(name AS BLOB), CAST(tenant AS BLOB), CAST(state AS BLOB),
    CAST(created_ns AS INTEGER), number, CAST(parent_id AS BLOB), CAST(ended_ns AS INTEGER),
    CAST(epoch AS INTEGER), CAST(owner AS BLOB), CAST(heartbeat_ns AS INTEGER), CAST(salt AS BLOB),
    CAST(summary AS BLOB)
FROM run WHERE tenant = :tenant AND state = :state AND number < :below ORDER BY number DESC LIMIT :limit;

-- name: neighbours
-- The ids just before and after one, in the order of their bytes.
SELECT
    (SELECT CAST(run_id AS BLOB) FROM run WHERE run_id < :run_id ORDER BY run_id DESC LIMIT 1),
    (SELECT CAST(run_id AS BLOB) FROM run WHERE run_id > :run_id ORDER BY run_id LIMIT 1);

-- name: children
-- The runs nested directly in a run, oldest first.
SELECT CAST(run_id AS BLOB), CAST(name AS BLOB), CAST(tenant AS BLOB), CAST(state AS BLOB),
    CAST(created_ns AS INTEGER), number, CAST(parent_id AS BLOB), CAST(ended_ns AS INTEGER),
    CAST(epoch AS INTEGER), CAST(owner AS BLOB), CAST(heartbeat_ns AS INTEGER), CAST(salt AS BLOB),
    CAST(summary AS BLOB)
FROM run WHERE parent_id = ? ORDER BY number;

-- name: events
-- The events of a run after a sequence.
SELECT event.key & 4294967295, CAST(coalesce(event.body, '') AS BLOB), CAST(coalesce(event.hash, '') AS BLOB),
    CAST(event.payload AS BLOB), 0
FROM run JOIN event ON event.key > (run.number << 32) + :after AND event.key < run.number + 1 << 32
WHERE run.run_id = :run_id ORDER BY event.key;

-- name: last_event
-- The newest event of a run.
SELECT event.key & 4294967295, CAST(coalesce(event.body, '') AS BLOB), CAST(coalesce(event.hash, '') AS BLOB),
    CAST(event.payload AS BLOB), 0
FROM run JOIN event ON event.key > run.number << 32 AND event.key < run.number + 1 << 32
WHERE run.run_id = ? ORDER BY event.key DESC LIMIT 1;

-- name: tail
-- The events of all runs after a position.
SELECT CAST(run.run_id AS TEXT), event.key & 4294967295, CAST(coalesce(event.body, '') AS BLOB), CAST(coalesce(event.hash, '') AS BLOB),
    CAST(event.payload AS BLOB), feed.position
FROM feed CROSS JOIN event ON event.key = feed.key CROSS JOIN run ON run.number = feed.key >> 32
WHERE feed.position > :after ORDER BY feed.position LIMIT :limit;

-- name: tail_of_tenant
-- The events of a tenant's runs after a position.
SELECT CAST(run.run_id AS TEXT), event.key & 4294967295, CAST(coalesce(event.body, '') AS BLOB), CAST(coalesce(event.hash, '') AS BLOB),
    CAST(event.payload AS BLOB), feed.position
FROM feed CROSS JOIN run ON run.number = feed.key >> 32 CROSS JOIN event ON event.key = feed.key
WHERE feed.position > :after AND run.tenant = :tenant ORDER BY feed.position LIMIT :limit;

-- name: not_fed
-- The runs that may have events without a place in the feed: the keys of the last that has one, and of the last.
SELECT number,
    coalesce(
        (SELECT max(key) FROM feed WHERE key > number << 32 AND key < number + 1 << 32), number << 32
    ),
    coalesce(
        (SELECT max(key) FROM event WHERE key > number << 32 AND key < number + 1 << 32), number << 32
    )
FROM run WHERE fed = 0 ORDER BY number;

-- name: feed
-- Give the next events of runs up to a number places, by time but never out of a run's own order.
INSERT INTO feed (key)
SELECT event.key
FROM (
    SELECT number, coalesce(
        (SELECT max(key) FROM feed WHERE key > number << 32 AND key < number + 1 << 32), number << 32
    ) AS placed
    FROM run WHERE fed = 0 AND number <= :last
) AS news
CROSS JOIN event ON event.key > placed AND event.key <= placed + :most AND event.key < number + 1 << 32
ORDER BY max(event.at) OVER (PARTITION BY number ORDER BY event.key), event.key;

-- name: feed_is_complete
-- Ask no more about the ended runs that the feed has whole.
UPDATE run SET fed = 1
WHERE fed = 0 AND state IN ('COMPLETED', 'KILLED', 'FAILED')
    AND (SELECT max(key) FROM feed WHERE key > number << 32 AND key < number + 1 << 32)
        IS (SELECT max(key) FROM event WHERE key > number << 32 AND key < number + 1 << 32);

-- name: orphans
-- The first event of every log whose run has no row that could be asked for.
WITH RECURSIVE first (key) AS (
    SELECT min(key) FROM event
    UNION ALL
    SELECT (SELECT min(event.key) FROM event WHERE event.key >= (first.key >> 32) + 1 << 32)
    FROM first WHERE first.key IS NOT NULL
)
SELECT first.key >> 32, first.key & 4294967295 FROM first
WHERE first.key IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM run WHERE number = first.key >> 32 AND typeof(run_id) = 'text');

-- name: misfiled_beside
-- The runs whose entries, next to where an id belongs in the index of ids, name another id than their rows.
SELECT CAST(coalesce(run.run_id, entry.run_id) AS BLOB)
FROM (
    SELECT * FROM (
        SELECT run_id, number FROM run INDEXED BY sqlite_autoindex_run_1
        WHERE run_id < :run_id ORDER BY run_id DESC LIMIT 1
    )
    UNION ALL
    SELECT * FROM (
        SELECT run_id, number FROM run INDEXED BY sqlite_autoindex_run_1
        WHERE run_id > :run_id ORDER BY run_id LIMIT 1
    )
) AS entry LEFT JOIN run ON run.number = entry.number
WHERE run.run_id IS NOT entry.run_id;

-- name: misfiled
-- The runs that an index does not find by what their rows hold, and the first such index.
SELECT CAST(run_id AS BLOB), CASE
    WHEN NOT EXISTS (
        SELECT 1 FROM run INDEXED BY sqlite_autoindex_run_1
        WHERE run_id IS listed.run_id AND number = listed.number
    ) THEN 'id'
    WHEN NOT EXISTS (
        SELECT 1 FROM run INDEXED BY run_by_tenant
        WHERE tenant IS listed.tenant AND number = listed.number
    ) THEN 'tenant'
    WHEN NOT EXISTS (
        SELECT 1 FROM run INDEXED BY run_by_state
        WHERE state IS listed.state AND number = listed.number
    ) THEN 'state'
    WHEN NOT EXISTS (
        SELECT 1 FROM run INDEXED BY run_by_tenant_and_state
        WHERE tenant IS listed.tenant AND state IS listed.state AND number = listed.number
    ) THEN 'tenant and state'
    WHEN parent_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM run INDEXED BY run_by_parent
        WHERE parent_id = listed.parent_id AND number = listed.number
    ) THEN 'parent'
    END AS missing
FROM run AS listed NOT INDEXED WHERE missing IS NOT NULL;

-- name: check_indexes
-- What SQLite itself finds wrong with the runs and their indexes.
PRAGMA integrity_check(run);

-- name: head
-- The newest sequence of a run, or NULL, if there is such a run.
SELECT (SELECT max(key) FROM event WHERE key > number << 32 AND key < number + 1 << 32) & 4294967295
FROM run WHERE number = ?;

-- name: account
-- One shared account.
SELECT CAST(coalesce(data, '') AS BLOB) FROM account WHERE id = ?;

-- name: account_ids
-- The names of all shared accounts.
SELECT CAST(id AS TEXT) FROM account ORDER BY id;

-- name: save_account
-- Write a shared account.
INSERT INTO account (id, data) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data;

-- name: erase_payloads
-- Drop the payloads of a run.
UPDATE event SET payload = NULL
WHERE key > (SELECT number FROM run WHERE run_id = :run_id) << 32
    AND key < (SELECT number FROM run WHERE run_id = :run_id) + 1 << 32
    AND payload IS NOT NULL;

-- name: erase_salt
-- Drop the salt of a run, without which its digests say nothing.
UPDATE run SET salt = NULL WHERE run_id = ? AND salt IS NOT NULL;

-- name: prunable
-- The ended runs that ended before a time.
SELECT number, run_id FROM run
WHERE ended_ns < ? AND state IN ('COMPLETED', 'KILLED', 'FAILED') ORDER BY number;

-- name: mark_pruning
-- Let the events of a run be deleted.
UPDATE run SET pruning = 1 WHERE number = ? AND state IN ('COMPLETED', 'KILLED', 'FAILED');

-- name: delete_events
-- Delete the events of a run that is being pruned.
DELETE FROM event WHERE key > :number << 32 AND key < :number + 1 << 32;

-- name: delete_accounts
-- Delete the accounts of a run and of its scopes, but for those of another run whose id begins like one.
DELETE FROM account
WHERE id IN ('run:' || :run_id, 'attach:' || :run_id)
    OR (
        id > 'run:' || :run_id || '/' AND id < 'run:' || :run_id || '0'
        AND NOT EXISTS (
            SELECT 1 FROM run AS other
            WHERE other.run_id > :run_id || '/' AND other.run_id < :run_id || '0'
                AND substr(account.id, 1, length('run:' || other.run_id || '/'))
                    IN ('run:' || other.run_id, 'run:' || other.run_id || '/')
        )
    );

-- name: delete_places
-- Delete their places in the feed.
DELETE FROM feed WHERE key > :number << 32 AND key < :number + 1 << 32;

-- name: delete_run
-- Delete a run whose events are gone.
DELETE FROM run WHERE number = ?;

-- name: has_positions
-- Whether readers can have saved anything: files of the first schema have no table for it.
SELECT 1 FROM sqlite_master WHERE name = 'reader_position';

-- name: positions
-- How far every reader has come.
SELECT CAST(reader AS TEXT), position FROM reader_position ORDER BY reader;

-- name: save_position
-- A reader goes on, and never back.
INSERT INTO reader_position (reader, position) VALUES (:reader, :position)
ON CONFLICT (reader) DO UPDATE SET position = max(position, excluded.position);
